"""What a process does before SIGTERM or SIGHUP ends it: it releases its locks, and ends the processes that it started.

The handlers are installed by the first ``before_end``. A signal that is ignored stays ignored (``nohup`` does that with
SIGHUP). Ctrl-C (SIGINT) raises KeyboardInterrupt as always, and locks are released on its way.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)

KILL_WAIT_S = 900.0
"""Upper bound of the time after SIGTERM in which SLURM kills a job (KillWait or GraceTime)."""

Action = Callable[[int], None]

_actions: list[Action] = []
_waits: list[Callable[[], None]] = []
_previous: dict[int, Callable[[int, FrameType | None], object] | int] = {}
_owner = 0


@contextlib.contextmanager
def before_end(action: Action, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """If a signal ends this process within the block, calls ``action`` with its number, and then ``wait``.

    ``action`` has to be quick: further signals are ignored meanwhile. During ``wait`` a second signal ends the process
    at once.
    """
    _install()
    waits = [wait] if wait else []
    _actions.append(action)
    _waits.extend(waits)
    try:
        yield
    finally:
        _actions.remove(action)
        for one in waits:
            _waits.remove(one)


def is_ignored(number: int) -> bool:
    """Whether this process was started with the signal ignored, or its handler was not installed from Python."""
    return signal.getsignal(number) in (signal.SIG_IGN, None)


def exit_at_once(line: str) -> None:
    """Ends the process from any thread, with ``line`` on stderr and exit code 1, whatever its main thread waits for."""
    _write(line)
    _run_actions(signal.SIGTERM)
    os._exit(1)


def wait_for_kill() -> None:
    """In a SLURM job: waits until SLURM ends the process. A job that exits by itself after SIGTERM is not requeued."""
    if "SLURM_JOB_ID" in os.environ:
        time.sleep(KILL_WAIT_S)


def _install() -> None:
    """Installs the handlers, once, where Python allows it: in the main thread."""
    global _owner
    if _owner == os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    _owner = os.getpid()
    for number in ENDING:
        handler = signal.getsignal(number)
        if handler is not None and not is_ignored(number):
            _previous[number] = handler
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    """The handler: does not return, since the locks are released."""
    previous = _previous[number]
    # A forked child has the handler, but not the locks.
    if _owner == os.getpid():
        _set_all(signal.SIG_IGN)
        _write(f"ended by {signal.Signals(number).name}; run the same command again to continue")
        _run_actions(number)
        if callable(previous):
            # submitit's, which would continue: see ``wait_for_kill``.
            previous(number, frame)
            wait_for_kill()
        _set_all(signal.SIG_DFL)
        for wait in _waits:
            wait()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _set_all(handler: signal.Handlers) -> None:
    for number in _previous:
        signal.signal(number, handler)


def _run_actions(number: int) -> None:
    for action in reversed(_actions):
        with contextlib.suppress(Exception):
            action(number)


def _write(line: str) -> None:
    """Writes to stderr without its buffer, which the interrupted code may be writing to."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode())
