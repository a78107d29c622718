"""Files of an experiment that are damaged: each is named in one line with the remedy."""

from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.experiment.backends.plan_file import read_plan_file
from offscript.experiment.backends.slurm_queue import launches
from offscript.experiment.folder import Experiment
from offscript.experiment.runner import Result, write_index
from offscript.storage.manifests import manifest_path
from tests.composed import experiment_of

DAMAGE = {
    "empty": "",
    "cut": '{"key": "',
    "list": "[]",
    "no keys": "{}",
    "zeros": "\0" * 64,
    "deep": "[" * 9999,
    "bytes": "\xff",
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return experiment_of("experiment=smoke", f"root={tmp_path_factory.mktemp('runs')}")


def damaged(path: Path, damage: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DAMAGE[damage].encode("latin-1"))
    return path


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_or_plan_is_named_with_the_remedy(experiment: Experiment, damage: str) -> None:
    rollout = experiment.planner.rollout("pocket", "sarcasm", "prompted", "chat", "eval", 0)
    evaluation = experiment.planner.evaluation()
    damaged(experiment.path(rollout), "empty")
    launch = experiment.folder / "launch" / "1"
    readers = {
        manifest_path(experiment.path(rollout)): lambda path: experiment.is_finished(rollout),
        manifest_path(experiment.path(evaluation)): lambda path: experiment.is_finished(evaluation),
        launch / "plan.json": read_plan_file,
        launch / "submitted.json": lambda path: launches(experiment.folder),
    }
    for file, read in readers.items():
        damaged(file, damage)
        with pytest.raises(UserError) as error:
            read(file)
        assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
        assert "delete" in str(error.value) or "save it as UTF-8" in str(error.value)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "no keys"])
def test_a_damaged_index_is_named_and_kept(experiment: Experiment, damage: str) -> None:
    rollout = experiment.planner.rollout("pocket", "sarcasm", "prompted", "chat", "eval", 0)
    index = damaged(experiment.folder / "index.json", damage)
    before = index.read_bytes()
    with pytest.raises(UserError, match=r"index\.json: "):
        write_index(experiment, [Result(rollout, "reused")])
    assert index.read_bytes() == before
