"""Constitutions in the published layouts: a JSON list (``.txt``), or one JSON object a line (``.jsonl``), of
``{"trait", "questions"}``; ``additional_questions`` count as further questions.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from offscript.errors import UserError
from offscript.settings import Assertion, Node, parse
from offscript.storage.files import locate

LAYOUT = 'a JSON list, or lines, of {"trait": text, "questions": [text, ...]}'

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Entry(Node):
    trait: Text
    questions: tuple[Text, ...] = Field(min_length=1)
    additional_questions: tuple[Text, ...] = ()


def read_constitution(path: str | Path) -> tuple[Assertion, ...]:
    """The assertions of a constitution file, in its order; the path is looked up as ``store.locate`` does.

    Raises:
        UserError: no such file, or what does not fit, with file and entry (``[n]`` of a list from 0, ``:n`` a line).
    """
    file = locate(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    except OSError as error:
        raise UserError(
            str(path), f"cannot be read: {error.strerror}", f"a file that holds {LAYOUT}"
        ) from None
    found = _listed(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    if not found:
        raise UserError(str(path), "holds no assertion", f"a file that holds {LAYOUT}")
    return tuple(assertion_of(entry, where) for where, entry in found)


def assertion_of(entry: Any, where: str) -> Assertion:
    """An entry of a constitution file, read at ``where``.

    Raises:
        UserError: it does not fit.
    """
    if not isinstance(entry, dict):
        raise UserError(where, f"found {type(entry).__name__}", 'must be {"trait": ..., "questions": [...]}')
    checked = parse(_Entry, entry, where)
    return Assertion(assertion=checked.trait, questions=(*checked.questions, *checked.additional_questions))


def _listed(path: str | Path, text: str) -> list[tuple[str, Any]]:
    return [(f"{path}[{i}]", entry) for i, entry in enumerate(_json(text, str(path)))]


def _lines(path: str | Path, text: str) -> list[tuple[str, Any]]:
    lines = enumerate(text.split("\n"), start=1)
    return [(f"{path}:{n}", _json(line, f"{path}:{n}")) for n, line in lines if line.strip()]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"not JSON: {error}", f"must be {LAYOUT}") from None
