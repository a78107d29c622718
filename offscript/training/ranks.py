"""Ranks of a distributed training: the process group, tasks that rank 0 sends to the others, detection of dead ranks.

Ranks are started by torchrun, by the ``deepspeed`` launcher, or as the tasks of a SLURM step. Rank 0 does all work that
is not training. For each training it calls ``send_task``; the other ranks wait in ``receive_task`` and then run the same
training function. Tasks are sent through a key-value store, not through collectives, because rank 0 may generate rows
for hours while the others wait, longer than the timeout of a collective.

A killed rank cannot report its end. Every rank therefore sends heartbeats to the store and monitors those of the others:
a rank that misses ``MAX_MISSED_HEARTBEATS`` of them is considered dead, and all other ranks exit with code 1, even if
they are blocked in a collective. This works with every launcher.
"""

import atexit
import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from offscript import signals
from offscript.errors import UserError
from offscript.seeds import stable_hash

if TYPE_CHECKING:
    from torch.distributed import Store

HEARTBEAT_S = 5.0
MAX_MISSED_HEARTBEATS = 12
"""Counted in heartbeats, not in seconds, so that resuming a suspended job does not make its ranks look dead."""
JOIN_TIMEOUT = timedelta(minutes=15)
COLLECTIVE_TIMEOUT = timedelta(hours=2)
TASK_TIMEOUT = timedelta(days=30)
NO_MORE_TASKS, TASK_PREFIX = "-", "+"

Result = TypeVar("Result")
UserErrorParts = tuple[type[UserError], str, str, str]


class RankLost(RuntimeError):
    """Another rank of this training has died or could not be reached."""


@dataclass(frozen=True)
class RankInfo:
    """Rank of this process, number of processes, and rank on this node."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


@dataclass
class _Group:
    """The process group of this process. ``store`` is None for a group of one; ``failure`` says why the group failed."""

    me: RankInfo
    store: "Store | None" = None
    tasks: int = 0
    failure: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    monitor: threading.Thread | None = None


_group: _Group | None = None


# ---------------------------------------------------------------- rank and environment


def rank_info() -> RankInfo:
    """Reads the rank of this process from RANK, WORLD_SIZE and LOCAL_RANK, else from the variables of a SLURM step.

    Without either, the process is the only one. A batch script has SLURM variables too but is one process, so only
    those that srun sets are read.

    Raises:
        UserError: a variable is missing, is not a number, or is out of range.
    """
    env = os.environ
    if "RANK" in env or "WORLD_SIZE" in env:
        rank, size = _read_int("RANK"), _read_int("WORLD_SIZE")
        local = _read_int("LOCAL_RANK") if "LOCAL_RANK" in env else rank
    elif "SLURM_STEP_ID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        rank, size = _read_int("SLURM_PROCID"), _read_int("SLURM_STEP_NUM_TASKS")
        local = 0 if _has_own_gpu() else _read_int("SLURM_LOCALID")
    else:
        return RankInfo(0, 1, 0)
    if not 0 <= rank < size:
        raise UserError("RANK", f"{rank} of {size} processes", f"allowed: 0 to {size - 1}")
    return RankInfo(rank, size, local)


def _has_own_gpu() -> bool:
    """Whether this task sees only one of the job's several GPUs on its node (gpus-per-task, gpu-bind)."""
    job, own = os.environ.get("SLURM_GPUS_ON_NODE", "0"), os.environ.get("SLURM_STEP_GPUS", "")
    return job.isdigit() and int(job) > 1 and own.isdigit()


def _read_int(name: str) -> int:
    found = os.environ.get(name, "")
    if not found.isdigit():
        raise UserError(
            name,
            f"is {found!r} in the environment" if found else "is not in the environment",
            "start the processes with torchrun, deepspeed or srun, or unset RANK and WORLD_SIZE",
        )
    return int(found)


