"""Constitutions in the published layouts: a JSON list (``.txt``), or one JSON object a line (``.jsonl``), of
``{"trait", "questions"}``; ``additional_questions`` are appended to the questions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.settings import Assertion, HubFileSettings, Node, parse, shown
from offscript.storage import hub
from offscript.storage.files import locate, read_text
from offscript.storage.json_text import check_encodable, parse_json
from offscript.storage.options import options_of
from offscript.storage.references import fill_published, reference

MUST_BE = 'must be a JSON list, or lines, of {"trait": text, "questions": [text, ...]}'

PERSONA = "{persona}"
"""In the source of a constitution: the persona's name."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Entry(Node):
    trait: Text
    questions: tuple[Text, ...] = Field(min_length=1)
    additional_questions: tuple[Text, ...] = ()


def sources_of(constitution: Json) -> list[Json]:
    """The sources in a value of ``persona.constitution``: a path, a file on the hub (``{repo, file}``), or a list of them;
    empty for a list of assertions."""
    sources = constitution if isinstance(constitution, list) else [constitution]
    named = all(isinstance(s, str) or (isinstance(s, dict) and "repo" in s) for s in sources)
    return [*sources] if named else []


def find_constitution(sources: Sequence[Json], persona: str, published: str | None) -> Path:
    """The first file of ``sources`` that exists for ``persona``, whose name takes the place of ``{persona}``; one on the
    hub is fetched. ``published``: see ``fill_published``.

    Raises:
        UserError: there is none, or the hub refuses it.
    """
    where = f"persona.constitution (persona={persona})"
    for source in sources:
        if isinstance(source, dict):
            file = parse(HubFileSettings, source, "persona.constitution")
            ref = reference(file.model_copy(update={"file": file.file.replace(PERSONA, persona)}))
            assert ref is not None
            return hub.fetch(ref)
        path = _path(str(source), persona, published)
        if locate(path).exists() or (len(sources) == 1 and PERSONA not in str(source)):
            return path
    tried = " or ".join(str(_path(str(s), persona, published)) for s in sources)
    others = [
        name
        for name in options_of("persona")
        if any(isinstance(s, str) and locate(_path(s, name, published)).exists() for s in sources)
    ]
    remedy = f"add it, or take other personas: grid.persona=[{','.join(others)}]" if others else "add it"
    raise UserError(where, f"no file {tried}", remedy)


def _path(source: str, persona: str, published: str | None) -> Path:
    return Path(fill_published(source.replace(PERSONA, persona), published, "persona.constitution"))


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
