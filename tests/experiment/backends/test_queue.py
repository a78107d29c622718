"""The jobs of an experiment in SLURM: which are in flight, what they make, and why others failed."""

import json

import pytest

from offscript import commands
from offscript.errors import UserError
from offscript.experiment.backends import slurm_queue as queue
from tests.composed import experiment_of

ARRAYS = [
    {"kind": "rollout", "layer": 0, "tasks": [[0, 1], [2]], "after": []},
    {"kind": "adapter", "layer": 1, "tasks": [[3]], "after": [0]},
]
JOBS = [
    {"kind": "rollout", "layer": 0, "name": "job", "keys": keys}
    for keys in (["k0", "k00"], ["k1"], ["k2"], ["k3"])
]
PLAN = {
    **{"settings": {}, "options": {}, "overrides": [], "attempts": {}, "artifacts": []},
    **{"home": "/code", "cwd": "/code", "code": None, "arrays": ARRAYS, "jobs": JOBS},
}


@pytest.fixture
def slurm(monkeypatch):
    """The outputs of SLURM's commands, which a test sets, and the commands that were run."""
    answers = {"squeue": "", "sacct": "", "scancel": ""}
    commands = []

    def run_command(program, *words, **_):
        commands.append((program, *words))
        if isinstance(answers[program], UserError):
            raise answers[program]
        return answers[program]

    monkeypatch.setattr(queue, "run_command", run_command)
    answers["commands"] = commands
    return answers


def launch(folder, name, *ids, created="2026-01-01T00:00:00Z"):
    own = folder / "launch" / name
    own.mkdir(parents=True)
    (own / "plan.json").write_text(json.dumps({**PLAN, "created": created}))
    queue.record_jobs(own, list(zip(ids, ("0-rollout", "1-adapter", "supervisor"), strict=False)))
    return own


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "demo"


def test_artifacts_in_flight_are_those_of_the_queued_tasks(folder, slurm):
    launch(folder, "a", "12", "13", "14")
    slurm["squeue"] = "12_1|PENDING|demo-0-rollout\n13|RUNNING|demo-1-adapter\n14|PENDING|demo-supervisor\n"
    assert queue.in_flight(folder) == {"k2": "12_1", "k3": "13"}
    state = queue.query_cluster(folder, ["k0", "k2", "k3"])
    assert state.states == {"k2": "PENDING", "k3": "RUNNING"} and state.jobs == 3


def test_a_job_with_the_same_id_and_another_name_is_not_of_the_experiment(folder, slurm):
    launch(folder, "a", "12", "13", "14")
    slurm["squeue"] = "12_0|RUNNING|other-0-rollout\n13|RUNNING|notebook\n"
    assert queue.in_flight(folder) == {}
    assert queue.cancel(folder) == []


def test_supervisors_are_cancelled_first(folder, slurm):
    launch(folder, "a", "12", "13", "14")
    slurm["squeue"] = "12_0|RUNNING|demo-0-rollout\n14|PENDING|demo-supervisor\n"
    assert queue.cancel(folder) == ["14", "12"]
    assert slurm["commands"][-1] == ("scancel", "14", "12")


@pytest.mark.parametrize(
    ("state", "code", "reason"),
    [
        ("OUT_OF_MEMORY", "0:125", "out of memory; increase memory_gb"),
        ("TIMEOUT", "0:0", "time limit reached; increase minutes"),
        ("FAILED", "137:0", "killed by signal 9"),
        ("FAILED", "0:15", "killed by signal 15"),
        ("FAILED", "1:0", "exit code 1"),
        ("FAILED", "255:0", "exit code 255"),
        ("CANCELLED by 0", "0:0", "cancelled"),
        ("NODE_FAIL", "0:0", "node failure"),
    ],
)
def test_the_reason_of_a_failure_from_the_accounting(folder, slurm, state, code, reason):
    own = launch(folder, "a", "12", "13")
    slurm["sacct"] = (
        f"12_0|COMPLETED|0:0|1700000000\n12_1|{state}|{code}|1700000000\n13|COMPLETED|0:0|1700000000\n"
    )
    found = queue.failed_jobs(folder, ["k0", "k2", "k3"])
    assert {key: job.reason for key, job in found.items()} == {"k2": f"SLURM job 12_1: {reason}"}
    assert found["k2"].log == own / "slurm" / "0-rollout" / "12_1_0_log.out"


def test_the_error_that_slurm_wrote_into_the_log_is_part_of_the_reason(folder, slurm):
    own = launch(folder, "a", "12", "13")
    log = own / "slurm" / "0-rollout" / "12_1_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text(
        "x\n" * 9000
        + "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED DUE TO TIME LIMIT ***\nsrun: error: n1: Killed\n"
    )
    slurm["sacct"] = "12_1|FAILED|9:0|1700000000\n"
    job = queue.failed_jobs(folder, ["k2"])["k2"]
    assert job.reason == "SLURM job 12_1: exit code 9 (STEP 7.0 ON n1 CANCELLED DUE TO TIME LIMIT)"
    assert job.ended == 1.7e9


