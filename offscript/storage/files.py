"""Whole files: the repository's root, atomic writes, JSON, folders."""

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from offscript.errors import UserError
from offscript.json_types import Json as Json
from offscript.settings import shown
from offscript.storage.json_text import parse_json

T = TypeVar("T")

HOME = Path(__file__).resolve().parents[2]
"""The repository's root. The files that it ships (conf, data, assets) are found from any working folder."""

PROBE_BYTES = 2**20
"""Size of the file that tests whether a disk is full: larger than the buffer of a library that failed to write."""
REMAKE = "delete it to have it made again"


def expand_home(path: str | Path) -> Path:
    """``path`` with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        UserError: there is no such user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = Path(expanded).parts[0]
        raise UserError(
            str(path), f"there is no home folder {user}", f"write ./{user} for a folder of that name"
        )
    return Path(expanded)


def user_cache() -> Path:
    """The folder of this program in the user's cache folder (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if os.path.isabs(cache) else expand_home("~/.cache")
    return root / "offscript"


def locate(path: str | Path) -> Path:
    """``path`` relative to the current folder if it exists there, else relative to the repository's root.

    Raises:
        UserError: it cannot be looked up (no permission, too long a name), or ``~user`` is unknown.
    """
    found = expand_home(path)
    # The root of an absolute path replaces HOME.
    return found if _exists(found) else HOME / found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}") from None


def resolve(pattern: str | Path) -> list[Path]:
    """The paths that ``pattern`` names: an existing file or folder, else the files that match it as a glob (``**`` for
    any depth), sorted by name. Looked up as ``locate`` does; [] if there are none.

    Raises:
        UserError: see ``locate``.
    """
    path = locate(pattern)
    if path.exists():
        return [path]
    for root in (Path(), HOME):
        matches = sorted(glob.glob(str(root / expand_home(pattern)), recursive=True))
        if files := [file for file in map(Path, matches) if file.is_file()]:
            return files
    return []


