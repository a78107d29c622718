"""Locks: one writer per artifact.

``filelock.SoftFileLease`` is not used: see "Locks" in docs/LOG.md.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from offscript import signals
from offscript.json_types import Json
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
    other writer ends, and reports that once through ``say``. A signal that ends the process releases the claim. A
    process that was suspended and lost its claim meanwhile exits as soon as it resumes.

    Raises:
        Busy: another process holds the lock, and ``wait`` is false.
        UserError: the lock file cannot be written.
    """
    lock = _lock_of(artifact)
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
    with signals.before_end(lambda number: _release(own)):
        try:
            yield
        finally:
            stop.set()
            heartbeat.join()
            _claims.pop(artifact, None)
            _release(own)


def _release(own: _Claim) -> None:
    if _read(own.lock) == own.token:
        own.lock.unlink(missing_ok=True)


def check_claim(artifact: Path) -> None:
    """Exits the process if it has lost its claim on ``artifact``. Called before each write; reads the lock file only
    after a missed heartbeat. A process that is suspended between this call and its write still writes that one row."""
    own = _claims.get(artifact)
    if own is not None and time.time() - own.renewed > 2 * HEARTBEAT_S:
        _renew(own)


def writing_since(artifact: Path, ended: float = 0.0) -> float | None:
    """When the process that is writing ``artifact`` started, in seconds since 1970; None if there is none.

    That is: there is no lock, its process on this host has ended, or it was not touched for ``STALE_S`` or after its job
    ``ended``. Nothing is written, so that anyone who can read the folder can ask.
    """
    lock = _lock_of(artifact)
    try:
        touched = lock.stat().st_mtime
        holder = _parse(lock.read_text(errors="replace"))
    except OSError:
        return None
    if _has_ended(holder) or time.time() - touched > STALE_S or touched < ended:
        return None
    since = holder.get("since")
    return float(since) if isinstance(since, int | float) else touched


def _lock_of(artifact: Path) -> Path:
    return artifact.with_name(f".{artifact.name}.lock")


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
    if _has_ended(_parse(content)):
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


def _parse(content: str) -> dict[str, Json]:
    """The holder that a lock names; {} for a lock that was not written whole."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _has_ended(holder: Mapping[str, Json]) -> bool:
    """Whether the holder was a process of this host that has ended."""
    pid = holder.get("pid")
    return {**holder, **_host()} == holder and not (isinstance(pid, int) and _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0 and not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended, but its parent has not asked for its exit code. In a container, the first process
    may never ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(errors="replace")
    except OSError:
        return None


def _describe_holder(lock: Path) -> str:
    holder = _parse(_read(lock) or "")
    if "pid" not in holder or "host" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']}"


def _heartbeat(own: _Claim, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        _renew(own)


def _renew(own: _Claim) -> None:
    """Touches the lock. Exits the process if the lock belongs to another one: an artifact has one writer."""
    found = _read(own.lock)
    if found is not None and found != own.token:
        silent = time.time() - own.renewed
        signals.exit_at_once(
            f"{own.lock}: taken over by {_describe_holder(own.lock)}, since this process was suspended or could not "
            f"touch it for {silent:.0f} seconds; exiting"
        )
    with contextlib.suppress(OSError):
        os.utime(own.lock)
        own.renewed = time.time()
