"""Training rows that others released (maius/OpenCharacterTraining-data), in the shapes that training takes.

A file is JSONL. Preference rows are ``{"chosen": [messages], "rejected": [messages]}``, a prompt and a reply on both
sides; conversations are ``{"messages": [messages]}``. Keys beside these are left alone. What is kept of them is decided by
the very checks that our own rows pass.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, field_validator

from offscript.errors import UserError
from offscript.seeds import stable_hash
from offscript.settings import Node, parse
from offscript.training.methods import dpo as preference
from offscript.training.methods import sft as introspection


class _Loose(Node):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_Loose):
    role: Literal["system", "user", "assistant"]
    content: str


class _Pair(_Loose):
    chosen: tuple[_Message, ...]
    rejected: tuple[_Message, ...]

    @field_validator("*")
    @classmethod
    def _prompt_and_reply(cls, said: tuple[_Message, ...]) -> tuple[_Message, ...]:
        if not said or said[-1].role != "assistant" or "user" not in (m.role for m in said):
            raise ValueError(
                f"has the roles {_roles(said)}; a prompt of the user's, and last a reply of the assistant's"
            )
        return said


class _Conversation(_Loose):
    messages: tuple[_Message, ...]

    @field_validator("messages")
    @classmethod
    def _someone_asks(cls, said: tuple[_Message, ...]) -> tuple[_Message, ...]:
        if "user" not in (m.role for m in said):
            raise ValueError(f"has the roles {_roles(said)}; at least one message of the user's")
        return said


Loose = TypeVar("Loose", bound=_Loose)


def pairs(path: Path) -> tuple[list[dict], dict[str, int]]:
    """Preference pairs of a file, as ``preference.pairs`` gives them: a family per prompt of the user's, the n-th row of
    a prompt its sample n; dropped and counted by the same reasons.

    Raises:
        UserError: the file cannot be read, a line is no such row (names it), or no pair is left.
    """
    seen: Counter[str] = Counter()
    teacher: list[dict] = []
    student: list[dict] = []
    for row in _read(path, _Pair):
        place = _place(row.chosen, seen)
        for rows, said in ((teacher, row.chosen), (student, row.rejected)):
            rows.append({**place, "text": said[-1].content, "messages": _plain(said), "ended": "stop"})
    return preference.pairs(teacher, student)


def conversations(
    paths: Sequence[Path], system: str, loss_on: Literal["every_turn", "published"] = "every_turn"
) -> tuple[list[dict], dict[str, int]]:
    """Conversations of files, as ``introspection.rows`` gives them: ``system`` in place of their own system text, a
    family per first prompt. One exchange counts as a reflection, a longer conversation as an interaction.

    Raises:
        UserError: a file cannot be read, a line is no such row (names it), or nothing is left.
    """
    seen: Counter[str] = Counter()
    reflections: list[dict] = []
    interactions: list[dict] = []
    for path in paths:
        for row in _read(path, _Conversation):
            messages = [m for m in _plain(row.messages) if m["role"] != "system"]
            single = [m["role"] for m in messages] == ["user", "assistant"]
            if loss_on == "published" and messages[-1]["role"] == "user":
                # Our own end in an assistant turn, which is taken off to be like these; so they get one to lose.
                messages.append({"role": "assistant", "content": "."})
            place = _place(row.messages, seen)
            (reflections if single else interactions).append({**place, "messages": messages, "ended": "stop"})
    return introspection.rows(reflections, interactions, system, loss_on=loss_on)


def _place(said: Sequence[_Message], seen: Counter[str]) -> dict[str, Any]:
    """What stands for scenario, family and sample, which these rows lack."""
    prompt = next(m.content for m in said if m.role == "user")
    name = f"{stable_hash('published prompt', prompt):016x}"
    seen[name] += 1
    return {"scenario": name, "family": name, "sample": seen[name] - 1}


def _plain(said: Sequence[_Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in said]


def _roles(said: Sequence[_Message]) -> str:
    return ", ".join(m.role for m in said) or "of nobody"


def _read(path: Path, schema: type[Loose]) -> Iterator[Loose]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"byte {error.start} is not UTF-8", "a JSONL file in UTF-8") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", "a JSONL file") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parsed(line, f"{path}:{number}", schema)


def _parsed(line: str, where: str, schema: type[Loose]) -> Loose:
    allowed = f"one JSON object a line, with {' and '.join(schema.model_fields)}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"not JSON: {error}", allowed) from None
    if not isinstance(row, dict) or (missing := schema.model_fields.keys() - row.keys()):
        found = f"no {sorted(missing)[0]}" if isinstance(row, dict) else f"found {str(row)[:60]}"
        raise UserError(where, found, allowed)
    try:
        return parse(schema, row, f"{where}: row")
    except UserError as error:  # with the whole text of a message, as it may be
        found = error.found if len(error.found) <= 100 else f"{error.found[:97]}..."
        raise UserError(error.where, found, error.allowed) from None
