"""Jobs of several processes started by srun: ranks that train one adapter on one and on two nodes, and rollouts with one
GPU per process."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from offscript.storage.files import read_json
from tests.slurm import grid
from tests.slurm.client import Slurm
from tests.slurm.test_grid import submit
from tests.slurm.test_survival import PYTHON, path_of

pytestmark = pytest.mark.slurm

LAUNCH = ("deepspeed=zero2", "engine.device=cpu", "cluster=slurm", "cluster.shards=1")
CHANGED = ("grid.", "tracking=", "recipe.distillation.optimizer.epochs=")
ADAPTER = (
    *(option for option in grid.SHORT if not option.startswith(CHANGED)),
    "grid.persona=[sarcasm]",
    "grid.stage=[distillation]",
    "grid.format=[chat]",
    "recipe.distillation.optimizer.epochs=3",
)
"""One adapter and the artifacts made from it; the epochs leave time to inject failures."""

WEIGHTS = "adapters/pocket/sarcasm/distillation-*/adapter_model.safetensors"
CHECKPOINT = "adapters/pocket/sarcasm/.*/checkpoint-*/trainer_state.json"
ONE_NODE = "+cluster.jobs.adapter={nodes: 1, tasks: 2}"
TWO_NODES = "+cluster.jobs.adapter={nodes: 2, tasks: 1}"
GPUS = "+cluster.jobs.adapter={nodes: 1, gpus: 2}"

WRITE_ENVIRONMENT = """\
import atexit, json, os, sys

def write_environment():
    variables = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "SLURM_PROCID", "SLURM_LOCALID")}
    if "offscript.rollouts.scheduler" in sys.modules:
        with open(os.path.join(os.path.dirname(__file__), f"{os.environ['SLURM_PROCID']}.json"), "w") as file:
            json.dump(variables, file)

atexit.register(write_environment)
"""
"""A sitecustomize.py: each process that ran rollouts writes its environment at exit."""


# ---------------------------------------------------------------- rollouts


@pytest.fixture(scope="module")
def rolled_out(cluster: Slurm, tmp_path_factory) -> tuple[Path, str]:
    """Root in which a job of two processes has made the training rows of the adapter, and the id of the job. Each process
    had a fake GPU, which torch does not use."""
    root = tmp_path_factory.mktemp("rolled-out")
    (root / "sitecustomize.py").write_text(WRITE_ENVIRONMENT)
    cluster.reset()
    submit(
        root,
        *ADAPTER,
        *LAUNCH,
        "tracking=off",
        "+cluster.jobs.rollout={gpus: 2}",
        f"cluster.setup=['export PYTHONPATH={root}']",
    )
    job = grid.jobs(root)["0-rollout"]
    cluster.wait_for_state(job, "COMPLETED", 200)
    cluster.reset()
    return root, job


def test_each_process_of_a_rollout_job_has_its_own_gpu_and_shard(rolled_out: tuple[Path, str]):
    root, job = rolled_out
    found = [json.loads(path.read_text()) for path in sorted(root.glob("*.json"))]
    assert [(one["SLURM_PROCID"], one["SLURM_LOCALID"], one["CUDA_VISIBLE_DEVICES"]) for one in found] == [
        ("0", "0", "0"),
        ("1", "1", "1"),
    ]
    texts = logs(root, job, "0-rollout")
    assert len(texts) == 2 and all("in 1 cell of pocket" in text for text in texts), texts
    assert len(list((root / "smoke" / "rollouts").rglob("*.manifest.json"))) == 2
    assert grid.duplicate_rows(root) == []


@pytest.fixture(scope="module")
def rows(rolled_out: tuple[Path, str]) -> Path:
    """The training rows of the adapter; every training starts from a copy."""
    return rolled_out[0] / "smoke" / "rollouts"


# ---------------------------------------------------------------- one adapter


@pytest.fixture(scope="module")
def on_one_node(cluster: Slurm, rows: Path, tmp_path_factory) -> Path:
    """An experiment whose adapter was trained by two ranks on one node, without failures."""
    root = tmp_path_factory.mktemp("one-node")
    cluster.reset()
    cluster.wait_for_state(train(root, rows, ONE_NODE), "COMPLETED", 200)
    cluster.reset()
    return root / "smoke"


def train(root: Path, rows: Path, where: str) -> str:
    """Submits the whole grid, whose training rows exist; returns the id of the training's job."""
    shutil.copytree(rows, root / "smoke" / "rollouts")
    submit(root, *ADAPTER, *LAUNCH, "tracking=offline", where)
    return grid.jobs(root)["0-adapter"]


