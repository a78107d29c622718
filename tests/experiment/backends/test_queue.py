"""Which jobs are ours, what they make, and how those ended that could not say it themselves."""

import json

import pytest

from offscript.errors import UserError
from offscript.experiment.backends import slurm_queue as queue

ARRAYS = [
    {"kind": "rollout", "layer": 0, "tasks": [[0, 1], [2]], "after": []},
    {"kind": "adapter", "layer": 1, "tasks": [[3]], "after": [0]},
]
JOBS = [{"keys": ["k0", "k00"]}, {"keys": ["k1"]}, {"keys": ["k2"]}, {"keys": ["k3"]}]


@pytest.fixture
def slurm(monkeypatch):
    """What the commands answer."""
    answers = {"squeue": "", "sacct": "", "scancel": ""}
    asked = []

    def ask(program, *words, **_):
        asked.append((program, *words))
        if isinstance(answers[program], UserError):
            raise answers[program]
        return answers[program]

    monkeypatch.setattr(queue, "ask", ask)
    answers["asked"] = asked
    return answers


def launch(folder, name, *ids, created="2026-01-01T00:00:00Z"):
    own = folder / "launch" / name
    own.mkdir(parents=True)
    (own / "plan.json").write_text(json.dumps({"arrays": ARRAYS, "jobs": JOBS, "created": created}))
    queue.note(own, list(zip(ids, ("0-rollout", "1-adapter", "supervisor"), strict=False)))
    return own


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "demo"


def test_a_job_makes_what_its_task_lists(folder, slurm):
    launch(folder, "a", "12", "13", "14")
    slurm["squeue"] = "12_1|PENDING|demo-0-rollout\n13|RUNNING|demo-1-adapter\n14|PENDING|demo-supervisor\n"
    assert queue.in_flight(folder) == {"k2": "12_1", "k3": "13"}
    seen = queue.look(folder, ["k0", "k2", "k3"])
    assert seen.states == {"k2": "PENDING", "k3": "RUNNING"} and seen.jobs == 3


def test_the_same_number_of_another_job_is_not_ours(folder, slurm):
    launch(folder, "a", "12", "13", "14")
    slurm["squeue"] = "12_0|RUNNING|other-0-rollout\n13|RUNNING|notebook\n"
    assert queue.in_flight(folder) == {}
    assert queue.cancel(folder) == []


def test_supervisors_are_cancelled_first(folder, slurm):
    launch(folder, "a", "12", "13", "14")
    slurm["squeue"] = "12_0|RUNNING|demo-0-rollout\n14|PENDING|demo-supervisor\n"
    assert queue.cancel(folder) == ["14", "12"]
    assert slurm["asked"][-1] == ("scancel", "14", "12")


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        ("OUT_OF_MEMORY", "0:125", "out of memory; give it more memory_gb"),
        ("TIMEOUT", "0:0", "its time was up; give it more minutes"),
        ("FAILED", "137:0", "killed by signal 9"),
        ("FAILED", "0:15", "killed by signal 15"),
        ("FAILED", "1:0", "exit code 1"),
        ("FAILED", "255:0", "exit code 255"),
        ("CANCELLED by 0", "0:0", "cancelled"),
        ("NODE_FAIL", "0:0", "its node failed"),
    ],
)
def test_how_a_job_ended_in_words(folder, slurm, state, code, said):
    own = launch(folder, "a", "12", "13")
    slurm["sacct"] = (
        f"12_0|COMPLETED|0:0|1700000000\n12_1|{state}|{code}|1700000000\n13|COMPLETED|0:0|1700000000\n"
    )
    found = queue.deaths(folder, ["k0", "k2", "k3"])
    assert {key: death.reason for key, death in found.items()} == {"k2": f"SLURM job 12_1: {said}"}
    assert found["k2"].log == own / "slurm" / "0-rollout" / "12_1_0_log.out"


def test_what_slurm_wrote_into_the_log_is_told(folder, slurm):
    own = launch(folder, "a", "12", "13")
    log = own / "slurm" / "0-rollout" / "12_1_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text(
        "x\n" * 9000
        + "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED DUE TO TIME LIMIT ***\nsrun: error: n1: Killed\n"
    )
    slurm["sacct"] = "12_1|FAILED|9:0|1700000000\n"
    death = queue.deaths(folder, ["k2"])["k2"]
    assert death.reason == "SLURM job 12_1: exit code 9 (STEP 7.0 ON n1 CANCELLED DUE TO TIME LIMIT)"
    assert death.ended == 1.7e9


def test_tasks_that_never_began_stand_together_in_the_accounting(folder, slurm):
    launch(folder, "a", "12", "13")
    slurm["sacct"] = "12_[0-1%2]|CANCELLED by 0|0:0|1700000000\n"
    found = queue.deaths(folder, ["k1", "k2"])
    assert found["k1"].log.name == "12_0_1_log.out", "the second process of its task makes it"
    assert found["k2"].reason == "SLURM job 12_1: cancelled"


def test_only_the_newest_launch_that_tried_it_counts(folder, slurm):
    launch(folder, "a", "12", "13")
    launch(folder, "b", "22", "23")
    slurm["sacct"] = (
        "12_1|FAILED|1:0|1700000000\n22_1|COMPLETED|0:0|1700000000\n23|FAILED|1:0|1700000000\n13|FAILED|1:0|1700000000\n"
    )
    assert {k: d.reason for k, d in queue.deaths(folder, ["k2", "k3"]).items()} == {
        "k3": "SLURM job 23: exit code 1"
    }
    assert [words for words in slurm["asked"] if "12,13" in words] == []


def test_a_cluster_that_does_not_answer_is_a_note(folder, slurm):
    launch(folder, "a", "12")
    slurm["squeue"] = UserError("squeue", "Unable to contact slurm controller", "is it up?")
    assert queue.look(folder, ["k0"]).notes[0].startswith("the cluster cannot be asked (squeue: Unable")
    slurm["squeue"], slurm["sacct"] = (
        "12_0|RUNNING|demo-0-rollout\n",
        UserError("sacct", "accounting is disabled"),
    )
    seen = queue.look(folder, ["k0", "k2"])
    assert set(seen.states) == {"k0", "k00", "k1"} and "accounting is disabled" in seen.notes[0]


def test_nothing_is_asked_where_nothing_was_submitted(folder, slurm):
    assert queue.look(folder, ["k0"]) == queue.Seen()
    assert slurm["asked"] == []
