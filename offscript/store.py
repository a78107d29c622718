"""Plain files that survive a kill: atomic writes, JSONL rows with resume, manifests, and one writer per artifact."""

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.errors import MissingInput, UserError

HEARTBEAT_S = 10.0
STALE_S = 60.0


# ---------------------------------------------------------------- places

HOME = Path(__file__).resolve().parents[1]
"""The repository's root: what is shipped (conf, data, assets) is found there from any working folder."""


def locate(path: str | Path) -> Path:
    """``path`` from the current folder if something is there, else from the repository's root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else HOME / path


# ---------------------------------------------------------------- whole files


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` whole or not at all: a temporary name in the same folder, then a rename.

    Raises:
        UserError: the disk is full, or this may not be written; what was there before stays.
    """
    ensure_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> BaseException:
    """What the file system would not take, in one line for the user; the error itself if it is of another kind."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        ways = "free some space and run again: what is written is whole and goes on from there"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        ways = "choose another root=, or have this one opened"
    else:
        return error
    return UserError(str(path), f"cannot be written ({error.strerror})", ways)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON with sorted keys, atomically. NaN is refused (ValueError): JSON has none."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        UserError: it does not hold JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"not JSON ({error})", "delete it to have it made again") from None


def ensure_folder(path: Path) -> Path:
    """Makes ``path`` and its parents.

    Raises:
        UserError: a file stands where a folder is needed, or the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        culprit = next(p for p in [path, *path.parents] if p.exists() and not p.is_dir())
        raise UserError(str(culprit), "a file stands where a folder is needed", "move it away") from None
    except OSError as error:
        ways = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another root="
        raise UserError(str(path), f"cannot make this folder ({error.strerror})", ways) from None
    return path


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A scratch folder that takes the name ``final`` when the block ends well, and vanishes when it does not."""
    ensure_folder(final.parent)
    scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    scratch.mkdir()
    try:
        yield scratch
        if (
            final.exists()
        ):  # only ever a half-made one: whoever calls this holds the claim and found no manifest
            shutil.rmtree(final)
        os.replace(scratch, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ---------------------------------------------------------------- rows


def _parse_rows(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Rows of ``path``, the byte length of its whole lines, and the byte length of a torn last line."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}",
                f"not a JSON row ({error})",
                "mend or delete that line, then run again",
            ) from None
        rows.append(row)
    return rows, whole, len(data) - whole


def read_rows(path: Path, complete_with: str) -> list[dict[str, Any]]:
    """All rows of a JSONL file, for a reader.

    Raises:
        MissingInput: the file does not exist; ``complete_with`` is the command that makes it.
        UserError: a line is not a JSON object, or the last line is torn (its writer was killed).
    """
    if not path.exists():
        raise MissingInput(str(path), "does not exist", f"make it with: {complete_with}")
    if path.is_dir():
        raise UserError(str(path), "is a folder", "a file of JSON lines is needed")
    rows, _, torn = _parse_rows(path)
    if torn:
        raise UserError(
            f"{path}, line {len(rows) + 1}",
            f"the last line is torn ({torn} bytes without a line end: its writer was killed)",
            f"complete it with: {complete_with}",
        )
    return rows


class RowWriter:
    """Appends rows to a JSONL file, each handed to the system before ``append`` returns.

    On opening, the rows already there are in ``rows`` and a torn last line is cut (``cut`` holds its bytes).
    The caller holds the claim on the artifact: a file has one writer.
    """

    def __init__(self, path: Path) -> None:
        ensure_folder(path.parent)
        if path.is_dir():
            raise UserError(str(path), "a folder stands where a file is needed", "move it away")
        self.path, self.cut = path, 0
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows, whole, self.cut = _parse_rows(path)
            if self.cut:
                os.truncate(path, whole)
        # Without a buffer: a row that the disk had no room for would lie in it and be tried again at the end.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row.

        Raises:
            UserError: the disk is full, or somebody else took over the artifact; the rows before this one stay whole.
        """
        _check_claim(self.path)
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        whole = self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(whole)
            raise _refused(self.path, error) from error
        self.rows.append(row)

    def close(self) -> None:
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---------------------------------------------------------------- manifests


def manifest_path(artifact: Path) -> Path:
    """Where the manifest of an artifact lies: inside a folder, beside a file. Decided by the name's suffix."""
    return (
        artifact.with_name(artifact.name + ".manifest.json")
        if artifact.suffix
        else artifact / "manifest.json"
    )


def write_manifest(artifact: Path, manifest: dict[str, Any]) -> None:
    """Marks ``artifact`` as finished. Written last: an artifact without a manifest is work in progress."""
    write_json(manifest_path(artifact), manifest)


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    """The manifest of a finished artifact, or None. An artifact that itself was deleted counts as not finished."""
    path = manifest_path(artifact)
    return read_json(path) if path.exists() and artifact.exists() else None


# ---------------------------------------------------------------- claims


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
        raise _refused(lock, error) from error
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
    except OSError as error:
        lock.unlink(missing_ok=True)
        raise _refused(lock, error) from error
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


def _check_claim(artifact: Path) -> None:
    """Before anything is added to ``artifact``: is it still ours? Asked only after a heartbeat was missed. (A process that
    was stopped between this and its write still writes that one row.)"""
    own = _held.get(artifact)
    if own is not None and time.time() - own.beat > 2 * HEARTBEAT_S:
        _beat(own)
