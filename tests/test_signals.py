"""Signals that end a process: its locks are released, the processes that it started end too, and the exit code says it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from offscript.storage import locks

HOLDER = """
import signal, sys, time
from pathlib import Path
from offscript.storage.locks import claim
if sys.argv[2] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if sys.argv[2] == "submitit":
    signal.signal(signal.SIGTERM, lambda *args: print("bypassed", flush=True))
with claim(Path(sys.argv[1]) / "a"), claim(Path(sys.argv[1]) / "b"):
    print("held", flush=True)
    time.sleep(60)
    print("went on", flush=True)
"""

STARTER = """
import sys, threading, time
from offscript.experiment.backends.local import _Processes
processes = _Processes()
with processes.end_with_this_one():
    command = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(60)"]
    threading.Thread(target=processes.run, args=(command, sys.stdout, None), daemon=True).start()
    time.sleep(60)
"""

LATE = """
import signal
from offscript.training.interrupt import SignalStopper
with SignalStopper().handle_signals():
    signal.raise_signal(signal.SIGTERM)
    print("last step", flush=True)
print("went on", flush=True)
"""


def default_signals():
    """Undoes what a shell or nohup may have done to the tests' own process: ignored signals stay ignored in children."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(code, *words, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


def held(folder, how="plain", **environment):
    """A process that holds the locks of two artifacts in ``folder``."""
    process = start(HOLDER, folder, how, **environment)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_releases_the_locks_and_is_the_exit_code(tmp_path, number):
    process = held(tmp_path)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == -number
    assert stderr == f"ended by {number.name}; run the same command again to continue\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_releases_the_locks(tmp_path):
    process = held(tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and list(tmp_path.iterdir()) == []


def test_a_hang_up_that_nohup_ignores_stays_ignored(tmp_path):
    process = held(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert len(list(tmp_path.iterdir())) == 2
    process.kill()
    process.communicate()


def test_a_slurm_job_releases_its_locks_and_waits_for_slurm_to_end_it(tmp_path):
    """SLURM requeues no job that exits by itself. submitit's handler would let the work continue, without its locks."""
    process = held(tmp_path, "submitit", SLURM_JOB_ID="1")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "bypassed\n"
    assert list(tmp_path.iterdir()) == []
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    assert process.communicate()[0] == ""


def test_the_lock_of_a_killed_process_counts_for_nobody(tmp_path):
    """At once, also while its parent has not asked for its exit code: some containers never do."""
    process = held(tmp_path)
    assert time.time() - locks.writing_since(tmp_path / "a") < 20
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert locks.writing_since(tmp_path / "a") is None
    with locks.claim(tmp_path / "a", wait=False):
        assert locks.writing_since(tmp_path / "a") is not None
    process.communicate()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1', '{"pid": "x", "host": 3, "since": "y"}'])
def test_a_damaged_lock_file_holds_until_it_is_stale(tmp_path, content):
    lock = tmp_path / ".a.lock"
    lock.write_text(content)
    assert locks.writing_since(tmp_path / "a") is not None
    with pytest.raises(locks.Busy), locks.claim(tmp_path / "a", wait=False):
        pass
    old = time.time() - 2 * locks.STALE_S
    os.utime(lock, (old, old))
    assert locks.writing_since(tmp_path / "a") is None
    with locks.claim(tmp_path / "a", wait=False):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_local_processes_end_with_the_command_that_started_them(number):
    process = start(STARTER)
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    # Its end is the end of everyone who could write to this pipe.
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == -number


def test_a_signal_after_the_last_step_of_a_training_ends_the_process_too():
    """Otherwise a grid would go on with its next job."""
    process = start(LATE)
    stdout, _ = process.communicate(timeout=60)
    assert stdout == "last step\n" and process.returncode == -signal.SIGTERM
