"""Ranks from the environment, tasks, and that no rank blocks when another one dies. Real processes, no model."""

import os
import subprocess
import sys
import textwrap
from unittest import mock

import pytest

from offscript.errors import UserError
from offscript.training import ranks
from offscript.training.ranks import RankInfo
from tests.training import crew

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07,09-10]",
}


@pytest.fixture
def environ():
    """Removes the variables of ranks from the environment; yields a function that sets variables until the test ends."""
    with mock.patch.dict(os.environ):
        for name in (*VARIABLES, *STEP, "SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS"):
            os.environ.pop(name, None)
        yield lambda **changes: os.environ.update(changes)


def test_a_single_process(environ):
    assert ranks.rank_info() == RankInfo(0, 1, 0) and ranks.join() == RankInfo(0, 1, 0)
    assert ranks.run_on_main(lambda: 3) == 3 and ranks.any_rank(True) and not ranks.any_rank(False)
    ranks.send_task("ignored")
    ranks.leave()


def test_rank_from_the_variables_of_a_launcher(environ):
    environ(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1")
    assert ranks.rank_info() == RankInfo(5, 8, 1)


def test_rank_from_the_variables_of_a_slurm_step(environ):
    environ(**STEP)
    me = ranks.rank_info()
    assert me == RankInfo(3, 4, 1)
    ranks._export(me)
    assert os.environ["MASTER_ADDR"] == "gpu07" and 20_000 <= int(os.environ["MASTER_PORT"]) < 40_000
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("3", "4", "1")


@pytest.mark.parametrize(("own", "local"), [("0,1", 1), ("1", 0)])
def test_a_task_that_sees_one_gpu_uses_it(environ, own, local):
    """With --gpus-per-task or --gpu-bind a task sees only its own GPU, as device 0."""
    environ(**STEP, SLURM_GPUS_ON_NODE="2", SLURM_STEP_GPUS=own)
    assert ranks.rank_info() == RankInfo(3, 4, local)


def test_a_batch_script_is_one_process(environ):
    """sbatch --ntasks=4 sets SLURM_NTASKS and SLURM_PROCID=0 for the script itself, which is not a step."""
    environ(SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_JOB_ID="77")
    assert ranks.rank_info() == RankInfo(0, 1, 0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu[07,09-10]", "gpu07"),
        ("n[3-5].site,x", "n3.site"),
        ("a-1,b[2-3]", "a-1"),
    ],
)
def test_first_host(nodes, first):
    assert ranks.first_host(nodes) == first


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"RANK": "0"},
            "WORLD_SIZE: is not in the environment; start the processes with torchrun, deepspeed or srun",
        ),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK: is 'x' in the environment"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: 2 of 2 processes; allowed: 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR: is not in the environment"),
    ],
)
def test_an_incomplete_or_inconsistent_environment_is_an_error(environ, variables, message):
    environ(**variables)
    with pytest.raises(UserError, match=message):
        ranks._export(ranks.rank_info())


# ---------------------------------------------------------------- tasks and failures


def run_group(
    body: str, size: int = 2, timeout: float = 60, heartbeat_s: float = 0.2
) -> list[tuple[int, str]]:
    """Runs ``body`` in ``size`` processes of one group; returns (exit code, output) of each."""
    script = (
        textwrap.dedent(f"""
        import os, signal, sys, time
        from offscript.errors import UserError
        from offscript.training import ranks
        ranks.HEARTBEAT_S, ranks.MAX_MISSED_HEARTBEATS = {heartbeat_s}, 10
        me = ranks.join()
        """)
        + textwrap.dedent(body)
        + "\nranks.leave()\n"
    )
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": crew.free_port()}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=crew.REPOSITORY,
            text=True,
            env=crew.environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    return crew.finish(started, timeout)


def test_the_other_ranks_receive_the_tasks_of_rank_0():
    exits = run_group("""
        if me.is_main:
            ranks.send_task("first")
            # Longer than the missed heartbeats of a dead rank: rank 0 is busy, not dead.
            time.sleep(3)
            ranks.send_task("")
            ranks.send_task(None)
        else:
            while (task := ranks.receive_task()) is not None:
                print(repr(task))
        print("result", ranks.run_on_main(lambda: {"step": 4}), ranks.any_rank(me.rank == 1))
        try:
            ranks.run_on_main(lambda: (_ for _ in ()).throw(UserError("where", "what", "how")))
        except UserError as error:
            print(error)
    """)
    assert [code for code, _ in exits] == [0, 0]
    result = "result {'step': 4} True\nwhere: what; how\n"
    assert exits[0][1] == result and exits[1][1] == "'first'\n''\n" + result


def test_the_other_ranks_end_when_rank_0_fails():
    exits = run_group("""
        try:
            if me.is_main:
                raise SystemExit(3)
            assert ranks.receive_task() is None
        finally:
            if me.is_main:
                ranks.send_task(None)
                ranks.leave()
    """)
    assert [code for code, _ in exits] == [3, 0]


@pytest.mark.parametrize("victim", [0, 1])
def test_no_rank_waits_for_a_killed_rank(victim):
    """Rank 1 waits for a task, rank 0 is busy; one of them is killed."""
    exits = run_group(f"""
        if me.rank == {victim}:
            os.kill(os.getpid(), signal.SIGKILL)
        if me.is_main:
            time.sleep(3600)
        ranks.receive_task()
    """)
    assert exits[victim][0] == -9 and exits[1 - victim][0] == 1
    assert "has died" in exits[1 - victim][1]


@pytest.mark.parametrize("end", ["raise MemoryError", "sys.exit(1)", "ranks.leave(); sys.exit(1)"])
def test_a_rank_whose_monitor_is_inside_the_store_exits_with_its_own_code(end):
    """The interpreter aborts (SIGABRT) if it ends while a thread is inside the store."""
    exits = run_group(f"""
        from datetime import timedelta
        ranks.leave()
        def monitor(group, store):
            while not group.ended.wait(0.01):
                try:
                    store.wait(["never"], timedelta(seconds=1))
                except RuntimeError:
                    pass
        ranks._monitor = monitor
        os.environ["MASTER_PORT"] = "{crew.free_port()}"
        ranks.join()
        ranks._group.failure = "failed"
        time.sleep(0.5)
        {end}
    """)
    assert [code for code, _ in exits] == [1, 1], exits


@pytest.mark.parametrize(
    "heartbeat_s, end",
    [(0.2, "time.sleep(5)"), (60, "os._exit(1)")],
    ids=["the other rank is blocked", "its collective is lost before a heartbeat"],
)
def test_an_exception_on_one_rank_ends_the_others(heartbeat_s, end):
    exits = run_group(
        f"""
        import torch.distributed as dist, torch
        try:
            with ranks.fail_together((KeyError,)):
                if me.rank == 1:
                    raise MemoryError("too much")
                # Blocks until the connection is closed.
                dist.recv(torch.zeros(1), src=1)
        finally:
            if me.rank == 1:
                {end}
        """,
        heartbeat_s=heartbeat_s,
    )
    assert exits[0][0] == 1
    assert exits[0][1].splitlines()[-1] == "rank 0: rank 1 failed: MemoryError: too much; exiting"
