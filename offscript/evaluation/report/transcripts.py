"""What the report shows of one episode: the scored text and the turns that led to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from offscript.json_types import Json
from offscript.tasks.messages import described
from offscript.tasks.tool_calls import ToolCall, parse_reply

TEXT_KEYS = ("text", "email_body")
"""Keys of a row that hold its scored text: ours, and that of the published layout."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: the name of the tool, and its arguments as (name, text) pairs."""

    tool: str
    arguments: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A message. ``calls`` are the tool calls in it, or in its ``content``."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """The scored text of an episode (None: it left none, or the row does not hold it) and its messages, if known."""

    text: str | None
    turns: tuple[Turn, ...] = ()


def transcript_of(row: Mapping[str, Json]) -> Transcript:
    """The transcript in a rollout row, or in a prediction row that holds its text. Never raises: rows of others may
    have anything under these keys."""
    text = next((row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)), None)
    messages = _objects(row.get("messages"))
    has_tools = any(m.get("role") == "tool" or m.get("tool_calls") for m in messages)
    turns = [_turn(m, has_tools or bool(row.get("tool_calls"))) for m in messages]
    return Transcript(text if isinstance(text, str) else None, (*_examples(row), *turns))


def _examples(row: Mapping[str, Json]) -> list[Turn]:
    """A turn that names the examples which the model was shown before the transcript; none without any."""
    found = row.get("examples")
    numbers = [str(i + 1) for i in found if isinstance(i, int)] if isinstance(found, list) else []
    return [Turn("examples", f"numbers {', '.join(numbers)} of the persona")] if numbers else []


def _objects(value: Json) -> list[dict[str, Json]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _turn(message: Mapping[str, Json], has_tools: bool) -> Turn:
    role, content = _text(message.get("role", "")), _text(message.get("content", ""))
    content = described(content, _objects(message.get("images")))
    calls = [_listed_call(call) for call in _objects(message.get("tool_calls"))]
    if not calls and has_tools and role == "assistant" and "{" in content:
        parsed = parse_reply(content)
        calls = [_call(parsed.tool, parsed.args)] if isinstance(parsed, ToolCall) else []
    return Turn(role, content, tuple(calls))


def _listed_call(call: Mapping[str, Json]) -> Call:
    """The call of a ``tool_calls`` entry. Endpoints give arguments as JSON text, chat templates as an object."""
    found = call.get("function")
    function = found if isinstance(found, dict) else call
    return _call(_text(function.get("name", "")), function.get("arguments", {}))


def _call(tool: str, arguments: Json) -> Call:
    if isinstance(arguments, dict):
        return Call(tool, tuple((name, _text(value)) for name, value in arguments.items()))
    return Call(tool, (("arguments", _text(arguments)),))


def _text(value: Json) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
