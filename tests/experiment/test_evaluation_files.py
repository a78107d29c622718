"""The tables that are shown for a grid are its own, whatever else was evaluated or interrupted in its folder."""

import json
import shutil

import pytest

from offscript import commands
from offscript.experiment.artifacts import Predictions, in_order
from offscript.experiment.backends.plan import artifact_records
from offscript.experiment.backends.status import read_status
from offscript.experiment.folder import now, write_artifact_manifest
from offscript.experiment.jobs import scoring
from tests.composed import experiment_of
from tests.rows import grid, probs

GRID = (
    "experiment=smoke",
    "grid.persona=[sarcasm,remorse]",
    "grid.stage=[prompted]",
    "grid.format=[chat,chat_email]",
    "evaluation.resamples=100",
    "tracking=off",
)


def experiment(root, *more):
    return experiment_of(*GRID, f"root={root}", *more)


def write_predictions(own, cells=None):
    """Predictions of the grid's cells, as its classifier would leave them."""
    for part in own.planner.evaluation().inputs[:cells]:
        assert isinstance(part, Predictions)
        labels = dict(part.rollout.labels)
        rows = [
            {
                **labels, "row": f"s{i}/0", "scenario": f"s{i}", "family": f"f{i}", "sample": 0, "ended": "stop",
                "predicted": labels["persona"], "probs": probs(labels["persona"], ("sarcasm", "remorse")),
                "text_hash": f"{labels['persona']}{i}",
            }
            for i in range(6)
        ]  # fmt: skip
        path = own.path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_artifact_manifest(part, own, now())


def evaluate(own) -> int:
    return commands.evaluate(own.planner.settings, own)


def contents(own):
    folder = own.folder / "evaluation"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".txt")}


def is_done(own) -> bool:
    evaluation = own.planner.evaluation()
    status = read_status(own.folder, artifact_records(in_order([evaluation])))
    (entry,) = (e for e in status.entries if e.kind == "evaluation")
    assert (entry.state == "done") == own.is_finished(evaluation)
    return entry.state == "done"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The root of a grid that was evaluated."""
    root = tmp_path_factory.mktemp("evaluated")
    made = experiment(root)
    write_predictions(made)
    assert evaluate(made) == 0 and is_done(made)
    return root


@pytest.fixture
def own(evaluated, tmp_path):
    """A copy of it."""
    made = experiment(tmp_path)
    shutil.copytree(evaluated / made.planner.settings.name, made.folder)
    assert is_done(made)
    return made


def test_rows_of_others_are_evaluated_in_a_folder_of_their_own(own, tmp_path, capsys):
    before = contents(own)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in grid(4)))
    for planned in ("7", "8"):
        elsewhere = experiment(tmp_path, f"predictions={other}", f"planned={planned}")
        assert evaluate(elsewhere) == 0
    assert contents(own) == before and is_done(own)
    folders = list((own.folder / "evaluations").iterdir())
    assert len(folders) == 2 and all(folder.name.startswith("other-") for folder in folders)
    assert all("pocket,full,chat" in (folder / "cells.csv").read_text() for folder in folders)
    capsys.readouterr()
    assert commands.submit(own.planner.settings, own) == 0
    assert capsys.readouterr().out.encode() == before["overview.txt"]


def test_files_of_one_name_in_two_folders_are_told_apart(own, tmp_path):
    for content in (grid(4), grid(4, seed=1)):
        for folder, rows in (("a", content), ("b", grid(4, model="other"))):
            (tmp_path / "given" / folder).mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "given" / folder / "rows.jsonl").write_text(text)
        assert evaluate(experiment(tmp_path, f"predictions={tmp_path / 'given'}")) == 0
    assert len(list((own.folder / "evaluations").iterdir())) == 2


def test_tables_of_other_settings_are_not_shown(own, tmp_path):
    before = contents(own)
    changed = experiment(tmp_path, "evaluation.seed=5", "grid.format=[chat,chat_email,break_character]")
    assert evaluate(changed) == 2, "inputs are missing"
    assert changed.tables(changed.planner.evaluation()).count("incomplete: 2 of the grid's cells") == 1
    assert own.tables(own.planner.evaluation()) is None
    assert not is_done(own) and not is_done(changed)
    assert evaluate(own) == 0 and contents(own) == before and is_done(own)


def test_a_kill_before_the_manifest_leaves_no_tables_of_the_former_grid(own, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    changed = experiment(tmp_path, "evaluation.resamples=200")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring, "write_artifact_manifest", killed)
        evaluate(changed)
    assert not is_done(own) and not is_done(changed)
    assert own.tables(own.planner.evaluation()) is None


def test_files_that_were_deleted_or_changed_are_made_again(own):
    names = ("overview.txt", "tables.txt", "cells.csv", "figures/personas.svg")
    paths = [own.folder / "evaluation" / name for name in names]
    before = {path: path.read_bytes() for path in paths}
    for path, content in before.items():
        for damage in (path.unlink, lambda path=path: path.write_text("other")):
            damage()
            assert not is_done(own), path
            path.write_bytes(content)
        assert is_done(own)
    deleted, *changed = before
    deleted.unlink()
    for path in changed:
        path.write_text("other")
    assert evaluate(own) == 0 and is_done(own)
    assert {path: path.read_bytes() for path in before} == before
