"""The processes of one training: who they are, how they join, how rank 0 leads the others, what happens when one dies.

Ranks are started by torchrun, by the ``deepspeed`` launcher, or as the tasks of a SLURM step. Rank 0 plans and does
all that is not training; for each training it calls ``announce``, and the others, which sit in ``follow``, run the
same training function. What is said between them goes through a key-value store, not through collectives, so rank 0
may roll out rows for hours while the others wait.

A rank that is killed cannot say so. Every rank therefore counts in the store, and each watches the others' counts:
who stands still for ``LOST_AFTER`` beats is lost, and then the others end with exit code 1, whatever collective they
hang in. It needs no launcher that does it, and no timeout that a long wait would trip over.
"""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from offscript.errors import UserError
from offscript.seeds import stable_hash

BEAT_S = 5.0
LOST_AFTER = 12
"""Beats. Counted and not timed, so that a job that was suspended as a whole does not call its ranks lost."""
JOIN = timedelta(minutes=15)
COLLECTIVE = timedelta(hours=2)
FOREVER = timedelta(days=30)
NOTHING, SOMETHING = "-", "+"

Result = TypeVar("Result")


class RankLost(RuntimeError):
    """Another rank of this training is gone, so that nothing more can be trained together."""


@dataclass(frozen=True)
class RankInfo:
    """This process among those of its training."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@dataclass
class _Group:
    """What a process keeps of its group while it is in it. ``store`` is None where it is alone."""

    ranks: RankInfo
    store: Any = None
    messages: int = 0
    lost: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


_group: _Group | None = None


# ---------------------------------------------------------------- who we are


def rank_info() -> RankInfo:
    """This process's place, from RANK, WORLD_SIZE and LOCAL_RANK, else from the SLURM step; alone where there is none.

    A batch script holds SLURM variables too, but is one process: only a step's (srun's) are looked at.

    Raises:
        UserError: a variable is missing or is not a number that fits.
    """
    env = os.environ
    if "RANK" in env or "WORLD_SIZE" in env:
        rank, size = _number("RANK"), _number("WORLD_SIZE")
        local = _number("LOCAL_RANK") if "LOCAL_RANK" in env else rank
    elif "SLURM_STEP_ID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        rank, size = _number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS")
        local = 0 if _has_own_gpu() else _number("SLURM_LOCALID")
    else:
        return RankInfo(0, 1, 0)
    if not 0 <= rank < size:
        raise UserError("RANK", f"{rank} of {size} processes", f"allowed: 0 to {size - 1}")
    return RankInfo(rank, size, local)


def _has_own_gpu() -> bool:
    """Whether SLURM shows this task one of several GPUs of the job on its node (gpus-per-task, gpu-bind): its first."""
    job, own = os.environ.get("SLURM_GPUS_ON_NODE", "0"), os.environ.get("SLURM_STEP_GPUS", "")
    return job.isdigit() and int(job) > 1 and own.isdigit()


def _number(name: str) -> int:
    found = os.environ.get(name, "")
    if not found.isdigit():
        raise UserError(
            name,
            f"is {found!r} in the environment" if found else "is not in the environment",
            "start the processes with torchrun, deepspeed or srun, or unset RANK and WORLD_SIZE",
        )
    return int(found)


def _export(ranks: RankInfo) -> None:
    """Puts into the environment what the training libraries look for there."""
    env = os.environ
    if ranks.world_size == 1:
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        env.setdefault("MASTER_PORT", "29500")  # never opened by a group of one
    elif "MASTER_ADDR" not in env and "SLURM_STEP_NODELIST" in env:
        job, step = env.get("SLURM_JOB_ID", ""), env["SLURM_STEP_ID"]
        env["MASTER_ADDR"] = first_host(env["SLURM_STEP_NODELIST"])
        env["MASTER_PORT"] = str(20_000 + stable_hash(job, step) % 20_000)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in env:
            raise UserError(
                name, "is not in the environment", "start the processes with torchrun, deepspeed or srun"
            )
    names = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world_size, "LOCAL_RANK": ranks.local_rank}
    env.update({name: str(number) for name, number in names.items()})


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: ``a[03-05,9],b`` begins with ``a03``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    if match is None:
        raise UserError("SLURM_STEP_NODELIST", f"is {nodes!r}", "a list of hosts is needed")
    return match[1] + (match[2] or "") + match[3]


# ---------------------------------------------------------------- joining and leaving


def join(always: bool = False) -> RankInfo:
    """Joins the process group (once; later calls return the same). A process alone forms one only if ``always``.

    gloo on CPUs; on GPUs nccl, with gloo for what lies in CPU memory.

    Raises:
        UserError: the environment is incomplete, or a GPU is missing.
        RankLost: the others did not join.
    """
    global _group
    ranks = rank_info()
    if _group is not None or (ranks.world_size == 1 and not always):
        return ranks
    import torch
    import torch.distributed as dist

    _export(ranks)
    backend = "gloo"
    if torch.cuda.is_available():
        if ranks.local_rank >= torch.cuda.device_count():
            raise UserError(
                "LOCAL_RANK",
                f"{ranks.local_rank}, but {torch.cuda.device_count()} GPUs are visible",
                "start one process per GPU",
            )
        torch.cuda.set_device(ranks.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    group = _Group(ranks)
    if ranks.world_size > 1:
        store = _rendezvous(ranks)
        group.store = dist.PrefixStore("offscript", store.clone())  # own connections: a wait blocks its own
        pulse = dist.PrefixStore("offscript", store.clone())
        pulse.set(f"beat/{ranks.rank}", "0")
        options: dict[str, Any] = {"store": dist.PrefixStore("group", store)}
    else:
        options = {"store": dist.HashStore()}
    dist.init_process_group(
        backend, rank=ranks.rank, world_size=ranks.world_size, timeout=COLLECTIVE, **options
    )
    if ranks.world_size > 1:
        threading.Thread(target=_watch, args=(group, pulse), daemon=True).start()
    _group = group
    return ranks


def _rendezvous(ranks: RankInfo) -> Any:
    import torch.distributed as dist

    try:
        return next(dist.rendezvous("env://", timeout=JOIN))[0]
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        first_line = str(error).splitlines()[0]
        raise RankLost(
            f"rank {ranks.rank} of {ranks.world_size} could not meet the others at {where} ({first_line})"
        ) from None


def leave() -> None:
    """Leaves the group, if there is one; rank 0, which hosts the store, waits for the others first."""
    global _group
    if _group is None:
        return
    import torch.distributed as dist

    group, _group = _group, None
    if group.store is not None and not group.lost:
        with contextlib.suppress(RuntimeError):  # whoever is gone already has nothing to be told
            group.store.set(f"left/{group.ranks.rank}", "")
            if group.ranks.is_main:
                others = [f"left/{rank}" for rank in range(group.ranks.world_size)]
                group.store.wait(others, timedelta(seconds=BEAT_S * LOST_AFTER))
    group.ended.set()
    if dist.is_initialized():
        dist.destroy_process_group()


# ---------------------------------------------------------------- leading and following


def send_task(payload: str | None) -> None:
    """Rank 0 tells the others what is trained next; None: nothing more. A process alone has nobody to tell.

    Raises:
        RankLost: a training failed on one rank only, so that the others are gone.
    """
    if _group is None or _group.store is None:
        return
    if _group.lost:
        if payload is None:
            return
        raise RankLost(_group.lost)
    _group.messages += 1
    _group.store.set(f"said/{_group.messages}", NOTHING if payload is None else SOMETHING + payload)


def receive_task() -> str | None:
    """What rank 0 announced next, waiting as long as it takes; None when there is nothing more.

    Raises:
        RankLost: rank 0 is gone.
    """
    assert _group is not None and _group.store is not None, "only a rank that joined others follows"
    _group.messages += 1
    key = f"said/{_group.messages}"
    try:
        _group.store.wait([key], FOREVER)
        said = _group.store.get(key).decode()
    except RuntimeError as error:
        raise RankLost(f"rank 0 is gone ({str(error).splitlines()[0]})") from None
    return None if said == NOTHING else said.removeprefix(SOMETHING)


def run_on_main(function: Callable[[], Result]) -> Result:
    """What ``function`` returns on rank 0, on every rank; a UserError that it raises is raised on every rank."""
    import torch.distributed as dist

    if _group is None or _group.ranks.world_size == 1:
        return function()
    answer: list[Any] = [None, None]
    if _group.ranks.is_main:
        try:
            answer = [function(), None]
        except UserError as error:
            answer = [None, (type(error), error.where, error.found, error.allowed)]
    dist.broadcast_object_list(answer, src=0)
    if answer[1]:
        kind, *parts = answer[1]
        raise kind(*parts)
    return answer[0]


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is set on any rank. Every rank has to ask."""
    if _group is None or _group.ranks.world_size == 1:
        return flag
    import torch
    import torch.distributed as dist

    seen = torch.tensor([float(flag)])
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen.item())


