"""What status makes of the files and of what the cluster says."""

import json
import os
import time

import pytest

from offscript.experiment.backends.slurm_queue import Death, Seen
from offscript.experiment.backends.status import look, table
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


def states(folder, seen=None):
    found = look(folder, LISTED, lambda keys: seen or Seen())
    return [entry.state for entry in found.entries]


def note(folder, key, reason, when="2026-01-01T00:00:00Z", log=None):
    write_json(folder / "logs" / f"{key[:8]}.failed.json", {"reason": reason, "log": log, "when": when})


def test_nothing_is_there_yet(folder):
    assert states(folder) == ["missing"] * 3
    assert "0/10" in table(look(folder, LISTED))


def test_a_finished_artifact_is_not_asked_about(folder):
    write_rows(folder, 10, finished=True)
    asked = []
    found = look(folder, LISTED, lambda keys: asked.append(list(keys)) or Seen())
    assert found.entries[0].state == "done" and found.rows == (10, 10)
    assert asked == [[ADAPTER["key"], TABLES["key"]]]


def test_the_queue_says_what_waits_and_a_claim_what_is_at_work(folder):
    path = write_rows(folder, 4)
    seen = Seen({ROWS["key"]: "PENDING", ADAPTER["key"]: "PENDING"}, jobs=2)
    assert states(folder, seen) == ["waiting", "waiting", "missing"]
    with claim(path):
        found = look(folder, LISTED, lambda keys: seen)
        assert [entry.state for entry in found.entries] == ["running", "waiting", "missing"]
        assert found.moving
        assert found.rate(found.entries[0].since + 8) == pytest.approx(0.5)
        assert "left for 6 rows" in table(found)


def test_a_claim_without_a_heartbeat_is_nobody_at_work(folder):
    path = write_rows(folder, 4)
    with claim(path):
        old = time.time() - 2 * STALE_S
        os.utime(path.with_name(f".{path.name}.lock"), (old, old))
        assert states(folder) == ["missing"] * 3


def test_the_claim_of_a_job_that_has_ended_is_nobody_at_work(folder):
    path = write_rows(folder, 4)
    with claim(path):
        ended = path.with_name(f".{path.name}.lock").stat().st_mtime + 1
        assert (
            states(folder, Seen(deaths={ROWS["key"]: Death("killed", folder / "x", "2026", ended)}))[0]
            == "failed"
        )
        assert (
            states(folder, Seen(deaths={ROWS["key"]: Death("killed", folder / "x", "2026", ended - 5)}))[0]
            == "running"
        )


def test_what_was_noted_is_shown_with_its_log(folder):
    note(folder, ROWS["key"], "RuntimeError: boom", log="logs/rollout-a.log")
    found = look(folder, LISTED)
    assert [entry.state for entry in found.entries] == ["failed", "missing", "missing"]
    assert f"failed: rollout chat: RuntimeError: boom (log: {folder / 'logs/rollout-a.log'})" in table(found)
    assert json.loads(json.dumps(found.plain()))["states"] == {"failed": 1, "missing": 2}


def test_of_a_note_and_a_death_the_newer_one_counts(folder):
    note(folder, ROWS["key"], "boom", when="2026-01-02T00:00:00Z")
    log = folder / "job.out"
    log.touch()

    def reason(planned):
        seen = Seen(deaths={ROWS["key"]: Death("SLURM job 1: killed by signal 9", log, planned)})
        return look(folder, LISTED, lambda keys: seen).entries[0].reason

    assert reason(planned="2026-01-01T00:00:00Z") == "boom"
    assert reason(planned="2026-01-03T00:00:00Z") == "SLURM job 1: killed by signal 9"


def test_what_needs_something_that_failed_has_not_failed_itself(folder):
    """Its job ended badly too, since there was nothing to make it from."""
    seen = Seen(deaths={a["key"]: Death("exit code 1", folder / "x", "2026") for a in (ROWS, ADAPTER)})
    assert states(folder, seen) == ["failed", "missing", "missing"]


def test_the_evaluation_of_other_settings_is_not_this_one(folder):
    (folder / "evaluation").mkdir()
    write_json(folder / "evaluation" / "manifest.json", {"key": "d" * 64})
    assert states(folder)[2] == "missing"
    write_json(folder / "evaluation" / "manifest.json", {"key": TABLES["key"]})
    assert states(folder)[2] == "done"


def test_artifacts_of_other_settings_are_stale(folder):
    write_rows(folder, 10, finished=True)
    other = folder / "adapters" / "m" / "x-eeeeeeee"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text("{}")
    found = look(folder, LISTED)
    assert found.stale == ("adapters/m/x-eeeeeeee",)
    assert "stale: 1 artifacts" in table(found)
