"""The status of an experiment, from its files and the state of the cluster."""

import json
import os
import time

import pytest

from offscript.experiment.backends.slurm_queue import ClusterState, FailedJob
from offscript.experiment.backends.status import read_status, table
from offscript.storage.files import write_json
from offscript.storage.locks import STALE_S, claim

ROWS = {
    "key": "a" * 64,
    "name": "rollout chat",
    "kind": "rollout",
    "path": "rollouts/m/chat-eval-aaaaaaaa.jsonl",
}
ADAPTER = {"key": "b" * 64, "name": "adapter x", "kind": "adapter", "path": "adapters/m/x-bbbbbbbb"}
TABLES = {"key": "c" * 64, "name": "evaluation", "kind": "evaluation", "path": "evaluation"}
LISTED = [
    {**ROWS, "planned": 10, "needs": []},
    {**ADAPTER, "planned": None, "needs": [0]},
    {**TABLES, "planned": None, "needs": [1]},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path


def write_rows(folder, count, finished=False):
    path = folder / ROWS["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n" * count)
    if finished:
        path.with_name(path.name + ".manifest.json").write_text("{}")
    return path


def states(folder, cluster=None):
    found = read_status(folder, LISTED, lambda keys: cluster or ClusterState())
    return [entry.state for entry in found.entries]


def record_failure(folder, key, reason, when="2026-01-01T00:00:00Z", log=None):
    write_json(folder / "logs" / f"{key[:8]}.failed.json", {"reason": reason, "log": log, "when": when})


def test_without_files_everything_is_missing(folder):
    assert states(folder) == ["missing"] * 3
    assert "0/10" in table(read_status(folder, LISTED))


def test_the_cluster_is_not_queried_about_finished_artifacts(folder):
    write_rows(folder, 10, finished=True)
    queried = []
    found = read_status(folder, LISTED, lambda keys: queried.append(list(keys)) or ClusterState())
    assert found.entries[0].state == "done" and found.rows == (10, 10)
    assert queried == [[ADAPTER["key"], TABLES["key"]]]


def test_queued_artifacts_are_waiting_and_locked_ones_are_running(folder):
    path = write_rows(folder, 4)
    cluster = ClusterState({ROWS["key"]: "PENDING", ADAPTER["key"]: "PENDING"}, jobs=2)
    assert states(folder, cluster) == ["waiting", "waiting", "missing"]
    with claim(path):
        found = read_status(folder, LISTED, lambda keys: cluster)
        assert [entry.state for entry in found.entries] == ["running", "waiting", "missing"]
        assert found.in_progress
        assert found.rate(found.entries[0].since + 8) == pytest.approx(0.5)
        assert "left for 6 rows" in table(found)


def test_an_artifact_with_a_stale_lock_is_not_running(folder):
    path = write_rows(folder, 4)
    with claim(path):
        old = time.time() - 2 * STALE_S
        os.utime(path.with_name(f".{path.name}.lock"), (old, old))
        assert states(folder) == ["missing"] * 3


def test_an_artifact_with_the_lock_of_an_ended_job_is_not_running(folder):
    path = write_rows(folder, 4)
    with claim(path):
        ended = path.with_name(f".{path.name}.lock").stat().st_mtime + 1
        assert (
            states(
                folder, ClusterState(failed={ROWS["key"]: FailedJob("killed", folder / "x", "2026", ended)})
            )[0]
            == "failed"
        )
        assert (
            states(
                folder,
                ClusterState(failed={ROWS["key"]: FailedJob("killed", folder / "x", "2026", ended - 5)}),
            )[0]
            == "running"
        )


def test_a_recorded_failure_is_shown_with_its_log(folder):
    record_failure(folder, ROWS["key"], "RuntimeError: boom", log="logs/rollout-a.log")
    found = read_status(folder, LISTED)
    assert [entry.state for entry in found.entries] == ["failed", "missing", "missing"]
    assert f"failed: rollout chat: RuntimeError: boom (log: {folder / 'logs/rollout-a.log'})" in table(found)
    assert json.loads(json.dumps(found.as_json()))["states"] == {"failed": 1, "missing": 2}


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"reason": 1', '{"reason": "x", "log": [], "when": "y"}']
)
def test_a_damaged_record_of_a_failure_is_shown_as_that(folder, content):
    path = folder / "logs" / f"{ROWS['key'][:8]}.failed.json"
    path.write_text(content)
    (first, *_) = read_status(folder, LISTED).entries
    assert (first.state, first.reason) == ("failed", f"unknown, since {path} is damaged")


def test_of_a_recorded_failure_and_a_failed_job_the_newer_one_is_shown(folder):
    record_failure(folder, ROWS["key"], "boom", when="2026-01-02T00:00:00Z")
    log = folder / "job.out"
    log.touch()

    def reason(planned):
        cluster = ClusterState(
            failed={ROWS["key"]: FailedJob("SLURM job 1: killed by signal 9", log, planned)}
        )
        return read_status(folder, LISTED, lambda keys: cluster).entries[0].reason

    assert reason(planned="2026-01-01T00:00:00Z") == "boom"
    assert reason(planned="2026-01-03T00:00:00Z") == "SLURM job 1: killed by signal 9"


def test_an_artifact_whose_input_failed_is_missing_and_not_failed(folder):
    """Its job failed too, for lack of the input."""
    cluster = ClusterState(
        failed={a["key"]: FailedJob("exit code 1", folder / "x", "2026") for a in (ROWS, ADAPTER)}
    )
    assert states(folder, cluster) == ["failed", "missing", "missing"]


def test_the_evaluation_of_other_settings_does_not_count(folder):
    (folder / "evaluation").mkdir()
    write_json(folder / "evaluation" / "manifest.json", {"key": "d" * 64})
    assert states(folder)[2] == "missing"
    write_json(folder / "evaluation" / "manifest.json", {"key": TABLES["key"], "files": {}})
    assert states(folder)[2] == "done"


def test_artifacts_of_other_settings_are_stale(folder):
    write_rows(folder, 10, finished=True)
    other = folder / "adapters" / "m" / "x-eeeeeeee"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text("{}")
    found = read_status(folder, LISTED)
    assert found.stale == ("adapters/m/x-eeeeeeee",)
    assert "stale: 1 artifacts" in table(found)
