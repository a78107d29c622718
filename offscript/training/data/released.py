"""Training rows that others released (maius/OpenCharacterTraining-data), in the shapes that training takes.

A file is JSONL. Preference rows are ``{"chosen": [messages], "rejected": [messages]}``, a prompt and a reply on both
sides; conversations are ``{"messages": [messages]}``. Keys beside these are left alone. What is kept of them is decided by
the very checks that our own rows pass.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ConfigDict, field_validator

from offscript.errors import UserError
from offscript.seeds import stable_hash
from offscript.settings import Node, parse
from offscript.storage.files import read_text
from offscript.storage.json_text import parse_object
from offscript.tasks.messages import Message
from offscript.training.data.base import SourceRow


class _LooseNode(Node):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_LooseNode):
    role: Literal["system", "user", "assistant"]
    content: str


class _Pair(_LooseNode):
    chosen: tuple[_Message, ...]
    rejected: tuple[_Message, ...]

    @field_validator("*")
    @classmethod
    def _prompt_and_reply(cls, messages: tuple[_Message, ...]) -> tuple[_Message, ...]:
        if not messages or messages[-1].role != "assistant" or "user" not in (m.role for m in messages):
            raise ValueError(
                f"has the roles {_roles(messages)}; a prompt of the user's, and last a reply of the assistant's"
            )
        return messages


class _Conversation(_LooseNode):
    messages: tuple[_Message, ...]

    @field_validator("messages")
    @classmethod
    def _someone_asks(cls, messages: tuple[_Message, ...]) -> tuple[_Message, ...]:
        if "user" not in (m.role for m in messages):
            raise ValueError(f"has the roles {_roles(messages)}; at least one message of the user's")
        return messages


Loose = TypeVar("Loose", bound=_LooseNode)


def read_pairs(path: Path) -> tuple[list[SourceRow], list[SourceRow]]:
    """Rows of a file of preference pairs as (teacher rows, student rows): a family per prompt, the n-th row of a prompt
    its sample n.

    Raises:
        UserError: the file cannot be read, or a line is no such row (names it).
    """
    seen: Counter[str] = Counter()
    teacher: list[SourceRow] = []
    student: list[SourceRow] = []
    for row in _read(path, _Pair):
        chosen = _row(row.chosen, seen, row.chosen[-1].content, _plain(row.chosen))
        teacher.append(chosen)
        student.append({**chosen, "text": row.rejected[-1].content, "messages": _plain(row.rejected)})
    return teacher, student


def read_conversations(
    paths: Sequence[Path], ends_in_user: bool = False
) -> tuple[list[SourceRow], list[SourceRow]]:
    """Conversations of files as (reflections, interactions): one exchange counts as a reflection, a longer conversation
    as an interaction; a family per first prompt.

    ``ends_in_user``: the last assistant turn of an interaction will be removed, so one that ends in a user turn gets one.

    Raises:
        UserError: a file cannot be read, or a line is no such row (names it).
    """
    seen: Counter[str] = Counter()
    reflections: list[SourceRow] = []
    interactions: list[SourceRow] = []
    for path in paths:
        for row in _read(path, _Conversation):
            messages = _plain(row.messages)
            single = [m["role"] for m in messages if m["role"] != "system"] == ["user", "assistant"]
            if ends_in_user and messages[-1]["role"] == "user":
                messages.append({"role": "assistant", "content": "."})
            found = _row(row.messages, seen, None, messages)
            (reflections if single else interactions).append(found)
    return reflections, interactions


def _row(
    conversation: Sequence[_Message], seen: Counter[str], text: str | None, messages: list[Message]
) -> SourceRow:
    """A rollout row of ``messages``; scenario and family, which released rows lack, come from the first prompt."""
    prompt = next(m.content for m in conversation if m.role == "user")
    name = f"{stable_hash('published prompt', prompt):016x}"
    seen[name] += 1
    return {
        "scenario": name,
        "family": name,
        "sample": seen[name] - 1,
        "text": text,
        "ended": "stop",
        "turns": sum(m["role"] == "assistant" for m in messages),
        "messages": messages,
        # Not known of rows that others made.
        "tokens_out": 0,
    }


def _plain(messages: Sequence[_Message]) -> list[Message]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _roles(messages: Sequence[_Message]) -> str:
    return ", ".join(m.role for m in messages) or "none"


def _read(path: Path, schema: type[Loose]) -> Iterator[Loose]:
    for number, line in enumerate(read_text(path, "a JSONL file").split("\n"), 1):
        if line.strip():
            yield _parsed(line, f"{path}:{number}", schema)


def _parsed(line: str, where: str, schema: type[Loose]) -> Loose:
    allowed = f"one JSON object a line, with {' and '.join(schema.model_fields)}"
    row = parse_object(line, where, allowed)
    if missing := schema.model_fields.keys() - row.keys():
        raise UserError(where, f"no {sorted(missing)[0]}", allowed)
    try:
        return parse(schema, row, f"{where}: row")
    except UserError as error:  # with the whole text of a message, as it may be
        found = error.found if len(error.found) <= 100 else f"{error.found[:97]}..."
        raise UserError(error.where, found, error.allowed) from None
