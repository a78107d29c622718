"""Locks: one writer per artifact.

``filelock.SoftFileLease`` is not used: see "Locks" in docs/LOG.md.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offscript.storage.files import ensure_folder, refused_by_system

HEARTBEAT_S = 10.0
STALE_S = 60.0


class Busy(Exception):
    """Another process is writing this artifact."""


@dataclass
class _Claim:
    """A lock that this process holds. ``renewed``: time of its last heartbeat, by a clock that also runs while the
    machine is suspended."""

    lock: Path
    token: str
    renewed: float


_claims: dict[Path, _Claim] = {}


@contextlib.contextmanager
def claim(
    artifact: Path, wait: bool = True, poll_s: float = 0.5, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Makes this process the only writer of ``artifact`` within the block.

    The lock file beside it is created with O_EXCL and touched every ``HEARTBEAT_S``. A lock that was not touched for
    ``STALE_S``, or whose process on this host has ended, is taken over at once. With ``wait`` the call blocks until the
    other writer ends, and reports that once through ``say``. A process that was suspended and lost its claim meanwhile
    exits as soon as it resumes.

    Raises:
        Busy: another process holds the lock, and ``wait`` is false.
        UserError: the lock file cannot be written.
    """
    lock = artifact.with_name(f".{artifact.name}.lock")
    ensure_folder(lock.parent)
    token = json.dumps({**_host(), "pid": os.getpid(), "since": time.time(), "id": uuid.uuid4().hex})
    reported = False
    while not _acquire(lock, token):
        if not wait:
            raise Busy(f"{artifact} is being written by {_describe_holder(lock)}")
        if say and not reported:
            say(f"waiting for {artifact.name}: being written by {_describe_holder(lock)}")
            reported = True
        time.sleep(poll_s)
    own = _claims[artifact] = _Claim(lock, token, time.time())
    stop = threading.Event()
    heartbeat = threading.Thread(target=_heartbeat, args=(own, stop), daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        stop.set()
        heartbeat.join()
        _claims.pop(artifact, None)
        if _read(lock) == token:
            lock.unlink(missing_ok=True)


def check_claim(artifact: Path) -> None:
    """Exits the process if it has lost its claim on ``artifact``. Called before each write; reads the lock file only
    after a missed heartbeat. A process that is suspended between this call and its write still writes that one row."""
    own = _claims.get(artifact)
    if own is not None and time.time() - own.renewed > 2 * HEARTBEAT_S:
        _renew(own)


def _host() -> dict[str, str]:
    """Where a process id is valid: containers on one host may share its name but not its processes."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return {"host": socket.gethostname(), "space": namespace}


def _acquire(lock: Path, token: str) -> bool:
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return _remove_stale(lock) and _acquire(lock, token)
    except OSError as error:
        raise refused_by_system(lock, error) from error
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
    except OSError as error:
        lock.unlink(missing_ok=True)
        raise refused_by_system(lock, error) from error
    return True


def _remove_stale(lock: Path) -> bool:
    """Removes a stale lock; returns whether it did, or another process did."""
    before = _read(lock)
    if before is None or not _is_stale(lock, before):
        return False
    renamed = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(lock, renamed)
        # Another process removed the stale lock first, and this is its new one: put it back.
        if _read(renamed) != before:
            with contextlib.suppress(FileExistsError):
                os.link(renamed, lock)
        renamed.unlink(missing_ok=True)
    return True


def _is_stale(lock: Path, content: str) -> bool:
    try:
        holder = json.loads(content)
    except ValueError:
        holder = {}
    if {**holder, **_host()} == holder and not _is_running(holder.get("pid", -1)):
        return True
    # A new file gives the time of the file server's clock, which may differ from ours.
    probe = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}.clock")
    try:
        probe.touch()
        return probe.stat().st_mtime - lock.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
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


def _describe_holder(lock: Path) -> str:
    try:
        holder = json.loads(_read(lock) or "")
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError):
        return "another process"


def _heartbeat(own: _Claim, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        _renew(own)


def _renew(own: _Claim) -> None:
    """Touches the lock. Exits the process if the lock belongs to another one: an artifact has one writer."""
    found = _read(own.lock)
    if found is not None and found != own.token:
        line = f"{own.lock}: taken over by {_describe_holder(own.lock)} while this process was suspended; exiting"
        print(line, file=sys.stderr, flush=True)
        os._exit(1)
    with contextlib.suppress(OSError):
        os.utime(own.lock)
        own.renewed = time.time()