def test_tasks_that_never_started_share_a_row_in_the_accounting(folder, slurm):
    launch(folder, "a", "12", "13")
    slurm["sacct"] = "12_[0-1%2]|CANCELLED by 0|0:0|1700000000\n"
    found = queue.failed_jobs(folder, ["k1", "k2"])
    assert found["k1"].log.name == "12_0_1_log.out", "the second process of its task makes k1"
    assert found["k2"].reason == "SLURM job 12_1: cancelled"


def test_only_the_newest_job_of_an_artifact_counts(folder, slurm):
    launch(folder, "a", "12", "13")
    launch(folder, "b", "22", "23")
    slurm["sacct"] = (
        "12_1|FAILED|1:0|1700000000\n22_1|COMPLETED|0:0|1700000000\n23|FAILED|1:0|1700000000\n13|FAILED|1:0|1700000000\n"
    )
    found = queue.failed_jobs(folder, ["k2", "k3"])
    assert {key: job.reason for key, job in found.items()} == {"k3": "SLURM job 23: exit code 1"}
    assert [words for words in slurm["commands"] if "12,13" in words] == []


def test_a_query_without_an_answer_is_a_note(folder, slurm):
    launch(folder, "a", "12")
    slurm["squeue"] = UserError("squeue", "Unable to contact slurm controller", "is it up?")
    assert (
        queue.query_cluster(folder, ["k0"])
        .notes[0]
        .startswith("the cluster cannot be queried (squeue: Unable")
    )
    slurm["squeue"], slurm["sacct"] = (
        "12_0|RUNNING|demo-0-rollout\n",
        UserError("sacct", "accounting is disabled"),
    )
    state = queue.query_cluster(folder, ["k0", "k2"])
    assert set(state.states) == {"k0", "k00", "k1"} and "accounting is disabled" in state.notes[0]


def test_slurm_is_not_queried_without_launches(folder, slurm):
    assert queue.query_cluster(folder, ["k0"]) == queue.ClusterState()
    assert slurm["commands"] == []


def test_output_that_is_not_slurms_is_a_user_error(folder, slurm):
    launch(folder, "a", "12", "13", "14")
    slurm["squeue"] = "\nWelcome to the cluster!\n"
    with pytest.raises(UserError, match="squeue: its output has the line 'Welcome to the cluster!'"):
        queue.in_flight(folder)
    slurm["squeue"], slurm["sacct"] = "", "12_0|FAILED|x:y|1\n13||0:0|\n12_1|odd\n"
    state = queue.query_cluster(folder, ["k0", "k3"])
    assert state.notes == (
        "the accounting cannot be queried (sacct: its output has the line '12_1|odd', with 2 of 4 columns;"
        " a wrapper of the site may print it; call SLURM's own program)",
    )
    slurm["sacct"] = "12_0|FAILED|x:y|1\n13||0:0|\n"
    assert {key: job.reason for key, job in queue.query_cluster(folder, ["k0", "k3"]).failed.items()} == {
        "k0": "SLURM job 12_0: failed",
        "k3": "SLURM job 13: unknown",
    }


def test_cancel_without_jobs_needs_no_slurm(monkeypatch, tmp_path, capsys):
    experiment = experiment_of("experiment=smoke", f"root={tmp_path}", config="cancel")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commands.cancel(experiment.planner.settings, experiment) == 0
    assert capsys.readouterr().err == f"smoke: no SLURM job was submitted from {tmp_path / 'smoke'}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("plan.json", "{}", "damaged: home: field required"),
        ("plan.json", "[]", "damaged: input should be a valid dictionary"),
        ("plan.json", '{"jobs": [', "not JSON"),
        ("plan.json", json.dumps({**PLAN, "created": "", "jobs": [{}]}), "damaged: jobs.0.kind: field required"),
        ("submitted.json", "[]", "damaged: input should be a valid dictionary"),
        ("submitted.json", '{"jobs": [{"id": 12}]}', "damaged: jobs.0.id: input should be a valid string"),
    ],
)  # fmt: skip
def test_a_damaged_launch_is_named_in_one_line(slurm, tmp_path, name, content, found):
    experiment = experiment_of("experiment=smoke", f"root={tmp_path}", config="status")
    own = launch(tmp_path / "smoke", "a", "12", "13", "14")
    slurm["squeue"] = "12_1|PENDING|smoke-0-rollout\n"
    (own / name).write_text(content)
    with pytest.raises(UserError) as caught:
        commands.status(experiment.planner.settings, experiment)
    assert str(caught.value).startswith(f"{own / name}: {found}")
    assert f"delete {own} to forget this launch" in str(caught.value)
