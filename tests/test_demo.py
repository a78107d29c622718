"""The whole pipeline without fakes: the smoke experiment is run, killed and run again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from offscript.storage.files import HOME
from offscript.tracking.results import BARS, HEATMAP, RETENTION, SCORES
from offscript.tracking.workspace import CURVES
from tests.invoked import invoke
from tests.slurm import grid
from tests.tracking.offline_run import read_runs

pytestmark = pytest.mark.slow


def weights_of(folder):
    """The bytes of every adapter and classifier, by path."""
    parts = (folder / "adapters", folder / "classifiers")
    return {str(p.relative_to(folder)): p.read_bytes() for part in parts for p in part.rglob("*.safetensors")}


def rows_of(folder):
    """Every rollout row of an experiment with its path, sorted."""
    found = []
    for path in sorted((folder / "rollouts").rglob("*.jsonl")):
        found += [
            (str(path.relative_to(folder)), json.dumps(json.loads(line), sort_keys=True))
            for line in path.read_text().splitlines()
        ]
    return sorted(found)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, str(HOME / "launch/submit.py"), "experiment=smoke"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return cwd, done


def test_the_grid_prints_tables_and_writes_files(smoke):
    cwd, done = smoke
    assert "pocket: macro_f1_2" in done.stdout and "kept above" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    evaluation = cwd / "runs/smoke/evaluation"
    summary = json.loads((evaluation / "summary.json").read_text())
    cells = {(g["stage"], g["format"]): g for g in summary["groups"]}
    assert len(cells) == 12
    assert cells["full", "chat"]["planned"] == 16 and cells["base", "chat"]["planned"] == 8
    assert "macro_f1_2 by stage and format" in (evaluation / "tables.txt").read_text()
    assert (evaluation / "figures/headline.png").stat().st_size > 10_000
    adapter = next((cwd / "runs/smoke/adapters/pocket/sarcasm").glob("full-*"))
    merged = json.loads((adapter / "manifest.json").read_text())["counts"]["merge"]
    assert merged["max_relative_error"] <= 1e-5
    first, second = summary["sections"]["recipes"]["stages"]
    assert first["stage"] == "distillation" and first["formats"] == ["chat"]
    # Those of the parent stage, and its own.
    assert 0 < first["tokens"] < second["tokens"] and 0 < first["rows_s"] < second["rows_s"]
    assert 0 < first["training_s"] < second["training_s"]


def test_every_metric_of_the_dashboard_is_logged_by_some_job(smoke):
    cwd, _ = smoke
    logged = {key.partition(".")[0] for run in read_runs(cwd / "runs/smoke/wandb") for key in run["logged"]}
    charted = {metric for curves in CURVES.values() for metrics in curves.values() for metric in metrics}
    assert charted <= logged
    assert {RETENTION, SCORES, HEATMAP, f"{BARS}/chat_table", f"{BARS}/agentic_email_table"} <= logged


def test_a_second_run_makes_nothing(smoke):
    cwd, _ = smoke
    before = {p: p.stat().st_mtime_ns for p in (cwd / "runs/smoke").rglob("*.jsonl")}
    again = invoke(cwd, "submit", "experiment=smoke")
    assert again.code == 0 and "artifacts, 0 to make" in again.err
    assert again.out == (cwd / "runs/smoke/evaluation/overview.txt").read_text()
    assert {p: p.stat().st_mtime_ns for p in (cwd / "runs/smoke").rglob("*.jsonl")} == before


def test_every_job_logs_its_metrics_to_wandb(smoke):
    cwd, _ = smoke
    runs = read_runs(cwd / "runs/smoke")
    kinds = {
        kind: [r for r in runs if r["job_type"] == kind]
        for kind in ("train", "rollout", "classify", "evaluate")
    }
    # The network and the baseline are fitted by a job each.
    assert len(kinds["train"]) == 4 and len(kinds["classify"]) == 2 and len(kinds["evaluate"]) == 1
    assert {r["group"] for r in runs} == {"smoke"} and len({r["id"] for r in runs}) == len(runs)
    assert all("train/loss" in r["logged"] for r in kinds["train"])
    assert all("rollout/emission_rate" in r["logged"] for r in kinds["rollout"])
    assert all("macro_f1" in r["summary"] for r in kinds["classify"])
    (last,) = kinds["evaluate"]
    assert (
        any(k.startswith("retention") for k in last["logged"])
        and "pocket/full/chat/seed0/macro_f1_2" in last["summary"]
    )


ROWS = "rollouts/pocket/base/**/*.jsonl"
CHECKPOINT = "adapters/pocket/sarcasm/.*/checkpoint-*/trainer_state.json"
ROWS_OF_TRAINED = "rollouts/pocket/distillation/**/*.jsonl"
FITTED = "classifiers/pocket/*/fit0/model.safetensors"


def killed_once(root, words, pattern, name):
    """Starts a grid and sends the signal ``name`` to its processes once a path below the experiment matches ``pattern``."""
    command = [sys.executable, str(HOME / "launch/submit.py"), *words]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **nowhere) as process:
        deadline = time.monotonic() + 300
        while not next((root / "smoke").glob(pattern), None):
            assert process.poll() is None and time.monotonic() < deadline, f"{pattern} did not appear"
            time.sleep(0.05)
        os.killpg(process.pid, signal.Signals[name])
        assert process.wait(120) == -signal.Signals[name]


@pytest.mark.parametrize(
    ("cluster", "kills"),
    [
        ("inline", [(ROWS, "SIGKILL"), (CHECKPOINT, "SIGKILL"), (FITTED, "SIGKILL")]),
        ("local", [(CHECKPOINT, "SIGTERM"), (ROWS_OF_TRAINED, "SIGKILL")]),
    ],
    ids=["inline", "local"],
)
def test_a_grid_that_was_killed_has_the_same_rows(tmp_path, cluster, kills):
    """And the same weights and results; after each kill, the status shows at once that nothing runs."""
    words = [*grid.SHORT, f"cluster={cluster}", f"root={tmp_path}"]
    for pattern, name in kills:
        killed_once(tmp_path, words, pattern, name)
        found = grid.status(tmp_path, *words)
        assert "running" not in found["states"], found
    done = grid.run_inline(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    undisturbed = grid.inline_root(grid.SHORT)
    assert weights_of(tmp_path / "smoke") == weights_of(undisturbed / "smoke")
    assert rows_of(tmp_path / "smoke") == rows_of(undisturbed / "smoke")
    assert grid.cells(tmp_path) == grid.inline(grid.SHORT)


def test_a_multirun_trains_and_rolls_out(tmp_path):
    def run(script, *words):
        return subprocess.run(
            [sys.executable, str(HOME / script), "-m", *grid.SMALL, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )

    trained = run("train.py", "model=pocket", "persona=sarcasm,remorse", "stage=distillation,full")
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert len(list((tmp_path / "runs/smoke/adapters").rglob("adapter_model.safetensors"))) >= 4
    rolled = run("rollout.py", "persona=sarcasm,remorse", "stage=base,full", "format=chat,agentic_email")
    assert rolled.returncode == 0, rolled.stderr[-3000:]
    base = list((tmp_path / "runs/smoke/rollouts/pocket/base/_").glob("*-eval-*.jsonl"))
    assert len(base) == 2, "both personas share the base cells, which are made once"
    assert rolled.stderr.count("rollout pocket base chat eval 0: made") == 1
    assert rolled.stderr.count("rollout pocket base chat eval 0: reused") == 1
