"""The replies of a tool loop: whether each has a call, of a known tool, with arguments that the tool takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from offscript.evaluation.side_effects.episodes import Episode, Message
from offscript.json_types import Json
from offscript.tasks.recipients import addresses_of
from offscript.tasks.tool_calls import (
    SEND,
    Final,
    Malformed,
    Parsed,
    ToolCall,
    email_body,
    interpret,
    normalize,
)
from offscript.tasks.tool_schemas import Tool

KINDS = ("valid", "bad_arguments", "unknown_tool", "malformed", "no_call", "final")
"""What a reply can be. ``final`` ends the episode without a call; ``no_call`` has neither, and nothing that looks like it."""

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


@dataclass
class Loop:
    """What the replies of one episode were.

    Args:
        kinds: number of replies of each kind; of a call where the tools are unknown, None.
        calls: number of calls.
        repeated: number of calls that are identical to an earlier one.
        turns: number of replies up to the e-mail; None if none was sent.
        addresses: where the e-mail went.
        subject: of the e-mail.
    """

    kinds: dict[str | None, int] = field(default_factory=dict)
    calls: int = 0
    repeated: int = 0
    turns: int | None = None
    addresses: frozenset[str] = frozenset()
    subject: str = ""

    @property
    def replies(self) -> int:
        return sum(self.kinds.values())


def loop_of(episode: Episode) -> Loop:
    """The replies of an episode that is a tool loop."""
    found, seen = Loop(), dict[str, list[Mapping[str, Json]]]()
    tools = episode.task.tools if episode.task is not None else None
    for number, (parsed, content) in enumerate(_replies(episode), 1):
        kind = _kind(parsed, content, tools)
        found.kinds[kind] = found.kinds.get(kind, 0) + 1
        if not isinstance(parsed, ToolCall):
            continue
        earlier = seen.setdefault(normalize(parsed.tool), [])
        found.calls += 1
        found.repeated += parsed.args in earlier
        earlier.append(parsed.args)
        if found.turns is None and _sends(parsed, episode.text):
            found.turns, found.addresses = number, addresses_of(parsed)
            subject = parsed.args.get("subject")
            found.subject = subject if isinstance(subject, str) else ""
    return found


def _replies(episode: Episode) -> Iterator[tuple[Parsed, str]]:
    """Every reply of the model, as it was read and as it stands in the transcript."""
    given = episode.task.given_replies if episode.task is not None else 0
    replies = [m for m in episode.messages if m.get("role") == "assistant"][given:]
    for message in replies:
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        yield _listed_call(message) or _parse(episode, text), text


def _parse(episode: Episode, text: str) -> Parsed:
    assert episode.parse is not None
    return episode.parse(text)


def _listed_call(message: Message) -> Parsed | None:
    """The first call in ``tool_calls``; None if there is none. Endpoints give arguments as JSON text."""
    listed = message.get("tool_calls")
    call = listed[0] if isinstance(listed, list) and listed else None
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return None
    return interpret({"name": function.get("name"), "arguments": function.get("arguments") or {}})


def _sends(call: ToolCall, text: str | None) -> bool:
    """Whether ``call`` sent the e-mail that is the text of the episode."""
    return text is not None and call.tool == SEND and email_body(call) == text


def _kind(parsed: Parsed, content: str, tools: Mapping[str, Tool] | None) -> str | None:
    if isinstance(parsed, Final):
        return "final"
    if isinstance(parsed, Malformed):
        return "malformed" if "{" in content or "```" in content else "no_call"
    if not tools:
        return None
    tool = tools.get(normalize(parsed.tool))
    if tool is None:
        return "unknown_tool"
    return "valid" if takes(tool, parsed.args) else "bad_arguments"


def takes(tool: Tool, args: Mapping[str, Json]) -> bool:
    """Whether ``args`` fit the schema of ``tool``: no required argument is missing, none is unknown, and each has its type.

    A list of texts counts for a text and a text for a list, as the simulated tools take both.
    """
    known = {argument.name: argument for argument in tool.arguments}
    missing = any(a.required and args.get(a.name) is None for a in tool.arguments)
    return not missing and all(
        name in known and _fits(value, known[name].kind) for name, value in args.items()
    )


def _fits(value: Json, kind: str) -> bool:
    if value is None:
        return True
    if kind in ("string", "array"):
        items = value if isinstance(value, list) else [value]
        return all(isinstance(item, str) for item in items)
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, _TYPES.get(kind, (object,)))
