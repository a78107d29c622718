"""``cluster.stages_together``: jobs that train all stages of a persona and make the rollouts between them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from offscript.errors import UserError
from offscript.experiment import runner
from offscript.experiment.artifacts import in_order
from offscript.experiment.backends import plan
from offscript.experiment.graph import jobs_of, needed
from offscript.models import loading
from offscript.rollouts.engines import transformers  # noqa: F401
from offscript.storage.files import HOME
from offscript.storage.manifests import manifest_path
from tests.composed import experiment_of
from tests.slurm.grid import SMALL
from tests.training import crew

TOGETHER = "cluster.stages_together=true"
PERSONAS = ("sarcasm", "remorse")


def experiment(tmp_path, *overrides):
    return experiment_of(*SMALL, "cluster=local", f"root={tmp_path}", *overrides)


def todo_of(own):
    return needed([own.planner.evaluation()], own)[0]


def full_adapters(own, *personas):
    return [own.planner.adapter("pocket", persona, "full", 0) for persona in personas or PERSONAS]


def names(job):
    return [str(artifact) for artifact in job.artifacts]


def planned(own, wanted):
    """A plan whose jobs make ``wanted``."""
    todo, _ = needed(wanted, own)
    everything = in_order([own.planner.evaluation()])
    return plan.write_plan(own, everything, plan.planned_jobs(todo, own.planner.settings))


# ---------------------------------------------------------------- which jobs there are


@pytest.mark.parametrize("trainings", [1, 2])
def test_a_training_job_has_all_stages_of_its_personas_and_the_rollouts_between_them(tmp_path, trainings):
    own = experiment(tmp_path, TOGETHER, f"cluster.trainings={trainings}")
    jobs = plan.planned_jobs(todo_of(own), own.planner.settings)
    found = [sorted(names(job)) for job in jobs if job.kind == "adapter"]
    parts = [
        [
            f"adapter pocket {persona} distillation 0",
            f"adapter pocket {persona} full 0",
            f"rollout pocket {persona} introspection self_interaction train 0",
            f"rollout pocket {persona} introspection self_reflection train 0",
        ]
        for persona in PERSONAS
    ]
    expected = parts if trainings == 1 else [parts[0] + parts[1]]
    assert sorted(found) == sorted(sorted(part) for part in expected)


def test_every_artifact_is_made_once_after_its_inputs(tmp_path):
    todo = todo_of(experiment(tmp_path))
    jobs = jobs_of(todo, shards=2, stages_together=True)
    assert sorted(a.key for job in jobs for a in job.artifacts) == sorted(a.key for a in todo)
    maker = {a.key: job for job in jobs for a in job.artifacts}
    for job in jobs:
        before: set[str] = set()
        for artifact in job.artifacts:
            for part in artifact.inputs:
                other = maker[part.key]
                assert part.key in before if other is job else other.index in job.needs
            before.add(artifact.key)
        assert all(jobs[number].layer < job.layer for number in job.needs)


def test_a_stage_whose_parent_is_finished_has_a_job_of_its_own(tmp_path):
    todo = [a for a in todo_of(experiment(tmp_path)) if a.labels.get("stage") != "distillation"]
    jobs = jobs_of(todo, stages_together=True)
    assert sorted(names(job) for job in jobs if job.kind == "adapter") == [
        [f"adapter pocket {persona} full 0"] for persona in sorted(PERSONAS)
    ]


def test_stages_that_need_rows_of_each_others_adapters_stay_apart(tmp_path):
    sarcasm, remorse = full_adapters(experiment(tmp_path))
    crossed = [
        replace(one, inputs=(*one.inputs, *(a for a in other.inputs if a.kind == "rollout")))
        for one, other in ((sarcasm, remorse), (remorse, sarcasm))
    ]
    jobs = jobs_of(in_order(crossed), stages_together=True)
    assert all(len({artifact.kind for artifact in job.artifacts}) == 1 for job in jobs)
    assert [names(job) for job in jobs[-2:]] == [[str(sarcasm)], [str(remorse)]]


def test_the_name_of_a_job_counts_its_artifacts_by_kind(tmp_path):
    job = next(job for job in jobs_of(todo_of(experiment(tmp_path)), stages_together=True) if len(job.needs))
    assert str(job) == "adapter pocket x2, rollout x2"


def test_a_dry_run_counts_the_same_work(tmp_path):
    """The totals of the table do not depend on which jobs do the work."""
    from offscript.commands import submit

    def totals(capsys_text):
        line = next(line for line in capsys_text.splitlines() if line.startswith("total"))
        return line.split("  ", 1)[1].split()

    apart, together = (experiment(tmp_path, "dry_run=true", *extra) for extra in ((), (TOGETHER,)))
    printed = []
    for own in (apart, together):
        with pytest.MonkeyPatch.context() as patch:
            lines = []
            patch.setattr("offscript.commands.show", lambda text, end="\n", lines=lines: lines.append(text))
            assert submit(own.planner.settings, own) == 0
        printed.append("\n".join(lines))
    assert "adapter pocket: 2 trainings, rollout pocket: 2 cells, 1 adapter" in printed[1]
    assert totals(printed[0]) == totals(printed[1])


def test_retried_stages_have_jobs_of_their_own(tmp_path):
    own = experiment(tmp_path, TOGETHER)
    current = planned(own, [own.planner.evaluation()])
    jobs, _ = plan.retry_jobs(current, todo_of(own))
    assert all(len({artifact.kind for artifact in job.artifacts}) == 1 for job in jobs)


def test_rollouts_that_need_more_gpus_than_a_training_job_has_are_refused(tmp_path):
    large = ("cluster=slurm", "+cluster.jobs.rollout={gpus: 2}", "+cluster.jobs.adapter={gpus: 1}", TOGETHER)
    settings = experiment(tmp_path, *large, "engine=vllm", "engine.tensor_parallel=2").planner.settings
    with pytest.raises(
        UserError,
        match=r"^cluster.jobs.adapter.gpus: 1, and vLLM takes 2 .*at least 2, or cluster.stages_together=false$",
    ):
        plan.planned_jobs([], settings)


# ---------------------------------------------------------------- running them


def job_command(current, array):
    """The command of the first job of an array."""
    return [sys.executable, "-m", "offscript.experiment.backends.plan", str(current.path), str(array), "0"]


def test_a_stage_that_fails_costs_the_other_personas_nothing(tmp_path, monkeypatch):
    own = experiment(tmp_path, TOGETHER, "cluster.trainings=2")
    full = full_adapters(own)
    made = []

    def fake(artifacts, own, limit):
        from offscript.experiment.folder import now, write_artifact_manifest
        from offscript.storage.files import write_text

        for artifact in artifacts:
            if str(artifact) == "adapter pocket sarcasm distillation 0":
                raise RuntimeError("boom")
            place = own.path(artifact)
            write_text(place if place.suffix else place / "content", "")
            write_artifact_manifest(artifact, own, now(), files={})
            made.append(str(artifact))

    monkeypatch.setattr(runner, "RUN", dict.fromkeys(runner.RUN, fake))
    chain = next(job for job in plan.planned_jobs(needed(full, own)[0], own.planner.settings) if job.needs)
    runner.make([a for a in in_order(full) if a.kind == "rollout" and not a.inputs], own)
    status = {str(r.artifact): r.status for r in runner.run_in_order(chain.artifacts, own)}
    assert {name for name, state in status.items() if state == "ran"} == {
        name for name in names(chain) if "remorse" in name
    }
    assert status["adapter pocket sarcasm distillation 0"] == "failed"
    assert status["adapter pocket sarcasm full 0"] == "blocked"


@pytest.mark.slow
def test_a_job_killed_between_two_stages_continues_and_makes_what_separate_jobs_make(tmp_path):
    apart, own = experiment(tmp_path / "apart"), experiment(tmp_path / "together", TOGETHER)
    (full,) = full_adapters(own, "sarcasm")
    runner.make([full], apart)
    current = planned(own, [full])
    (number,) = [i for i, array in enumerate(current.arrays) if array.kind == "adapter"]
    chain = current.artifacts_of(current.arrays[number].tasks[0][0])
    between = [artifact for artifact in chain if artifact.kind == "rollout"]
    for artifact in in_order([full]):
        if artifact not in chain:
            own.path(artifact).parent.mkdir(parents=True, exist_ok=True)
            for made in (apart.path(artifact), manifest_path(apart.path(artifact))):
                shutil.copy(made, own.path(artifact).parent)
    command = job_command(current, number)
    with open(tmp_path / "log", "w") as log:
        killed = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while killed.poll() is None and not any(
            own.path(a).exists() and b"\n" in own.path(a).read_bytes() for a in between
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    first = next(a for a in chain if a.labels["stage"] == "distillation" and a.kind == "adapter")
    assert own.is_finished(first) and not own.is_finished(full)
    trained = (own.path(first) / "manifest.json").stat().st_mtime_ns

    subprocess.run(command, check=True, env=os.environ)
    assert (own.path(first) / "manifest.json").stat().st_mtime_ns == trained, "it was trained again"
    for artifact in chain:
        assert own.is_finished(artifact) and apart.is_finished(artifact)
        if artifact.kind == "rollout":
            assert own.rows(artifact) == apart.rows(artifact)
        else:
            weights = "adapter_model.safetensors"
            assert (own.path(artifact) / weights).read_bytes() == (
                apart.path(artifact) / weights
            ).read_bytes()


@pytest.mark.slow
def test_the_trainings_of_a_job_with_all_stages_load_their_base_once(tmp_path, monkeypatch):
    monkeypatch.chdir(HOME)
    own = experiment(tmp_path, TOGETHER)
    current = planned(own, full_adapters(own, "sarcasm"))
    loads, real = [], loading.load_model
    # The engine has imported its own name of it.
    monkeypatch.setattr(loading, "load_model", lambda *given: loads.append(given) or real(*given))
    for number, array in enumerate(current.arrays):
        for task in range(len(array.tasks)):
            plan.run_task(current.path, number, task)
    assert all(own.is_finished(adapter) for adapter in full_adapters(own, "sarcasm"))
    assert len(loads) == 1


@pytest.mark.slow
def test_on_several_ranks_the_first_makes_the_rollouts_and_all_train(tmp_path):
    own = experiment(tmp_path, TOGETHER)
    (full,) = full_adapters(own, "sarcasm")
    current = planned(own, [full])
    (number,) = [i for i, array in enumerate(current.arrays) if array.kind == "adapter"]
    chain = current.artifacts_of(current.arrays[number].tasks[0][0])
    runner.make([a for a in in_order([full]) if a not in chain], own)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": crew.free_port()}
    started = [
        subprocess.Popen(
            job_command(current, number),
            env=crew.environment(**group, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (code, first), (other_code, second) = crew.finish(started)
    assert (code, other_code) == (0, 0), first + second
    assert all(own.is_finished(artifact) for artifact in chain)
    marks = ("sarcasm distillation", "rows: ", "sarcasm full")
    places = [first.index(mark) for mark in marks]
    assert places == sorted(places), "the rollouts are between the trainings"
    assert "rows: " not in second