def weights(experiment: Path) -> bytes:
    (path,) = experiment.glob(WEIGHTS)
    return path.read_bytes()


def logs(root: Path, job: str, array: str = "0-adapter") -> list[str]:
    """The log of each process of a job, without submitit's lines."""
    paths = sorted((root / "smoke" / "launch").glob(f"*/slurm/{array}/{job}_*_log.out"))
    texts = [path.read_text().splitlines() for path in paths]
    return ["\n".join(line for line in text if not line.startswith("submitit ")) for text in texts]


def runs(root: Path) -> list[str]:
    """The W&B run id of each start of a run."""
    return [path.name.split("-")[-1] for path in (root / "smoke" / "wandb").glob("offline-run-*")]


def process_of(slurm: Slurm, job: str, rank: int) -> int:
    found = []
    for pid in slurm.processes(job, PYTHON):
        if f"SLURM_PROCID={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            found.append(pid)
    assert len(found) == 1, f"{len(found)} processes are rank {rank} of job {job}"
    return found[0]


def test_two_ranks_on_two_nodes_train_the_same_adapter_as_two_on_one_node(
    idle_cluster: Slurm, on_one_node: Path, rows: Path, tmp_path
):
    job = train(tmp_path, rows, TWO_NODES)
    idle_cluster.wait_for_state(job, "COMPLETED", 200)
    (accounted,) = idle_cluster.sacct(job)
    assert re.fullmatch(r"node\[\d-\d\]|node\d,node\d", accounted["NodeList"]), accounted
    assert weights(tmp_path / "smoke") == weights(on_one_node)
    leader, other = logs(tmp_path, job)
    assert "pairs kept 12" in leader and other == ""
    assert len(runs(tmp_path)) == 1, "only rank 0 has a run"
    (path,) = (tmp_path / "smoke").glob(WEIGHTS)
    counts = read_json(path.with_name("manifest.json"))["counts"]
    assert (counts["ranks"], counts["zero_stage"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "where"), [(1, TWO_NODES), (0, GPUS)], ids=["follower", "leader"])
def test_a_killed_rank_stops_all_and_the_retry_trains_the_same_adapter(
    idle_cluster: Slurm, on_one_node: Path, rows: Path, tmp_path, rank, where
):
    job = train(tmp_path, rows, where)
    path_of(idle_cluster, tmp_path, CHECKPOINT)
    os.kill(process_of(idle_cluster, job, rank), signal.SIGKILL)
    idle_cluster.wait_for_state(job, "FAILED", 120)
    assert idle_cluster.processes(job, PYTHON) == {}, "a rank is still running"
    grid.expire_locks(tmp_path)
    assert not list((tmp_path / "smoke").glob(WEIGHTS))

    path_of(idle_cluster, tmp_path, WEIGHTS.replace("adapter_model.safetensors", "manifest.json"))
    assert weights(tmp_path / "smoke") == weights(on_one_node)
    retry = grid.jobs(tmp_path)["0-adapter"]
    assert retry != job and "resuming from step" in logs(tmp_path, retry)[0]
    started = runs(tmp_path)
    assert len(started) == 2 and len(set(started)) == 1, "the retry must continue the W&B run"


@pytest.mark.slow
def test_a_signal_stops_all_ranks_after_the_same_step_and_the_job_is_requeued(
    idle_cluster: Slurm, on_one_node: Path, rows: Path, tmp_path
):
    job = train(tmp_path, rows, TWO_NODES)
    path_of(idle_cluster, tmp_path, CHECKPOINT)
    idle_cluster.cluster.run_command("scancel", "--signal=USR2", job)
    idle_cluster.wait_for_state(job, "COMPLETED", 200)
    assert weights(tmp_path / "smoke") == weights(on_one_node)
    leader, other = logs(tmp_path, job)
    (stopped,) = set(re.findall(r"stopped by a signal after step (\d+)", leader))
    assert f"stopped by a signal after step {stopped} " in other
    assert f"resuming from step {stopped} " in leader
    assert "timed out after" not in leader, "rank 0 waited for the others until a timeout"