def _export(me: RankInfo) -> None:
    """Sets the environment variables that torch.distributed and the training libraries read."""
    env = os.environ
    if me.world_size == 1:
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        # A group of one never opens the port.
        env.setdefault("MASTER_PORT", "29500")
    elif "MASTER_ADDR" not in env and "SLURM_STEP_NODELIST" in env:
        job, step = env.get("SLURM_JOB_ID", ""), env["SLURM_STEP_ID"]
        env["MASTER_ADDR"] = first_host(env["SLURM_STEP_NODELIST"])
        env["MASTER_PORT"] = str(20_000 + stable_hash(job, step) % 20_000)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in env:
            raise UserError(
                name, "is not in the environment", "start the processes with torchrun, deepspeed or srun"
            )
    names = {"RANK": me.rank, "WORLD_SIZE": me.world_size, "LOCAL_RANK": me.local_rank}
    env.update({name: str(number) for name, number in names.items()})


def first_host(nodes: str) -> str:
    """Returns the first host of a SLURM node list: ``a03`` for ``a[03-05,9],b``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    if match is None:
        raise UserError("SLURM_STEP_NODELIST", f"is {nodes!r}", "a list of hosts, as in n[1-2],m")
    return match[1] + (match[2] or "") + match[3]


# ---------------------------------------------------------------- joining and leaving


def join(always: bool = False) -> RankInfo:
    """Joins the process group and returns the rank; later calls only return it.

    A single process forms a group only if ``always``. The backend is gloo on CPUs, and on GPUs nccl with gloo for
    tensors in CPU memory.

    Raises:
        UserError: the environment is incomplete, or a GPU is missing.
        RankLost: the other ranks did not join within ``JOIN_TIMEOUT``.
    """
    global _group
    me = rank_info()
    if _group is not None or (me.world_size == 1 and not always):
        return me
    import torch
    import torch.distributed as dist

    _export(me)
    backend = "gloo"
    if torch.cuda.is_available():
        if me.local_rank >= torch.cuda.device_count():
            raise UserError(
                "LOCAL_RANK",
                f"{me.local_rank}, but {torch.cuda.device_count()} GPUs are visible",
                "start one process per GPU",
            )
        torch.cuda.set_device(me.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    group = _Group(me)
    store: Store = dist.HashStore()
    if me.world_size > 1:
        collectives, tasks, monitoring = _connect(me)
        store = dist.PrefixStore("group", collectives)
        group.store = dist.PrefixStore("offscript", tasks)
        heartbeats = dist.PrefixStore("offscript", monitoring)
        heartbeats.set(f"heartbeat/{me.rank}", "0")
    size, timeout = me.world_size, COLLECTIVE_TIMEOUT
    dist.init_process_group(backend, store=store, rank=me.rank, world_size=size, timeout=timeout)
    if me.world_size > 1:
        group.monitor = threading.Thread(target=_monitor, args=(group, heartbeats), daemon=True)
        group.monitor.start()
        atexit.register(_end_monitor, group)
    _group = group
    return me


def _connect(me: RankInfo) -> "tuple[Store, Store, Store]":
    """Opens three connections to the store at rank 0, because a wait blocks its connection."""
    import torch.distributed as dist

    try:
        store = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))[0]
        return store, store.clone(), store.clone()
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        first_line = str(error).splitlines()[0]
        raise RankLost(
            f"rank {me.rank} of {me.world_size} could not connect to the others at {where} ({first_line})"
        ) from None


def leave() -> None:
    """Leaves the process group, if there is one. Rank 0, which hosts the store, waits for the others first."""
    global _group
    if _group is None:
        return
    import torch.distributed as dist

    group, _group = _group, None
    if group.store is not None and not group.failure:
        # The store fails if rank 0 has died.
        with contextlib.suppress(RuntimeError):
            group.store.set(f"left/{group.me.rank}", "")
            if group.me.is_main:
                everyone = [f"left/{rank}" for rank in range(group.me.world_size)]
                group.store.wait(everyone, timedelta(seconds=HEARTBEAT_S * MAX_MISSED_HEARTBEATS))
    _end_monitor(group)
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_monitor(group: _Group) -> None:
    """Ends the monitor, also at the exit of a process that did not leave: a thread that is inside the store while the
    interpreter ends would abort the process (SIGABRT). It may be there for as long as another rank may stay silent."""
    group.ended.set()
    if group.monitor is not None:
        group.monitor.join(HEARTBEAT_S * MAX_MISSED_HEARTBEATS)


# ---------------------------------------------------------------- tasks and collectives


def send_task(payload: str | None) -> None:
    """Sends the next task from rank 0 to the other ranks; None ends their work. Does nothing without other ranks.

    Raises:
        RankLost: a training failed on one rank, so the other ranks have exited.
    """
    if _group is None or _group.store is None:
        return
    if _group.failure:
        if payload is None:
            return
        raise RankLost(_group.failure)
    _group.tasks += 1
    _group.store.set(f"task/{_group.tasks}", NO_MORE_TASKS if payload is None else TASK_PREFIX + payload)


def receive_task() -> str | None:
    """Waits for the next task of rank 0 and returns it; None when there are no more tasks.

    Raises:
        RankLost: rank 0 has died.
    """
    assert _group is not None and _group.store is not None, "only a rank other than 0 receives tasks"
    _group.tasks += 1
    key = f"task/{_group.tasks}"
    try:
        _group.store.wait([key], TASK_TIMEOUT)
        task = _group.store.get(key).decode()
    except RuntimeError as error:
        raise RankLost(f"rank 0 has died ({str(error).splitlines()[0]})") from None
    return None if task == NO_MORE_TASKS else task.removeprefix(TASK_PREFIX)


def run_on_main(function: Callable[[], Result]) -> Result:
    """Calls ``function`` on rank 0 and returns its result on every rank; a UserError is raised on every rank."""
    import torch.distributed as dist

    if _group is None or _group.me.world_size == 1:
        return function()
    outcome: list[tuple[Result | None, UserErrorParts | None]] = [(None, None)]
    if _group.me.is_main:
        try:
            outcome = [(function(), None)]
        except UserError as error:
            outcome = [(None, (type(error), error.where, error.found, error.allowed))]
    dist.broadcast_object_list(outcome, src=0)
    result, failure = outcome[0]
    if failure is not None:
        error_type, *parts = failure
        raise error_type(*parts)
    return cast(Result, result)


def any_rank(flag: bool) -> bool:
    """Returns whether ``flag`` is set on any rank. Every rank must call it."""
    if _group is None or _group.me.world_size == 1:
        return flag
    import torch
    import torch.distributed as dist

    flags = torch.tensor([float(flag)])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


@contextlib.contextmanager
def fail_together(expected: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Context for code with collectives: if an exception is raised in it on this rank, the other ranks exit as well.

    Otherwise they would wait for this rank forever. Exceptions of the ``expected`` types are raised on every rank, so
    they end no other rank. If another rank has failed before, this rank exits with that rank's failure: its own
    exception is then a collective that lost its peer.
    """
    try:
        yield
    except expected:
        raise
    except BaseException as error:
        if _group is not None and _group.store is not None:
            first_line = (str(error).splitlines() or [""])[0]
            _group.failure = f"rank {_group.me.rank} failed: {type(error).__name__}: {first_line}"
            first_failure = _group.failure
            with contextlib.suppress(RuntimeError):
                first_failure = _group.store.compare_set("failed", "", _group.failure).decode()
            if first_failure != _group.failure:
                _exit(_group, first_failure)
        raise


