"""Constitutions in the published layouts: a JSON list (``.txt``), or one JSON object a line (``.jsonl``), of
``{"trait", "questions"}``; ``additional_questions`` are appended to the questions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.settings import Assertion, Node, parse, shown
from offscript.storage.files import locate, read_text
from offscript.storage.json_text import check_encodable, parse_json

MUST_BE = 'must be a JSON list, or lines, of {"trait": text, "questions": [text, ...]}'

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Entry(Node):
    trait: Text
    questions: tuple[Text, ...] = Field(min_length=1)
    additional_questions: tuple[Text, ...] = ()


def read_constitution(path: str | Path) -> tuple[Assertion, ...]:
    """The assertions of a constitution file, in its order; ``path`` is looked up as ``storage.files.locate`` does.

    Raises:
        UserError: there is no such file, or an entry is invalid. The message names file and entry (``[n]`` in a list,
            counted from 0; ``:n`` for a line, counted from 1).
    """
    file = locate(path)
    if not file.exists():
        raise UserError(str(path), "no such file", MUST_BE)
    text = read_text(file, MUST_BE)
    entries = list(_entries(str(path), text))
    if not entries:
        raise UserError(str(path), "holds no assertion", MUST_BE)
    return tuple(assertion_of(entry, where) for where, entry in entries)


def assertion_of(entry: Json, where: str) -> Assertion:
    """The assertion in an entry of a constitution file; ``where`` is the entry's location.

    Raises:
        UserError: the entry is invalid.
    """
    if not isinstance(entry, dict):
        raise UserError(where, f"found {shown(entry)}", 'must be {"trait": ..., "questions": [...]}')
    check_encodable(entry, where)
    checked = parse(_Entry, entry, where)
    return Assertion(assertion=checked.trait, questions=(*checked.questions, *checked.additional_questions))


def _entries(path: str, text: str) -> Iterator[tuple[str, Json]]:
    """Location and JSON value of each entry."""
    if text.lstrip().startswith("["):
        listed = parse_json(text, path, MUST_BE)
        assert isinstance(listed, list)
        for i, entry in enumerate(listed):
            yield f"{path}[{i}]", entry
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}:{number}", parse_json(line, f"{path}:{number}", MUST_BE)
