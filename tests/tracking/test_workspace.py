"""The saved view shows the metrics that jobs log, under the same names."""

import json
import subprocess
import sys

import pytest

from offscript.commands import dashboard
from offscript.errors import UserError
from offscript.storage.files import HOME
from offscript.tracking.results import BARS, HEATMAP, RETENTION, SCORES
from offscript.tracking.tracker import STEP, NullTracker, RolloutProgressLogger
from offscript.tracking.workspace import CURVES, PACKAGE, workspace
from tests.composed import experiment_of
from tests.tracking.wandb_stub import wandb_stub


def test_a_missing_package_is_named_with_its_version(tmp_path):
    (tmp_path / "wandb_workspaces.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, str(HOME / "launch/dashboard.py"), "tracking=online"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == f"error: wandb-workspaces: is not installed; pip install {PACKAGE}"


def test_the_curves_of_rollouts_are_the_logged_metrics():
    logged = set()

    class RecordingTracker(NullTracker):
        def log(self, values, step=None):
            logged.update(values)

    progress = RolloutProgressLogger(RecordingTracker(), every_s=0)
    progress.add_row(True, 5)
    progress.close()
    assert {metric for metrics in CURVES["Rollouts"].values() for metric in metrics} == logged


def spec():
    pytest.importorskip("wandb_workspaces", reason=f"{PACKAGE} is optional")
    view = workspace("someone", "offscript", ["chat", "agentic_email"])
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def test_every_section_plots_its_metrics_over_the_step():
    sections = {s["name"]: s["panels"] for s in spec()["section"]["panelBankConfig"]["sections"]}
    for name, curves in CURVES.items():
        plotted = {panel["config"]["chartTitle"]: panel["config"] for panel in sections[name]}
        assert plotted.keys() == curves.keys()
        for title, metrics in curves.items():
            assert tuple(plotted[title]["metrics"]) == metrics
            assert plotted[title]["xAxis"] == STEP


def test_the_results_are_tables_bars_for_each_format_and_the_heatmap():
    sections = {s["name"]: json.dumps(s) for s in spec()["section"]["panelBankConfig"]["sections"]}
    for name in (RETENTION, SCORES, f"{BARS}/chat_table", f"{BARS}/agentic_email_table", HEATMAP):
        assert f'"{name}"' in sections["Retention"]


def test_a_view_that_the_server_does_not_save_is_a_user_error(monkeypatch):
    pytest.importorskip("wandb_workspaces", reason=f"{PACKAGE} is optional")
    with wandb_stub() as stub:
        for name, value in stub.environment().items():
            monkeypatch.setenv(name, value)
        experiment = experiment_of("tracking=online")
        with pytest.raises(UserError, match="did not save the view"):
            dashboard(experiment.planner.settings, experiment)