def read_bytes(path: Path, expected: str = "") -> bytes:
    """The content of a file. ``expected`` describes the file that is needed, for the message of one that cannot be read.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        # Reading a pipe or a device might never end.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(str(path), "is not a regular file", expected)
        return path.read_bytes()
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", expected) from None


def decode(content: bytes, path: Path, offset: int = 0) -> str:
    """The text in UTF-8 ``content``, without a byte order mark. It begins at byte ``offset`` of the file ``path``.

    Raises:
        UserError: it is not UTF-8.
    """
    # Without a byte order mark, the zero bytes of the first characters show the encoding, as in JSON's own rule.
    encoding = (
        json.detect_encoding(content) if content[:2] != b"\0\0" or content[2:4] == b"\xfe\xff" else "utf-8"
    )
    if not encoding.startswith("utf-8"):
        raise UserError(str(path), f"is {encoding[:6].upper()}", "save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"byte {offset + error.start} is not UTF-8", "save it as UTF-8") from None


def read_text(path: Path, expected: str = "") -> str:
    """The text of a UTF-8 file, without a byte order mark. ``expected``: see ``read_bytes``.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    return decode(read_bytes(path, expected), path)


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` atomically: a temporary file in the same folder, then a rename.

    Raises:
        UserError: the disk is full, or ``path`` may not be written; an existing file keeps its content.
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
        raise refused_by_system(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


FREE = "free some space and run again: the files are complete, and the run resumes"
ACCESS = "choose another root=, or get write access to this one"
REMEDIES = {
    errno.ENOSPC: FREE,
    errno.EDQUOT: FREE,
    errno.EFBIG: FREE,
    errno.EACCES: ACCESS,
    errno.EPERM: ACCESS,
    errno.EROFS: ACCESS,
    errno.ENOTDIR: "move the file away that stands where a folder is needed",
    errno.EISDIR: "move the folder away that stands where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "correct the symbolic links",
}
"""What to do where the operating system refuses a path, by error number."""


def refused_by_system(path: Path, error: OSError) -> BaseException:
    """A UserError for an ``error`` of REMEDIES in writing ``path``; ``error`` itself if it is another one."""
    if error.errno not in REMEDIES:
        return error
    return UserError(str(path), f"cannot be written ({error.strerror})", REMEDIES[error.errno])


def system_refusal(error: BaseException) -> UserError | None:
    """A UserError if ``error``, which was raised anywhere in a command, is one of REMEDIES; else None."""
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return None
    remedy = REMEDIES[error.errno]
    if isinstance(error.filename, str | bytes):
        return UserError(os.fsdecode(error.filename), str(error.strerror), remedy)
    # Without a file's name, a missing permission may be that of a process or of a network.
    return UserError("the disk", str(error.strerror), remedy) if remedy == FREE else None


@contextlib.contextmanager
def refusals_explained(path: Path) -> Iterator[None]:
    """Context for libraries that write into ``path``, a folder of the experiment. If the system refuses to write, their
    error is replaced by a UserError. safetensors names the errno in its message only, and torch not at all."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = error if isinstance(error, OSError) else _hidden_refusal(path, error)
        if refusal is None or (explained := refused_by_system(path, refusal)) is refusal:
            raise
        raise explained from error


def _hidden_refusal(path: Path, error: Exception) -> OSError | None:
    """The refusal of the system behind the error of a library that has written into ``path``; None if there is none."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as refusal:
        return refusal
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def write_json(path: Path, value: object) -> None:
    """Writes ``value`` as indented JSON with sorted keys, atomically.

    Raises:
        UserError: see ``write_text``.
        ValueError: ``value`` holds NaN or an infinity, which JSON has not.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str = REMAKE) -> Any:
    """The JSON value in ``path``.

    Raises:
        UserError: the file cannot be read, or is not JSON; ``remedy`` says what to do.
    """
    return parse_json(read_text(path), str(path), remedy, unique_keys=False)


def read_json_object(path: Path, *keys: str, remedy: str = REMAKE) -> dict[str, Any]:
    """The JSON object in ``path``, which has all ``keys``.

    Raises:
        UserError: the file cannot be read or is not JSON, its value is not an object, or a key is absent.
    """
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise UserError(str(path), f"damaged: found {shown(value)}, not an object", remedy)
    if absent := [key for key in keys if key not in value]:
        raise UserError(str(path), f"damaged: no {absent[0]}", remedy)
    return value


def read_record(path: Path, schema: type[T], remedy: str = REMAKE) -> T:
    """The JSON value in ``path``, which has the type ``schema`` (a TypedDict; further keys are left out).

    Raises:
        UserError: the file cannot be read or is not JSON, or its value has another type; names the first difference.
    """
    try:
        return TypeAdapter(schema).validate_python(read_json(path, remedy), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(str(path), f"damaged: {f'{where}: ' if where else ''}{message}", remedy) from None


def ensure_folder(path: Path) -> Path:
    """Creates the folder ``path`` and its parents, and returns it.

    Raises:
        UserError: one of them is a file, or cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        culprit = next(p for p in [path, *path.parents] if os.path.lexists(p) and not p.is_dir())
        raise UserError(str(culprit), "a file stands where a folder is needed", "move it away") from None
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "choose another root=")
        raise UserError(str(path), f"cannot make this folder ({error.strerror})", remedy) from None
    return path


def link_or_copy(source: Path, target: Path) -> None:
    """Makes ``target`` a hard link to the file ``source``, or a copy if the file system does not allow a link.

    Symbolic links are followed first: in the hub's cache they point to the files.
    """
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def new_folder(final: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary folder that is renamed to ``final`` at the end of the block, or deleted if the block raises.

    ``shared``: other processes may make the same folder at the same time, and read it; the first one stays.
    """
    ensure_folder(final.parent)
    scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    try:
        with refusals_explained(final):
            scratch.mkdir()
            yield scratch
        # Unless it is shared, the caller holds the claim and found no manifest: an existing folder is unfinished.
        if final.exists() and not shared:
            shutil.rmtree(final)
        try:
            os.replace(scratch, final)
        except OSError:
            # Another process was first: a folder is not renamed to one with files.
            if not (shared and final.is_dir()):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
