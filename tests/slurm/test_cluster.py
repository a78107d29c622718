"""The test cluster behaves as a real one, in everything that the other tests rely on."""

import sys
import textwrap
from pathlib import Path

import pytest

from tests.slurm.client import Slurm
from tests.slurm.cluster import PREFIX, Cluster, ClusterError

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_job_runs_on_its_node_and_is_in_the_accounting(idle_cluster: Slurm, tmp_path):
    job = idle_cluster.submit_script("hostname; exit 3", output=tmp_path / "out", nodelist="node3")
    idle_cluster.wait_for_state(job, "FAILED")
    assert (tmp_path / "out").read_text() == "node3\n"
    wanted = {"State": "FAILED", "ExitCode": "3:0", "NodeList": "node3", "Partition": "main"}

    # The accounting receives the fields of a short job one after another.
    def found() -> dict[str, str]:
        return {key: value for row in idle_cluster.sacct(job) for key, value in row.items() if key in wanted}

    idle_cluster.wait_until(lambda: found() == wanted, "the accounting", 30, found)


def test_a_failed_task_cancels_only_the_task_that_depends_on_it(idle_cluster: Slurm, tmp_path):
    parent = idle_cluster.submit_script("exit $((SLURM_ARRAY_TASK_ID == 1))", array="0-2")
    child = idle_cluster.submit_script(
        f"touch {tmp_path}/child-$SLURM_ARRAY_TASK_ID", array="0-2", dependency=f"aftercorr:{parent}"
    )
    needs_all = idle_cluster.submit_script(f"touch {tmp_path}/all", dependency=f"afterok:{parent}")
    afterwards = idle_cluster.submit_script(f"touch {tmp_path}/after", dependency=f"afterany:{child}")
    idle_cluster.wait_for_state(afterwards, "COMPLETED")
    idle_cluster.wait_for_state(needs_all, "CANCELLED")
    assert idle_cluster.states(parent) == _tasks(parent, "COMPLETED", "FAILED", "COMPLETED")
    assert idle_cluster.states(child) == _tasks(child, "COMPLETED", "CANCELLED", "COMPLETED")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "child-0", "child-2"]


def test_requeue_runs_the_job_again_and_counts_it(idle_cluster: Slurm, tmp_path):
    log = tmp_path / "log"
    job = idle_cluster.submit_script(_twice(log))
    _wait_for_lines(idle_cluster, log, 1)
    idle_cluster.requeue(job)
    idle_cluster.wait_for_state(job, "COMPLETED")
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["0", "1"]
    _wait_for_accounting(idle_cluster, job, ["REQUEUED", "COMPLETED"])


@pytest.mark.parametrize("failure", ["down", "lose"])
def test_a_job_is_requeued_on_another_node_when_its_node_fails(idle_cluster: Slurm, tmp_path, failure):
    log = tmp_path / "log"
    job = idle_cluster.submit_script(_twice(log))
    _wait_for_lines(idle_cluster, log, 1)
    node, old = idle_cluster.node_of(job), idle_cluster.processes(job, "sleep")
    assert old
    getattr(idle_cluster, failure)(node)
    idle_cluster.wait_for_state(job, "COMPLETED")
    (first, _), (second, restarts) = [line.split() for line in log.read_text().splitlines()]
    assert (first, restarts) == (node, "1") and second != node
    assert not idle_cluster.processes(job, "sleep"), "processes of the failed node are still running"
    idle_cluster.resume(node)
    assert idle_cluster.node_state(node) == "idle"


@pytest.mark.parametrize(
    ("partition", "step", "ended"),
    [
        ("main", "sleep 300", "PREEMPTED"),
        (
            "graceful",
            "trap 'touch {warned}; scontrol requeue $SLURM_JOB_ID' USR2; while :; do sleep 1; done",
            "REQUEUED",
        ),
        # A step that exits at the signal is not requeued.
        ("graceful", "sleep 300", "FAILED"),
    ],
)
def test_an_urgent_job_preempts_another(idle_cluster: Slurm, tmp_path, partition, step, ended):
    warned = tmp_path / "warned"
    (tmp_path / "step.sh").write_text(step.format(warned=warned))
    text = f'[ "$SLURM_RESTART_COUNT" ] || srun bash {tmp_path}/step.sh'
    job = idle_cluster.submit_script(text, partition=partition, nodes=4, exclusive=True, signal="USR2@10")
    idle_cluster.wait_until(lambda: len(idle_cluster.processes(job, "^sleep")) == 4, "the steps")
    urgent = idle_cluster.submit_script("true", partition="urgent")
    idle_cluster.wait_for_state(urgent, "COMPLETED")
    idle_cluster.wait_for_state(job, "FAILED" if ended == "FAILED" else "COMPLETED")
    assert idle_cluster.sacct(job, every_run=True)[0]["State"] == ended
    assert warned.exists() == (ended == "REQUEUED")


def test_a_step_gets_a_signal_before_its_time_limit(idle_cluster: Slurm, tmp_path):
    step = f"trap 'touch {tmp_path}/warned; exit 0' USR2; sleep 300 & wait"
    job = idle_cluster.submit_script(f'srun bash -c "{step}"', time=1, signal="USR2@59")
    idle_cluster.wait_for_state(job, "COMPLETED", 90)
    assert (tmp_path / "warned").exists()


