"""Plans: writing and reading them, retries, and running their jobs in local processes."""

import json
import os
import shutil

import pytest

from offscript.errors import UserError
from offscript.experiment.artifacts import Rollout, in_order
from offscript.experiment.backends import local, plan
from offscript.experiment.folder import now, write_artifact_manifest
from offscript.experiment.graph import Job, jobs_of, needed
from offscript.storage.files import HOME, write_text
from tests.composed import experiment_of, settings_of

SMALL = ("experiment=smoke", "format.count={classifier:6,eval:4}", "recipe.distillation.prompts=6")


def experiment(tmp_path, *overrides):
    return experiment_of(*SMALL, f"root={tmp_path}", *overrides)


def written_plan(own):
    evaluation = own.planner.evaluation()
    todo, _ = needed([evaluation], own)
    jobs = jobs_of(todo, plan.shard_count(own.planner.settings))
    return plan.write_plan(own, in_order([evaluation]), jobs)


def make(own, *artifacts):
    """Writes empty artifacts with manifests."""
    for artifact in artifacts:
        place = own.path(artifact)
        write_text(place if place.suffix else place / "content", "")
        write_artifact_manifest(artifact, own, now(), files={})


def fake_job(index, kind, layer, *needs):
    return Job(index, kind, layer, (), frozenset(needs))


def test_an_array_per_layer_and_kind_with_one_process_per_rollout_job():
    jobs = [fake_job(i, "rollout", 0) for i in range(5)]
    jobs += [fake_job(5 + i, "adapter", 1, i) for i in range(3)] + [fake_job(8, "rollout", 1, 4)]
    first, adapters, rollouts = plan.arrays_of(jobs, processes=2)
    assert first.tasks == ((0, 1), (2, 3), (4,)) and first.after == ()
    assert adapters.tasks == ((5,), (6,), (7,)), "all processes of a task train one adapter"
    assert adapters.after == (0,)
    assert rollouts.tasks == ((8,),) and rollouts.after == (0,)


def test_arrays_have_at_most_the_number_of_tasks_that_slurm_allows():
    jobs = [fake_job(i, "adapter", 0) for i in range(5)] + [fake_job(5, "evaluation", 1, 0, 4)]
    arrays = plan.arrays_of(jobs, max_tasks=2)
    assert [len(array.tasks) for array in arrays] == [2, 2, 1, 1]
    assert arrays[-1].after == (0, 2)


def test_there_is_one_shard_for_each_gpu_of_each_task():
    settings = settings_of(*SMALL, "cluster=slurm", "cluster.shards=3", "+cluster.jobs.rollout={gpus: 4}")
    assert plan.shard_count(settings) == 12
    arrays = plan.arrays_of([fake_job(i, "rollout", 0) for i in range(12)], processes=4)
    assert [len(task) for task in arrays[0].tasks] == [4, 4, 4]


