"""Harm done to a grid while it runs: it ends complete by itself, every row once, with the numbers of a quiet run."""

from pathlib import Path

import pytest

from tests.slurm import grid
from tests.slurm.client import Slurm
from tests.slurm.test_grid import submit, supervisors_end

pytestmark = pytest.mark.slurm

PYTHON = r"^\S*python\S* -u -m submitit"
"""The process of a job that does the work, and not the srun that started it."""

SLOW_ROWS = ("engine.batch_size=1", "engine.max_live=1")
"""One episode at a time: no other texts, but time to do harm."""


def running(slurm: Slurm, job: str, timeout: float = 180) -> None:
    slurm.wait_until(
        lambda: "RUNNING" in slurm.states(job).values(),
        f"job {job} to run",
        timeout,
        lambda: slurm.states(job),
    )


def path_of(slurm: Slurm, root: Path, pattern: str, timeout: float = 180) -> Path:
    """The first path below the experiment that matches, as soon as there is one."""
    found: list[Path] = []
    slurm.wait_until(lambda: bool(found.extend((root / "smoke").glob(pattern)) or found), pattern, timeout)
    return found[0]


@pytest.mark.slow
def test_a_killed_training_is_tried_again_by_itself(quiet_cluster: Slurm, tmp_path):
    options = (*grid.SHORT, "cluster=slurm")
    submit(tmp_path, *options)
    adapter = f"{grid.jobs(tmp_path)['1-adapter']}_1"  # of two: the other one is left in peace
    running(quiet_cluster, adapter)
    quiet_cluster.kill(adapter, PYTHON)
    quiet_cluster.wait_for_state(adapter, "FAILED")
    supervisors_end(quiet_cluster, tmp_path)
    assert len(list((tmp_path / "smoke" / "launch").glob("*/plan.json"))) == 2
    assert grid.cells(tmp_path) == grid.inline(grid.SHORT)
    assert grid.rows_twice(tmp_path) == []
    assert grid.status(tmp_path, *options)["code"] == 0


@pytest.mark.slow
def test_a_grid_outlives_everything_that_a_cluster_does(quiet_cluster: Slurm, tmp_path):
    """Rows: a requeue and a lost node. Training: a kill -9 and the warning before a time limit. Rows again: an urgent job
    that needs all nodes, and a kill -9."""
    options = (*grid.FULL, *SLOW_ROWS, "cluster=slurm")
    submit(tmp_path, *options)
    slurm, first = quiet_cluster, grid.jobs(tmp_path)

    running(slurm, f"{first['0-rollout']}_1")
    path_of(slurm, tmp_path, "rollouts/pocket/*/*/*.jsonl")
    slurm.requeue(f"{first['0-rollout']}_1")
    node = slurm.node_of(f"{first['0-rollout']}_0")
    slurm.lose(node)

    running(slurm, first["1-adapter"])
    path_of(slurm, tmp_path, "adapters/pocket/sarcasm/.*/checkpoint-*/trainer_state.json")
    slurm.cluster.ask("scancel", "--signal=USR2", f"{first['1-adapter']}_0")
    slurm.kill(f"{first['1-adapter']}_1", PYTHON)
    slurm.resume(node)

    running(slurm, f"{first['2-rollout']}_0", 240)
    path_of(slurm, tmp_path, "rollouts/pocket/distillation/*/chat-eval-*.jsonl")
    urgent = slurm.submit_script("sleep 2", partition="urgent", nodes=4, exclusive=True)
    slurm.wait_for_state(urgent, "COMPLETED", 120)
    running(slurm, f"{first['2-rollout']}_0")
    slurm.kill(f"{first['2-rollout']}_0", PYTHON)

    supervisors_end(slurm, tmp_path, timeout=600)
    assert grid.cells(tmp_path) == grid.inline(grid.FULL)
    assert grid.rows_twice(tmp_path) == []
    assert grid.status(tmp_path, *options)["code"] == 0
    launch = min((tmp_path / "smoke" / "launch").glob("*/plan.json")).parent
    for task in (0, 1):
        log = launch / "slurm" / "0-rollout" / f"{first['0-rollout']}_{task}_0_log.out"
        assert log.read_text().count("Starting with") == 2, f"task {task} was not queued again"
    log = launch / "slurm" / "1-adapter" / f"{first['1-adapter']}_0_0_log.out"
    assert "stopped by a signal after step" in log.read_text()


@pytest.mark.slow
def test_what_cannot_be_made_is_named_and_costs_the_others_nothing(quiet_cluster: Slurm, tmp_path):
    """Adapters that were made elsewhere: one loads, one does not."""
    root, sources = tmp_path / "runs", tmp_path / "adapters"
    donor = grid.inline_root(grid.SHORT) / "smoke" / "adapters" / "pocket"
    for persona in ("sarcasm", "remorse"):
        (adapter,) = (donor / persona).glob("distillation-*")
        grid.copy_adapter(adapter, sources / persona)
    broken = sources / "remorse" / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    options = (
        *grid.SMALL,
        "grid.stage=[base,distillation]",
        "grid.format=[chat]",
        "classifier.stages=[prompted]",
        "cluster=slurm",
        "cluster.retries=1",
        f"model.adapters.distillation={{path: {sources}, subfolder: '{{persona}}'}}",
    )
    submit(root, *options)
    supervisors_end(quiet_cluster, root, "FAILED")
    seen = grid.status(root, *options)
    assert seen["code"] == 1
    failed = {entry["name"]: entry for entry in seen["entries"] if entry["state"] == "failed"}
    assert list(failed) == ["adapter pocket remorse distillation 0"], failed
    assert failed["adapter pocket remorse distillation 0"]["reason"]
    done = {entry["name"] for entry in seen["entries"] if entry["state"] == "done"}
    assert "rollout pocket sarcasm distillation chat eval 0" in done
    tables = " ".join((root / "smoke" / "evaluation" / "tables.txt").read_text().split())
    assert "incomplete:" in tables and "remorse distillation chat" in tables
    assert len(list((root / "smoke" / "launch").glob("*/plan.json"))) == 2


@pytest.mark.slow
def test_a_job_that_runs_out_of_memory_says_so(quiet_cluster: Slurm, tmp_path):
    options = (*grid.SHORT, "cluster=slurm", "cluster.retries=0", "+cluster.jobs.rollout={memory_gb: 0.05}")
    submit(tmp_path, *options)
    supervisors_end(quiet_cluster, tmp_path, "FAILED")
    seen = grid.status(tmp_path, *options)
    failed = [entry for entry in seen["entries"] if entry["state"] == "failed"]
    assert failed and all("memory limit" in entry["reason"] for entry in failed), failed
    assert all(Path(entry["log"]).exists() for entry in failed)