def test_ranks_on_two_nodes_connect_by_host_name(idle_cluster: Slurm, tmp_path):
    program = tmp_path / "sum.py"
    program.write_text(SUM_OVER_RANKS)
    text = f"export MASTER_ADDR=$(scontrol show hostnames | head -1)\nsrun {sys.executable} {program}"
    job = idle_cluster.submit_script(text, nodes=2, ntasks_per_node=1, output=tmp_path / "out")
    idle_cluster.wait_for_state(job, {"COMPLETED", "FAILED"}, 90)
    printed = (tmp_path / "out").read_text()
    assert sorted(printed.split()) == ["0/2:node1:3.0", "1/2:node2:3.0"], printed


def test_a_process_of_one_task_can_be_killed(idle_cluster: Slurm):
    job = idle_cluster.submit_script("sleep 300", array="0-1")
    idle_cluster.wait_for_state(job, "RUNNING")
    assert len(idle_cluster.kill(f"{job}_1", "^sleep")) == 1
    idle_cluster.wait_for_state(f"{job}_1", "FAILED")
    assert idle_cluster.states(f"{job}_0") == {f"{job}_0": "RUNNING"}


def test_a_gpu_is_allocated_to_one_job_at_a_time(idle_cluster: Slurm, tmp_path):
    text = "echo $CUDA_VISIBLE_DEVICES; sleep 2"
    ids = [
        idle_cluster.submit_script(text, gpus_per_node=1, nodelist="node1", mem=100, output=tmp_path / str(i))
        for i in range(2)
    ]
    for job in ids:
        idle_cluster.wait_for_state(job, "COMPLETED")
    assert {(tmp_path / str(i)).read_text() for i in range(2)} == {"0\n", "1\n"}


def test_a_job_that_exceeds_its_memory_is_killed(idle_cluster: Slurm, tmp_path):
    (tmp_path / "memory.py").write_text("import time; block = bytearray(300 << 20); time.sleep(300)")
    job = idle_cluster.submit_script(
        f"srun {sys.executable} {tmp_path}/memory.py", mem=100, output=tmp_path / "out"
    )
    idle_cluster.wait_for_state(job, "FAILED")
    assert "exceeded memory limit" in (tmp_path / "out").read_text()


def test_a_second_start_changes_nothing(idle_cluster: Slurm):
    job = idle_cluster.submit_script("sleep 300")
    idle_cluster.wait_for_state(job, "RUNNING")
    daemons = idle_cluster.cluster.processes()
    idle_cluster.cluster.start(keep=False)
    assert idle_cluster.cluster.processes() == daemons
    assert idle_cluster.states(job) == {str(job): "RUNNING"}


@pytest.mark.parametrize(("kept", "stopped"), [(False, 1), (True, 0)])
def test_the_last_user_stops_a_cluster_that_is_not_kept(tmp_path, monkeypatch, kept, stopped):
    up: set[str] = set()
    stops: list[str] = []
    monkeypatch.setattr("tests.slurm.cluster._need_root", lambda: None)
    monkeypatch.setattr("tests.slurm.cluster._need_programs", lambda: None)
    monkeypatch.setattr(Cluster, "_fake_gpus", lambda self: "")
    monkeypatch.setattr(Cluster, "running", lambda self: sorted(up))
    monkeypatch.setattr(Cluster, "_start_daemons", lambda self: up.add("slurmctld"))
    monkeypatch.setattr(Cluster, "_stop_daemons", lambda self: stops.append(up.pop()))
    first, second = Cluster(tmp_path).in_use(), Cluster(tmp_path).in_use()
    first.__enter__()
    second.__enter__()
    if kept:
        Cluster(tmp_path).start()
    first.__exit__(None, None, None)
    assert not stops and Cluster(tmp_path).is_in_use()
    second.__exit__(None, None, None)
    assert len(stops) == stopped and not Cluster(tmp_path).is_in_use()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NODES", "many", "a whole number from 1 is needed"),
        ("ROOT", "/tmp/has a blank", "no blank in a path"),
        ("ROOT", str(Path(__file__).parent), "has other content"),
    ],
)
def test_an_invalid_variable_is_one_line(name, value, message, monkeypatch):
    monkeypatch.setenv(PREFIX + name, value)
    for check in ("_need_root", "_need_programs"):
        monkeypatch.setattr(f"tests.slurm.cluster.{check}", lambda: None)
    with pytest.raises(ClusterError, match=message):
        Cluster.from_environment().start()


SUM_OVER_RANKS = textwrap.dedent(
    """
    import os, socket, torch, torch.distributed as dist
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000
    dist.init_process_group("gloo", f"tcp://{os.environ['MASTER_ADDR']}:{port}", rank=rank, world_size=size)
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    print(f"{rank}/{size}:{socket.gethostname()}:{total.item()}", flush=True)
    dist.destroy_process_group()
    """
)


def _tasks(array: int, *states: str) -> dict[str, str]:
    return {f"{array}_{i}": state for i, state in enumerate(states)}


def _twice(log: Path) -> str:
    """A job that sleeps in its first run and exits in its second; each run logs its node and its number."""
    again = f"echo $(hostname) ${{SLURM_RESTART_COUNT:-0}} >> {log}"
    return f'{again}\n[ "$SLURM_RESTART_COUNT" ] || sleep 300'


def _wait_for_accounting(slurm: Slurm, job: int, wanted: list[str]) -> None:
    """Waits until the accounting has the states ``wanted`` of the runs of a job: it hears of an end after the controller."""

    def states() -> list[str]:
        return [row["State"] for row in slurm.sacct(job, every_run=True)]

    slurm.wait_until(lambda: states() == wanted, f"runs of job {job} to be {wanted}", found=states)


def _wait_for_lines(slurm: Slurm, log: Path, count: int) -> None:
    slurm.wait_until(
        lambda: log.exists() and len(log.read_text().splitlines()) >= count, f"{count} lines in {log}"
    )
