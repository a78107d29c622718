"""Failures injected into a running grid: it completes without a new command, with the rows of an undisturbed run."""

from pathlib import Path

import pytest

from tests.slurm import grid
from tests.slurm.client import Slurm
from tests.slurm.test_grid import submit, supervisors_end

pytestmark = pytest.mark.slurm

PYTHON = r"^\S*python\S* -u -m submitit"
"""The Python process of a job, as opposed to the srun that started it."""

SLOW_ROWS = ("engine.batch_size=1", "engine.max_live=1")
"""One episode at a time: the same texts, but time to inject failures."""


def running(slurm: Slurm, job: str, timeout: float = 180) -> None:
    slurm.wait_until(
        lambda: "RUNNING" in slurm.states(job).values(),
        f"job {job} to run",
        timeout,
        lambda: slurm.states(job),
    )


def path_of(slurm: Slurm, root: Path, pattern: str, timeout: float = 180) -> Path:
    """Waits for a path below the experiment that matches, and returns the first."""
    found: list[Path] = []
    slurm.wait_until(lambda: bool(found.extend((root / "smoke").glob(pattern)) or found), pattern, timeout)
    return found[0]


@pytest.mark.slow
def test_a_killed_training_is_retried_by_the_supervisor(idle_cluster: Slurm, tmp_path):
    options = (*grid.SHORT, "cluster=slurm")
    submit(tmp_path, *options)
    # One of two tasks; the other one is not killed.
    adapter = f"{grid.jobs(tmp_path)['1-adapter']}_1"
    running(idle_cluster, adapter)
    idle_cluster.kill(adapter, PYTHON)
    idle_cluster.wait_for_state(adapter, "FAILED")
    grid.expire_locks(tmp_path)
    supervisors_end(idle_cluster, tmp_path)
    assert len(list((tmp_path / "smoke" / "launch").glob("*/plan.json"))) == 2
    assert grid.cells(tmp_path) == grid.inline(grid.SHORT)
    assert grid.duplicate_rows(tmp_path) == []
    assert grid.status(tmp_path, *options)["code"] == 0


@pytest.mark.slow
def test_a_grid_survives_requeues_lost_nodes_kills_signals_and_preemption(idle_cluster: Slurm, tmp_path):
    """Rows: a requeue and a lost node. Training: a SIGKILL and the signal before a time limit. Rows again: an urgent job
    that needs all nodes, and a SIGKILL."""
    options = (*grid.FULL, *SLOW_ROWS, "cluster=slurm")
    submit(tmp_path, *options)
    slurm, first = idle_cluster, grid.jobs(tmp_path)

    running(slurm, f"{first['0-rollout']}_1")
    path_of(slurm, tmp_path, "rollouts/pocket/*/*/*.jsonl")
    slurm.requeue(f"{first['0-rollout']}_1")
    node = slurm.node_of(f"{first['0-rollout']}_0")
    slurm.lose(node)
    grid.expire_locks(tmp_path)

    running(slurm, first["1-adapter"])
    path_of(slurm, tmp_path, "adapters/pocket/sarcasm/.*/checkpoint-*/trainer_state.json")
    slurm.cluster.run_command("scancel", "--signal=USR2", f"{first['1-adapter']}_0")
    slurm.kill(f"{first['1-adapter']}_1", PYTHON)
    slurm.resume(node)
    grid.expire_locks(tmp_path)

    running(slurm, f"{first['2-rollout']}_0", 240)
    path_of(slurm, tmp_path, "rollouts/pocket/distillation/*/chat-eval-*.jsonl")
    urgent = slurm.submit_script("sleep 2", partition="urgent", nodes=4, exclusive=True)
    slurm.wait_for_state(urgent, "COMPLETED", 120)
    running(slurm, f"{first['2-rollout']}_0")
    slurm.kill(f"{first['2-rollout']}_0", PYTHON)
    slurm.wait_for_state(f"{first['2-rollout']}_0", "FAILED")
    grid.expire_locks(tmp_path)

    supervisors_end(slurm, tmp_path, timeout=600)
    assert grid.cells(tmp_path) == grid.inline(grid.FULL)
    assert grid.duplicate_rows(tmp_path) == []
    assert grid.status(tmp_path, *options)["code"] == 0
    launch = min((tmp_path / "smoke" / "launch").glob("*/plan.json")).parent
    for task in (0, 1):
        log = launch / "slurm" / "0-rollout" / f"{first['0-rollout']}_{task}_0_log.out"
        assert log.read_text().count("Starting with") == 2, f"task {task} was not requeued"
    log = launch / "slurm" / "1-adapter" / f"{first['1-adapter']}_0_0_log.out"
    assert "stopped by a signal after step" in log.read_text()


@pytest.mark.slow
def test_an_artifact_that_cannot_be_made_is_reported_and_the_others_are_made(idle_cluster: Slurm, tmp_path):
    """Imported adapters, of which one is damaged."""
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
    supervisors_end(idle_cluster, root, "FAILED")
    found = grid.status(root, *options)
    assert found["code"] == 1
    failed = {entry["name"]: entry for entry in found["entries"] if entry["state"] == "failed"}
    assert list(failed) == ["adapter pocket remorse distillation 0"], failed
    assert failed["adapter pocket remorse distillation 0"]["reason"]
    done = {entry["name"] for entry in found["entries"] if entry["state"] == "done"}
    assert "rollout pocket sarcasm distillation chat eval 0" in done
    tables = " ".join((root / "smoke" / "evaluation" / "tables.txt").read_text().split())
    assert "incomplete:" in tables and "remorse distillation chat" in tables
    assert len(list((root / "smoke" / "launch").glob("*/plan.json"))) == 2


@pytest.mark.slow
def test_a_job_that_exceeds_its_memory_is_reported_with_that_reason(idle_cluster: Slurm, tmp_path):
    options = (*grid.SHORT, "cluster=slurm", "cluster.retries=0", "+cluster.jobs.rollout={memory_gb: 0.05}")
    submit(tmp_path, *options)
    supervisors_end(idle_cluster, tmp_path, "FAILED")
    grid.expire_locks(tmp_path)
    found = grid.status(tmp_path, *options)
    failed = [entry for entry in found["entries"] if entry["state"] == "failed"]
    assert failed and all("memory limit" in entry["reason"] for entry in failed), failed
    assert all(Path(entry["log"]).exists() for entry in failed)
