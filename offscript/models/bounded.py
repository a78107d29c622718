"""Calls whose time and memory are bounded."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

_LOOK_EVERY_S = 0.02

T = TypeVar("T")


class OutOfBounds(Exception):
    """A call was stopped; the message says why, as the end of a sentence about it."""


def call_bounded(function: Callable[[], T], seconds: float, memory: int) -> T:
    """What ``function`` returns in a forked copy of this process.

    A call in this process could not be stopped: a thread cannot be killed, and a signal waits for the end of an operation
    in C.

    Args:
        function: its result can be pickled.
        seconds: bound on its time.
        memory: bytes that it may take in addition to those of this process.

    Raises:
        OutOfBounds: it takes more, raises an error, or ends the process.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    before, deadline = _resident(os.getpid()), time.monotonic() + seconds
    child = fork.Process(target=_send_result, args=(function, sender), daemon=True)
    child.start()
    sender.close()
    try:
        while not receiver.poll(_LOOK_EVERY_S):
            if time.monotonic() > deadline:
                raise OutOfBounds(f"was stopped after {seconds:g} seconds")
            # RLIMIT_AS would bound the addresses, not the memory, and containers may not enforce it.
            if child.pid is not None and _resident(child.pid) - before > memory:
                raise OutOfBounds(f"was stopped: it takes more than {memory >> 20} MiB of memory")
        result: T = receiver.recv()
        return result
    except EOFError:
        raise OutOfBounds("ends the process that tries it") from None
    finally:
        child.kill()
        child.join()
        receiver.close()


def _send_result(function: Callable[[], object], sender: Connection) -> None:
    """Sends the result, and ends this process without the exit handlers of the process that it is a copy of."""
    try:
        sender.send(function())
    finally:
        os._exit(0)


def _resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()