@contextlib.contextmanager
def fail_together(expected: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """A block of collectives: an exception that is not ``expected`` on every rank ends the other ranks too, since
    they would wait for this one for ever."""
    try:
        yield
    except expected:
        raise
    except BaseException as error:
        if _group is not None and _group.store is not None:
            first_line = (str(error).splitlines() or [""])[0]
            _group.lost = f"rank {_group.ranks.rank} failed: {type(error).__name__}: {first_line}"
            with contextlib.suppress(RuntimeError):
                _group.store.set("failed", _group.lost)
        raise


# ---------------------------------------------------------------- watching the others


def _watch(group: _Group, pulse: Any) -> None:
    """Counts in the store, and ends this process when another one has stopped counting, or failed. A rank that itself
    failed is let go on: its own exception is on its way."""
    others = [r for r in range(group.ranks.world_size) if r != group.ranks.rank]
    seen: dict[int, tuple[bytes, int]] = {}
    beat = 0
    while not group.ended.wait(BEAT_S):
        beat += 1
        try:
            pulse.set(f"beat/{group.ranks.rank}", str(beat))
            reason = pulse.get("failed").decode() if pulse.check(["failed"]) else ""
            for rank in others:
                count, before = pulse.get(f"beat/{rank}"), seen.get(rank, (b"", 0))
                still = before[1] + 1 if count == before[0] else 0
                seen[rank] = (count, still)
                if still >= LOST_AFTER and not pulse.check([f"left/{rank}"]):
                    reason = reason or f"rank {rank} is gone"
        except RuntimeError:
            reason = "the store at rank 0 is gone"
        if reason and not group.lost and not group.ended.is_set():
            _end(group, reason)


def _end(group: _Group, reason: str) -> None:
    """Ends the process at once: its main thread may hang in a collective that no exception can reach."""
    sys.stderr.write(f"rank {group.ranks.rank}: {reason}; ending\n")
    sys.stderr.flush()
    time.sleep(0.1)
    os._exit(1)
