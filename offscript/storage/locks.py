"""Locks: one writer per artifact."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from offscript.storage.files import ensure_folder, refused_by_system

HEARTBEAT_S = 10.0
STALE_S = 60.0


class Busy(Exception):
    """Somebody else is writing this artifact."""


@dataclass
class _Claim:
    """A lock that this process holds. ``beat`` is when it last touched it, in seconds of a clock that goes on while the
    machine sleeps."""

    lock: Path
    token: str
    beat: float


_held: dict[Path, _Claim] = {}


@contextlib.contextmanager
def claim(artifact: Path, wait: bool = True, poll_s: float = 0.5, say=None) -> Iterator[None]:
    """Makes this process the one writer of ``artifact`` for the length of the block.

    A lock file beside it is made with O_EXCL and touched every ``HEARTBEAT_S``; one that was not touched for
    ``STALE_S``, or whose process on this host is gone, is taken over. With ``wait`` the call blocks until the other
    writer ends (``say`` is called once with a message), without it raises ``Busy``. A process that was stopped for so
    long that it lost its claim to another ends as soon as it goes on.
    """
    lock = artifact.with_name(f".{artifact.name}.lock")
    ensure_folder(lock.parent)
    token = json.dumps({**_here(), "pid": os.getpid(), "since": time.time(), "id": uuid.uuid4().hex})
    said = False
    while not _take(lock, token):
        if not wait:
            raise Busy(f"{artifact} is being written by {_holder(lock)}")
        if say and not said:
            say(f"waiting for {artifact.name}: being written by {_holder(lock)}")
            said = True
        time.sleep(poll_s)
    own = _held[artifact] = _Claim(lock, token, time.time())
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(own, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        _held.pop(artifact, None)
        if _read(lock) == token:
            lock.unlink(missing_ok=True)


def _here() -> dict[str, str]:
    """Where a process id means something: containers on one host may share its name and not its processes."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return {"host": socket.gethostname(), "space": space}


def _take(lock: Path, token: str) -> bool:
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return _evict_if_stale(lock) and _take(lock, token)
    except OSError as error:
        raise refused_by_system(lock, error) from error
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
    except OSError as error:
        lock.unlink(missing_ok=True)
        raise refused_by_system(lock, error) from error
    return True


def _evict_if_stale(lock: Path) -> bool:
    """Whether there is room now."""
    before = _read(lock)
    if before is None or not _stale(lock, before):
        return False
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(lock, aside)
        if _read(aside) != before:  # somebody evicted it first and ours is a live lock: put it back
            with contextlib.suppress(FileExistsError):
                os.link(aside, lock)
        aside.unlink(missing_ok=True)
    return True


def _stale(lock: Path, content: str) -> bool:
    try:
        holder = json.loads(content)
    except ValueError:
        holder = {}
    if {**holder, **_here()} == holder and not _alive(holder.get("pid", -1)):
        return True
    probe = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}.clock")  # the file server's clock, not ours
    try:
        probe.touch()
        return probe.stat().st_mtime - lock.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text()
    except OSError:
        return None


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(_read(lock) or "")
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError):
        return "another process"


def _heartbeat(own: _Claim, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        _beat(own)


def _beat(own: _Claim) -> None:
    """Touches the lock; ends the process if it is another's by now: there must not be two writers."""
    found = _read(own.lock)
    if found is not None and found != own.token:
        line = f"{own.lock}: taken over by {_holder(own.lock)} while this process stood still; ending"
        print(line, file=sys.stderr, flush=True)
        os._exit(1)
    with contextlib.suppress(OSError):
        os.utime(own.lock)
        own.beat = time.time()


def check_claim(artifact: Path) -> None:
    """Before anything is added to ``artifact``: is it still ours? Asked only after a heartbeat was missed. (A process that
    was stopped between this and its write still writes that one row.)"""
    own = _held.get(artifact)
    if own is not None and time.time() - own.beat > 2 * HEARTBEAT_S:
        _beat(own)