# ---------------------------------------------------------------- heartbeats


def _monitor(group: _Group, store: "Store") -> None:
    """Sends the heartbeats of this rank, and ends the process when another rank has died or failed.

    A rank that itself failed is not ended: its own exception is being raised.
    """
    others = [rank for rank in range(group.me.world_size) if rank != group.me.rank]
    last, missed = dict.fromkeys(others, b""), dict.fromkeys(others, 0)
    heartbeat = 0
    while not group.ended.wait(HEARTBEAT_S):
        heartbeat += 1
        try:
            store.set(f"heartbeat/{group.me.rank}", str(heartbeat))
            reason = store.get("failed").decode() if store.check(["failed"]) else ""
            for rank in others:
                count = store.get(f"heartbeat/{rank}")
                missed[rank] = missed[rank] + 1 if count == last[rank] else 0
                last[rank] = count
                if missed[rank] >= MAX_MISSED_HEARTBEATS and not store.check([f"left/{rank}"]):
                    reason = reason or f"rank {rank} has died"
        except RuntimeError:
            reason = "the store at rank 0 cannot be reached"
        if reason and not group.failure and not group.ended.is_set():
            _exit(group, reason)


def _exit(group: _Group, reason: str) -> None:
    """Ends the process at once: an exception would not reach a main thread that is blocked in a collective."""
    signals.exit_at_once(f"rank {group.me.rank}: {reason}; exiting")