def test_a_process_sees_only_its_own_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    plan._select_gpus(1, each=1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_process_of_vllm_has_as_many_gpus_as_it_divides_the_weights_among(tmp_path, monkeypatch):
    large = (
        "cluster=slurm",
        "cluster.shards=1",
        "+cluster.jobs.rollout={gpus: 4}",
        "+cluster.jobs.adapter={gpus: 4}",
    )
    settings = settings_of(*SMALL, *large, "engine=vllm", "engine.tensor_parallel=2")
    assert plan.shard_count(settings) == plan.processes_per_node(settings, "rollout") == 2
    assert plan.processes_per_node(settings, "adapter") == 4, "training is not vLLM's"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6,7")
    plan._select_gpus(1, plan.gpus_per_process(settings.engine, "rollout"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"
    odd = settings_of(*SMALL, *large, "engine=vllm", "engine.tensor_parallel=3")
    with pytest.raises(
        UserError, match=r"^cluster.jobs.rollout.gpus: 4, and each process of vLLM takes 3 .*of 3$"
    ):
        plan.shard_count(odd)
    own = experiment(tmp_path, "cluster=local", "engine=vllm", "engine.tensor_parallel=2")
    with pytest.raises(
        UserError, match=r"^engine.tensor_parallel: 2, but with cluster=local each process has one"
    ):
        local.run_plan(written_plan(own), 1)


def test_a_plan_that_is_read_back_has_the_same_arrays_and_artifacts(tmp_path):
    own = experiment(tmp_path)
    before = written_plan(own)
    after = plan.read_plan(before.path)
    assert after.arrays == before.arrays
    assert after.artifacts == before.artifacts
    made = [a for job in range(len(after.content["jobs"])) for a in after.artifacts_of(job)]
    assert set(made) == set(after.artifacts.values()) and len(made) == len(set(made))
    assert after.content["code"] == before.content["code"] is not None


def test_a_job_refuses_to_run_after_its_scenarios_changed(tmp_path):
    prompts = tmp_path / "chat.jsonl"
    shutil.copy(HOME / "data/pocket/chat.jsonl", prompts)
    own = experiment(tmp_path / "runs", f"data.sources.chat=[{prompts}]")
    before = written_plan(own)
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for row in rows:
        row["prompt"] = f"{row['prompt']} Please."
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"are not what was planned; .* submit again"):
        plan.run_task(before.path, 0, 0)


def test_an_unwritable_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot make this folder .*; choose another root="):
        written_plan(experiment("/proc/nowhere"))


def test_a_failed_artifact_is_retried_within_its_budget_and_artifacts_that_wait_for_it_use_none(tmp_path):
    own = experiment(tmp_path, "cluster=local", "cluster.retries=2")
    current = written_plan(own)
    broken = own.planner.adapter("pocket", "sarcasm", "distillation", 0)
    first = [a for a in in_order([own.planner.evaluation()]) if isinstance(a, Rollout) and not a.inputs]
    make(own, *first, own.planner.adapter("pocket", "remorse", "distillation", 0))
    missing, _ = needed([own.planner.evaluation()], own)
    full = own.planner.adapter("pocket", "sarcasm", "full", 0)
    for attempt in (1, 2):
        jobs, attempts = plan.retry_jobs(current, missing)
        tried = {a for job in jobs for a in job.artifacts}
        assert broken in tried and full in tried
        assert attempts[broken.key] == attempt and full.key not in attempts
        current = plan.write_plan(own, list(current.artifacts.values()), jobs, attempts, current)
    jobs, _ = plan.retry_jobs(current, missing)
    tried = {a for job in jobs for a in job.artifacts}
    assert broken not in tried and full not in tried
    other = own.planner.adapter("pocket", "remorse", "full", 0)
    assert other not in tried, "its rows have used up their budget too"


def test_trainings_share_a_job_until_they_are_retried(tmp_path):
    own = experiment(tmp_path, "cluster=local")
    todo, _ = needed([own.planner.evaluation()], own)

    def trainings(jobs):
        return [[(a.persona, a.stage) for a in job.artifacts] for job in jobs if job.kind == "adapter"]

    personas = ("sarcasm", "remorse")
    apart = [[(p, stage)] for stage in ("distillation", "full") for p in personas]
    assert sorted(trainings(jobs_of(todo))) == sorted(apart)
    jobs = jobs_of(todo, trainings=2)
    assert [sorted(names) for names in trainings(jobs)] == [
        sorted((p, stage) for p in personas) for stage in ("distillation", "full")
    ]
    first = next(job for job in jobs if job.kind == "adapter")
    needs = {part.key for number in first.needs for part in jobs[number].artifacts}
    assert {part.key for a in first.artifacts for part in a.inputs} <= needs
    current = plan.write_plan(own, in_order([own.planner.evaluation()]), jobs)
    make(own, *[a for a in todo if isinstance(a, Rollout) and not a.inputs])
    retried, _ = plan.retry_jobs(current, needed([own.planner.evaluation()], own)[0])
    assert sorted(trainings(retried)) == sorted(apart)


def test_artifacts_in_flight_are_waited_for_and_not_retried(tmp_path):
    own = experiment(tmp_path, "cluster=local", "cluster.retries=0")
    current = written_plan(own)
    missing, _ = needed([own.planner.evaluation()], own)
    in_flight = {a.key for a in missing if isinstance(a, Rollout) and not a.inputs}
    jobs, attempts = plan.retry_jobs(current, missing, in_flight)
    tried = {a.key for job in jobs for a in job.artifacts}
    assert not tried & in_flight and not attempts
    assert own.planner.evaluation().key in tried
    assert plan.retry_jobs(current, missing) == ([], {}), "there is no budget for a retry"


# ---------------------------------------------------------------- processes


PLAN_MODULE = "offscript/experiment/backends/plan.py"


def fake_code(tmp_path, body):
    """A copy of the package in which running a job executes ``body``."""
    home = tmp_path / "copy"
    script = home / PLAN_MODULE
    script.parent.mkdir(parents=True)
    for folder in script.relative_to(home).parents[:3]:
        (home / folder / "__init__.py").touch()
    script.write_text(body)
    return home


def test_jobs_run_the_snapshot_and_not_the_code_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(HOME)
    own = experiment(tmp_path / "runs", "cluster=local", "cluster.snapshot=true")
    before = written_plan(own)
    home = before.path.parent / "code"
    assert before.content["home"] == before.content["cwd"] == str(home)
    assert (home / "data" / "pocket" / "chat.jsonl").exists()
    script = home / PLAN_MODULE
    done = tmp_path / "done"
    script.write_text(f"import sys\nfrom pathlib import Path\nPath({str(done)!r}).touch()\nsys.exit(7)\n")
    local.run_plan(before, 2)
    assert done.exists()
    first = before.artifacts_of(0)[0]
    assert json.loads(own.failure_record(first).read_text())["reason"] == "exit code 7"


def test_a_killed_process_is_recorded_as_a_failure_with_its_log(tmp_path):
    own = experiment(tmp_path / "runs", "cluster=local")
    body = "import os, sys\nprint('last line', flush=True)\nos.kill(os.getpid(), 9)\n"
    before = written_plan(own)
    content = {**before.content, "home": str(fake_code(tmp_path, body))}
    local.run_plan(plan.Plan(before.path, content, own, before.artifacts), 2)
    first, last = before.artifacts_of(0)[0], own.planner.evaluation()
    record = json.loads(own.failure_record(first).read_text())
    assert record["reason"] == "killed by SIGKILL"
    assert (own.folder / record["log"]).read_text() == "last line\n"
    assert not own.failure_record(last).exists(), "an artifact that was not tried has not failed"
