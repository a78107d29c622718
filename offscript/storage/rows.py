"""JSONL files of rows: a reader that refuses incomplete files, and a writer that resumes them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from offscript.errors import MissingInput, UserError
from offscript.storage.files import decode, ensure_folder, read_bytes, refused_by_system
from offscript.storage.json_text import parse_object
from offscript.storage.locks import check_claim

A_ROW = "correct or delete that line, then run again"


class _Parsed(NamedTuple):
    """The rows of the complete lines of a file, the number of these lines and of their bytes, and what follows them."""

    rows: list[dict[str, Any]]
    lines: int
    complete: int
    last: bytes


def _parse_rows(path: Path) -> _Parsed:
    """Blank lines are skipped. Only a newline ends a line: texts may hold other separators, such as U+2028."""
    data = read_bytes(path)
    complete = data.rfind(b"\n") + 1
    lines = decode(data[:complete], path).split("\n")[:-1]
    rows = [
        parse_object(line, f"{path}, line {number}", A_ROW)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return _Parsed(rows, len(lines), complete, data[complete:])


def read_rows(path: Path, complete_with: str) -> list[dict[str, Any]]:
    """All rows of a JSONL file. The last line needs no line end.

    Raises:
        MissingInput: the file does not exist; ``complete_with`` is the command that makes it.
        UserError: a line is not a JSON object, or the last line is the beginning of one (its writer was killed).
    """
    if not path.exists():
        raise MissingInput(str(path), "does not exist", f"make it with: {complete_with}")
    if path.is_dir():
        raise UserError(str(path), "is a folder", "a file of JSON lines is needed")
    rows, lines, complete, last = _parse_rows(path)
    if last.strip():
        where = f"{path}, line {lines + 1}"
        if _is_torn(last):
            raise UserError(
                where,
                f"the last line is torn ({len(last)} bytes without a line end: its writer was killed)",
                f"complete it with: {complete_with}",
            )
        rows.append(parse_object(decode(last, path, complete), where, A_ROW))
    return rows


def _is_torn(line: bytes) -> bool:
    """Whether ``line`` begins a JSON object and does not end it."""
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        # The cut may lie within a character.
        json.loads(line.decode("utf-8", "replace"))
    except json.JSONDecodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


class RowWriter:
    """Appends rows to a JSONL file. Each is passed to the operating system before ``append`` returns.

    Opening it reads the rows that are there into ``rows`` and cuts off an incomplete last line (``cut``: its length in
    bytes). Appended rows are not kept in memory. The caller holds the claim on the artifact.

    Raises:
        UserError: ``path`` is a folder, or a line in it is not a JSON object.
    """

    def __init__(self, path: Path) -> None:
        ensure_folder(path.parent)
        if path.is_dir():
            raise UserError(str(path), "a folder stands where a file is needed", "move it away")
        self.path, self.cut = path, 0
        self.rows: list[Mapping[str, object]] = []
        if path.exists():
            found = _parse_rows(path)
            self.rows += found.rows
            self.cut = len(found.last)
            if self.cut:
                os.truncate(path, found.complete)
        # Unbuffered: a buffer would keep a row that the disk had no room for, and write it again when it is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__

    def append(self, row: Mapping[str, object]) -> None:
        """Writes one row of plain JSON data.

        Raises:
            UserError: the disk is full; the rows before this one stay complete.
        """
        check_claim(self.path)
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        complete = self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(complete)
            raise refused_by_system(self.path, error) from error

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
