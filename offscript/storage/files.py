"""Whole files: the repository's root, atomic writes, JSON, folders."""

import codecs
import contextlib
import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.json_types import Json as Json

HOME = Path(__file__).resolve().parents[2]
"""The repository's root. The files that it ships (conf, data, assets) are found from any working folder."""


def locate(path: str | Path) -> Path:
    """``path`` relative to the current folder if it exists there, else relative to the repository's root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else HOME / path


def resolve(pattern: str | Path) -> list[Path]:
    """The paths that ``pattern`` names: an existing file or folder, else the files that match it as a glob (``**`` for
    any depth), sorted by name. Looked up as ``locate`` does; [] if there are none."""
    path = locate(pattern)
    if path.exists():
        return [path]
    for root in (Path(), HOME):
        matches = sorted(glob.glob(str(root / Path(pattern).expanduser()), recursive=True))
        if files := [file for file in map(Path, matches) if file.is_file()]:
            return files
    return []


def read_text(path: Path, expected: str = "") -> str:
    """The text of a UTF-8 file, without a byte order mark.

    ``expected`` describes the file that is needed, for the message of one that cannot be read.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "is UTF-16" if utf_16 else f"byte {error.start} is not UTF-8"
        raise UserError(str(path), found, "save it as UTF-8") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", expected) from None


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


def refused_by_system(path: Path, error: OSError) -> BaseException:
    """A UserError for a full disk or a missing permission; ``error`` itself if it is another one."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space and run again: the files are complete, and the run resumes"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose another root=, or get write access to this one"
    else:
        return error
    return UserError(str(path), f"cannot be written ({error.strerror})", remedy)


def write_json(path: Path, value: object) -> None:
    """Writes ``value`` as indented JSON with sorted keys, atomically.

    Raises:
        UserError: see ``write_text``.
        ValueError: ``value`` holds NaN or an infinity, which JSON has not.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"not JSON ({error})", "delete it to have it made again") from None


def ensure_folder(path: Path) -> Path:
    """Creates the folder ``path`` and its parents, and returns it.

    Raises:
        UserError: one of them is a file, or cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        culprit = next(p for p in [path, *path.parents] if p.exists() and not p.is_dir())
        raise UserError(str(culprit), "a file stands where a folder is needed", "move it away") from None
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another root="
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
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``final`` at the end of the block, or deleted if the block raises."""
    ensure_folder(final.parent)
    scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    scratch.mkdir()
    try:
        yield scratch
        # The caller holds the claim and found no manifest: an existing folder is unfinished.
        if final.exists():
            shutil.rmtree(final)
        os.replace(scratch, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
