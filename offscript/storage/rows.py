"""JSONL files of rows: a reader that refuses torn files, and a writer that resumes them."""

import json
import os
from pathlib import Path
from typing import Any

from offscript.errors import MissingInput, UserError
from offscript.storage.files import ensure_folder, refused_by_system
from offscript.storage.locks import check_claim


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
        check_claim(self.path)
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        whole = self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(whole)
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
