"""What is frozen at submission, what a job finds of it later, and what is tried again."""

import json
import os
import shutil

import pytest

from offscript.errors import UserError
from offscript.experiment.backends import local, plan
from offscript.experiment.folder import finish, now
from offscript.experiment.graph import Job, jobs_of, needed
from offscript.experiment.planner import in_order
from offscript.storage.files import HOME, write_text
from tests.composed import experiment_of, settings_of

SMALL = ("experiment=smoke", "format.count={classifier:6,eval:4}", "recipe.distillation.prompts=6")


def experiment(tmp_path, *overrides):
    return experiment_of(*SMALL, f"root={tmp_path}", *overrides)


def frozen(own):
    evaluation = own.planner.evaluation()
    todo, _ = needed([evaluation], own)
    return plan.freeze(own, in_order([evaluation]), jobs_of(todo, plan.shards(own.planner.settings.cluster)))


def make(own, *artifacts):
    """As if a job had made them."""
    for artifact in artifacts:
        place = own.path(artifact)
        write_text(place if place.suffix else place / "content", "")
        finish(artifact, own, now())


def fake_job(index, kind, layer, *needs):
    return Job(index, kind, layer, (), frozenset(needs))


def test_an_array_per_layer_and_kind_with_one_process_per_rollout_job():
    jobs = [fake_job(i, "rollout", 0) for i in range(5)]
    jobs += [fake_job(5 + i, "adapter", 1, i) for i in range(3)] + [fake_job(8, "rollout", 1, 4)]
    first, adapters, rollouts = plan.arrays_of(jobs, width=2)
    assert first.tasks == ((0, 1), (2, 3), (4,)) and first.after == ()
    assert adapters.tasks == ((5,), (6,), (7,)), "all processes of a task train one adapter"
    assert adapters.after == (0,)
    assert rollouts.tasks == ((8,),) and rollouts.after == (0,)


def test_no_array_is_longer_than_slurm_allows():
    jobs = [fake_job(i, "adapter", 0) for i in range(5)] + [fake_job(5, "evaluation", 1, 0, 4)]
    arrays = plan.arrays_of(jobs, most=2)
    assert [len(array.tasks) for array in arrays] == [2, 2, 1, 1]
    assert arrays[-1].after == (0, 2)


def test_one_shard_for_every_gpu_of_as_many_tasks_as_asked_for():
    cluster = settings_of(
        *SMALL, "cluster=slurm", "cluster.shards=3", "+cluster.jobs.rollout={gpus: 4}"
    ).cluster
    assert plan.shards(cluster) == 12
    arrays = plan.arrays_of([fake_job(i, "rollout", 0) for i in range(12)], width=4)
    assert [len(task) for task in arrays[0].tasks] == [4, 4, 4]


def test_a_process_sees_its_own_gpu_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    plan._take_own_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_job_finds_what_was_planned(tmp_path):
    own = experiment(tmp_path)
    before = frozen(own)
    after = plan.thaw(before.path)
    assert after.arrays == before.arrays
    assert after.artifacts == before.artifacts
    made = [a for job in range(len(after.plain["jobs"])) for a in after.made_by(job)]
    assert set(made) == set(after.artifacts.values()) and len(made) == len(set(made))
    assert after.plain["code"] == before.plain["code"] is not None


def test_a_job_refuses_what_has_changed_since(tmp_path):
    prompts = tmp_path / "chat.jsonl"
    shutil.copy(HOME / "data/pocket/chat.jsonl", prompts)
    own = experiment(tmp_path / "runs", f"data.sources.chat=[{prompts}]")
    before = frozen(own)
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for row in rows:
        row["prompt"] = f"{row['prompt']} Please."
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"are not what was planned; .* submit again"):
        plan.run_task(before.path, 0, 0)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot make this folder .*; choose another root="):
        frozen(experiment("/proc/nowhere"))


def test_a_failed_artifact_has_its_budget_and_what_waits_for_it_costs_nothing(tmp_path):
    own = experiment(tmp_path, "cluster=local", "cluster.retries=2")
    current = frozen(own)
    broken = own.planner.adapter("pocket", "sarcasm", "distillation", 0)
    first = [a for a in in_order([own.planner.evaluation()]) if a.kind == "rollout" and not a.inputs]
    make(own, *first, own.planner.adapter("pocket", "remorse", "distillation", 0))
    missing, _ = needed([own.planner.evaluation()], own)
    full = own.planner.adapter("pocket", "sarcasm", "full", 0)
    for attempt in (1, 2):
        jobs, attempts = plan.again(current, missing)
        tried = {a for job in jobs for a in job.artifacts}
        assert broken in tried and full in tried
        assert attempts[broken.key] == attempt and full.key not in attempts
        current = plan.freeze(own, list(current.artifacts.values()), jobs, attempts, current)
    jobs, _ = plan.again(current, missing)
    tried = {a for job in jobs for a in job.artifacts}
    assert broken not in tried and full not in tried
    other = own.planner.adapter("pocket", "remorse", "full", 0)
    assert other not in tried, "the rows that it is made from had their budget too"


def test_what_is_under_way_elsewhere_is_waited_for_and_not_tried(tmp_path):
    own = experiment(tmp_path, "cluster=local", "cluster.retries=0")
    current = frozen(own)
    missing, _ = needed([own.planner.evaluation()], own)
    flying = {a.key for a in missing if a.kind == "rollout" and not a.inputs}
    jobs, attempts = plan.again(current, missing, flying)
    tried = {a.key for job in jobs for a in job.artifacts}
    assert not tried & flying and not attempts
    assert own.planner.evaluation().key in tried
    assert plan.again(current, missing) == ([], {}), "without, there is no budget to try anything"


# ---------------------------------------------------------------- processes


def impostor(tmp_path, body):
    """A copy of the code whose jobs do ``body``."""
    home = tmp_path / "copy"
    for name in ("offscript", "offscript/cluster"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").touch()
    (home / "offscript" / "cluster" / "plan.py").write_text(body)
    return home


def test_the_copy_of_the_code_is_what_runs(tmp_path, monkeypatch):
    """Whatever lies in the folder that the command was given in."""
    monkeypatch.chdir(HOME)
    own = experiment(tmp_path / "runs", "cluster=local", "cluster.snapshot=true")
    before = frozen(own)
    home = before.path.parent / "code"
    assert before.plain["home"] == before.plain["cwd"] == str(home)
    assert (home / "data" / "pocket" / "chat.jsonl").exists()
    script = home / "offscript" / "cluster" / "plan.py"
    done = tmp_path / "done"
    script.write_text(f"import sys\nfrom pathlib import Path\nPath({str(done)!r}).touch()\nsys.exit(7)\n")
    local.run(before, 2)
    assert done.exists()
    first = before.made_by(0)[0]
    assert json.loads(own.failure(first).read_text())["reason"] == "exit code 7"


def test_a_killed_process_is_noted_with_its_log(tmp_path):
    own = experiment(tmp_path / "runs", "cluster=local")
    body = "import os, sys\nprint('here I end', flush=True)\nos.kill(os.getpid(), 9)\n"
    before = frozen(own)
    plain = {**before.plain, "home": str(impostor(tmp_path, body))}
    local.run(plan.Plan(before.path, plain, own, before.artifacts), 2)
    first, last = before.made_by(0)[0], own.planner.evaluation()
    note = json.loads(own.failure(first).read_text())
    assert note["reason"] == "killed by SIGKILL"
    assert (own.folder / note["log"]).read_text() == "here I end\n"
    assert not own.failure(last).exists(), "what was never tried has not failed"
