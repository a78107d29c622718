"""JSONL files of rows: a reader that refuses incomplete files, and a writer that resumes them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offscript.errors import MissingInput, UserError
from offscript.storage.files import ensure_folder, refused_by_system
from offscript.storage.locks import check_claim


def _parse_rows(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Rows of ``path``, the length of its complete lines in bytes, and the length of an incomplete last line."""
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:complete].split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}",
                f"not a JSON row ({error})",
                "correct or delete that line, then run again",
            ) from None
        rows.append(row)
    return rows, complete, len(data) - complete


def read_rows(path: Path, complete_with: str) -> list[dict[str, Any]]:
    """All rows of a JSONL file.

    Raises:
        MissingInput: the file does not exist; ``complete_with`` is the command that makes it.
        UserError: a line is not a JSON object, or the last line has no line end (its writer was killed).
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
    """Appends rows to a JSONL file. Each is passed to the operating system before ``append`` returns.

    Opening it reads the rows that are there into ``rows`` and cuts off an incomplete last line (``cut``: its length in
    bytes). The caller holds the claim on the artifact.

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
            rows, complete, self.cut = _parse_rows(path)
            self.rows += rows
            if self.cut:
                os.truncate(path, complete)
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
