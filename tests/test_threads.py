"""Threads of processes that share a machine, and the one line that says so."""

import os
import pickle
import subprocess
import sys

import pytest

from offscript import threads
from offscript.errors import UserError
from offscript.experiment.backends import sweep
from offscript.storage.files import HOME

VARIABLES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_JOB_ID", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of eight idle CPUs, without any of the variables that count."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "available", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "LOAD", tmp_path / "loadavg")
    # The test process has torch loaded, and keeps its threads.
    monkeypatch.setattr(threads, "_set", lambda count: monkeypatch.setenv("OMP_NUM_THREADS", str(count)))
    threads.limit.cache_clear()
    yield monkeypatch
    threads.limit.cache_clear()


@pytest.mark.parametrize(
    ("variables", "count", "line"),
    [
        ({}, None, ""),
        ({"OMP_NUM_THREADS": "3"}, "3", ""),
        ({"OMP_NUM_THREADS": "4,2", "SLURM_CPUS_PER_TASK": "1"}, "4,2", ""),
        ({"SLURM_CPUS_PER_TASK": "2"}, "2", "2 threads (SLURM_CPUS_PER_TASK)"),
        ({"SLURM_CPUS_PER_TASK": "64"}, None, ""),
        ({"LOCAL_WORLD_SIZE": "4"}, "2", "2 threads (8 CPUs, 4 ranks)"),
        ({"LOCAL_SIZE": "16"}, "1", "1 thread (8 CPUs, 16 ranks)"),
    ],
)
def test_threads_of_a_process(machine, capsys, variables, count, line):
    """Without a reason, torch chooses: it knows the affinity, and which CPUs are two threads of one core."""
    for name, value in variables.items():
        machine.setenv(name, value)
    threads.limit()
    threads.limit()
    assert os.environ.get("OMP_NUM_THREADS") == count
    assert capsys.readouterr().err == (f"{line}; OMP_NUM_THREADS sets another number\n" if line else "")


@pytest.mark.parametrize(
    ("load", "warned"), [("8.40 3.0 1.0 12/300 99", True), ("8.40 3.0 1.0 2/300 99", False), ("odd", False)]
)
def test_a_busy_machine_is_named(machine, capsys, load, warned):
    threads.LOAD.write_text(load)
    threads.limit()
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: other processes keep all 8 CPUs busy") for line in lines] == [
        True
    ] * warned


def test_processes_that_are_started_together_share_the_cpus(machine):
    with threads.shared_by(3) as count:
        assert count == 2 and os.environ["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in os.environ
    machine.setenv("OMP_NUM_THREADS", "5")
    with threads.shared_by(3) as count:
        assert count == 5


def test_the_cells_of_a_local_sweep_share_the_cpus(machine, tmp_path):
    import submitit

    with sweep.collect_exit_codes([]):
        jobs = submitit.AutoExecutor(tmp_path, cluster="local").map_array(os.getenv, ["OMP_NUM_THREADS"] * 4)
        paths = [job.paths.result_pickle for job in jobs]
        for job in jobs:
            job.wait()
    assert [pickle.loads(path.read_bytes()) for path in paths] == [("success", "2")] * 4


def test_torch_has_the_cpus_of_a_slurm_task_and_of_the_affinity():
    code = "from offscript import threads; threads.limit(); import torch; print(torch.get_num_threads())"
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    cpu = str(min(os.sched_getaffinity(0)))
    for command, extra in ((["taskset", "-c", cpu], {}), ([], {"SLURM_CPUS_PER_TASK": "1"})):
        done = subprocess.run(
            [*command, sys.executable, "-c", code], env={**env, **extra}, capture_output=True, text=True
        )
        assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5"])
def test_a_number_of_threads_that_is_none(machine, value):
    machine.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(
        UserError, match=r"^OMP_NUM_THREADS: is '.*' in the environment; allowed: a number from 1"
    ):
        threads.limit()


def test_a_command_refuses_it_in_one_line_and_makes_nothing(tmp_path):
    command = [sys.executable, HOME / "launch/submit.py", "experiment=smoke", "tracking=off", "cluster=local"]
    env = {**os.environ, "OMP_NUM_THREADS": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and list(tmp_path.glob("runs/smoke/*")) == []
    assert done.stderr.splitlines()[1:] == [
        "error: OMP_NUM_THREADS: is '0' in the environment; allowed: a number from 1, or unset"
    ]
