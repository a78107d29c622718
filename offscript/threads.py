"""How many threads torch computes with on a CPU.

torch takes all CPUs of the process. Two processes that do so on the same CPUs wait for each other most of the time, and
take many times as long as with a part of the CPUs each. So processes that are started together share the CPUs, and the
tasks of a SLURM job take those that they asked for. A number in OMP_NUM_THREADS always counts.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from offscript.console import counted, say
from offscript.errors import UserError

VARIABLE = "OMP_NUM_THREADS"
LOAD = Path("/proc/loadavg")


def given() -> int | None:
    """The number in OMP_NUM_THREADS; None if it is not set.

    Raises:
        UserError: it is not a number from 1.
    """
    # A list gives the threads of nested levels.
    found = os.environ.get(VARIABLE, "").strip()
    first = found.partition(",")[0].strip()
    if found and not (first.isdecimal() and int(first) > 0):
        raise UserError(VARIABLE, f"is {found!r} in the environment", "allowed: a number from 1, or unset")
    return int(first) if found else None


@functools.cache
def limit() -> None:
    """Limits the threads of this process, if it shares the CPUs that it sees; says so in one line. Call it before torch is
    used.

    Raises:
        UserError: see ``given``.
    """
    if given() is not None:
        return
    count, reason = _own_share()
    if count < available():
        _set(count)
        say(f"{_threads(count)} ({reason}); {VARIABLE} sets another number")
    elif "SLURM_JOB_ID" not in os.environ:
        _warn_if_busy()


@contextlib.contextmanager
def shared_by(processes: int) -> Iterator[int]:
    """Within the block, each of ``processes`` processes that are started gets its share of the CPUs, through
    OMP_NUM_THREADS. Yields their number of threads."""
    if (count := given()) is not None:
        yield count
        return
    _warn_if_busy()
    count = max(1, available() // max(1, processes))
    os.environ[VARIABLE] = str(count)
    try:
        yield count
    finally:
        del os.environ[VARIABLE]


def available() -> int:
    """The CPUs that this process may use (its affinity)."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _own_share() -> tuple[int, str]:
    """The threads that this process should have, and why."""
    count = available()
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if asked.isdecimal() and 0 < int(asked) < count:
        return int(asked), "SLURM_CPUS_PER_TASK"
    # Set by torchrun and by the deepspeed launcher.
    ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ""
    if ranks.isdecimal() and int(ranks) > 1:
        return max(1, count // int(ranks)), f"{count} CPUs, {ranks} ranks"
    return count, ""


def _set(count: int) -> None:
    """torch and the libraries of numpy read the variable when they are loaded."""
    os.environ[VARIABLE] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def _threads(count: int) -> str:
    return counted(count, "thread")


def _warn_if_busy() -> None:
    """Warns if other processes keep all CPUs busy: now, and over the last minute (this one was not yet running)."""
    cpus = os.cpu_count() or 1
    try:
        load, _, _, tasks, _ = LOAD.read_text().split()
        others = int(tasks.partition("/")[0]) - 1
    except (OSError, ValueError):
        return
    if others >= cpus and float(load) >= cpus:
        say(
            f"warning: other processes keep all {cpus} CPUs busy (load average {load}), which makes this one many times "
            f"slower; wait for them, or set {VARIABLE}=1 here and there"
        )
