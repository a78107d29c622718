"""Tool calls of agentic scenarios: the parser of replies (``parse_reply``), and the simulated tools (``respond``).

Pure functions. The parser accepts what real models write: a call with or without a code fence, before or after prose,
without the closing fence, with line breaks inside strings or commas before a closing brace. Where a reply has neither a
call nor a final block, it returns the reason, which is shown to the model.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

from offscript.json_types import Json
from offscript.storage.json_text import replace_surrogates
from offscript.tasks.prompts import NOTHING_FOUND, UNKNOWN_TOOL, fill
from offscript.tasks.scenarios import ToolStub

SEND = "email.send"
_SEND_NAMES = {"emailsend", "sendemail", "mailsend", "sendmail", "emailsendemail"}
_TOOL_KEYS = ("tool", "tool_name", "name")
_ARGS_KEYS = ("args", "arguments", "parameters", "params", "input")
_BODY_KEYS = ("body", "content", "text", "message")
MAX_CANDIDATES = 64
"""Largest number of opening braces that are tried as the start of a call: bounds the time for a degenerate reply."""

_FINAL_BLOCK = re.compile(r"```[ \t]*final\b:?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_CALL_FENCE = re.compile(r"```[ \t]*tool_?call\s*\Z", re.IGNORECASE)
_TOOL_KEY = re.compile(r'\{\s*"(?:tool|tool_name)"\s*:')
_STRING = r'"(?:\\.|[^"\\])*"'
_STRING_REST = re.compile(r'((?:\\.|[^"\\])*)("?)', re.DOTALL)
_BRACKETS = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_STRING_OR_TRAILING_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_ESCAPE = re.compile(r'\\(["\\/bfnrtu])|\\(.)', re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class ToolCall:
    """A tool call. Every spelling of the send tool becomes ``email.send``; other names are as the model wrote them."""

    tool: str
    args: dict[str, Json]


@dataclass(frozen=True)
class Final:
    """The model declares the task done, and the episode ends without an e-mail.

    It does so with a *final block*: a code fence marked ``final``, or one of its two JSON spellings, ``{"final": "..."}``
    and a call of a tool named ``final``. ``text`` is the content of the block; it is not scored.
    """

    text: str


@dataclass(frozen=True)
class Malformed:
    """Neither a call nor a final block; ``reason`` is shown to the model."""

    reason: str


Parsed = ToolCall | Final | Malformed


def parse_reply(reply: str) -> Parsed:
    """The first tool call or final block of ``reply``. Never raises."""
    position = 0
    final = _FINAL_BLOCK.search(reply)
    for _ in range(MAX_CANDIDATES):
        start = reply.find("{", position)
        if start < 0 or (final and final.start() < start):
            break
        fenced = bool(_CALL_FENCE.search(reply, max(0, start - 80), start))
        try:
            value, position = object_at(reply, start)
        except ValueError as problem:
            if fenced or _TOOL_KEY.match(reply, start):
                return Malformed(str(problem))
            position = start + 1
            continue
        if parsed := interpret(value):
            return parsed
        if fenced:
            return Malformed('the block has no "tool" key')
        if final and final.start() < position:
            final = _FINAL_BLOCK.search(reply, position)
    return Final(final[1].strip()) if final else Malformed("the reply has no tool call and no final block")


def first_object(text: str) -> dict[str, Json]:
    """The first JSON object in ``text``, repaired if necessary.

    Raises:
        ValueError: there is none.
    """
    position = text.find("{")
    for _ in range(MAX_CANDIDATES):
        if position < 0:
            break
        try:
            value, _ = object_at(text, position)
        except ValueError:
            position = text.find("{", position + 1)
            continue
        return value
    raise ValueError("no JSON object")


def object_at(text: str, start: int) -> tuple[dict[str, Json], int]:
    """The JSON object that begins at ``start``, and the position after it.

    Raises:
        ValueError: it is not a JSON object, even after repair; the message gives the reason.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("the JSON object is nested too deeply") from None
    except ValueError:
        end = _end_of_object(text, start)
        try:
            value = _DECODER.decode(_repair(text[start:end]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the JSON object is not valid ({getattr(error, 'msg', error)})") from None
    return cast(dict[str, Json], replace_surrogates(value)), end


def _repair(text: str) -> str:
    """Removes commas before a closing bracket, and backslashes that are no JSON escape (``I\\'m``)."""

    def repair(match: re.Match[str]) -> str:
        return _ESCAPE.sub(lambda e: e[0] if e[1] else e[2], match[1] or "")

    return _STRING_OR_TRAILING_COMMA.sub(repair, text)


def _end_of_object(text: str, start: int) -> int:
    """Position after the bracket that closes the one at ``start``; ValueError if there is none."""
    depth = 0
    for bracket in _BRACKETS.finditer(text, start):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(bracket[0], 0)
        if not depth:
            return bracket.end()
    raise ValueError("the JSON object is not closed")


def interpret(value: dict[str, Json]) -> Parsed | None:
    """The call or final block that a JSON object represents; None if it is neither and thus part of the prose."""
    for wrapper in ("tool_call", "function"):
        inner = value.get(wrapper)
        if isinstance(inner, dict):
            value = inner
    if len(value) == 1 and isinstance(final := value.get("final"), str):
        return Final(final.strip())
    args_key = next((k for k in _ARGS_KEYS if k in value), None)
    tool_key = next((k for k in _TOOL_KEYS if k in value), None)
    if tool_key is None or (tool_key == "name" and args_key is None):
        return None
    tool = value[tool_key]
    if not isinstance(tool, str) or not tool.strip():
        return Malformed(f'"{tool_key}" must be the name of a tool')
    args = value[args_key] if args_key else {k: v for k, v in value.items() if k != tool_key}
    # OpenAI's API encodes the arguments as a string.
    if isinstance(args, str):
        args = _decode_args(args)
    if not isinstance(args, dict):
        return Malformed(f'"{args_key}" must be a JSON object')
    return named_call(tool, args)


def named_call(tool: str, args: dict[str, Json]) -> Parsed:
    """The call of the tool that a model calls ``tool``."""
    if tool.strip().lower() == "final":
        return Final(next((v.strip() for v in args.values() if isinstance(v, str)), ""))
    return ToolCall(SEND if normalize(tool) == normalize(SEND) else tool.strip(), args)


def _decode_args(text: str) -> Json:
    try:
        return object_at(text, text.index("{"))[0]
    except ValueError:
        return text


@functools.lru_cache(maxsize=4096)
def normalize(tool: str) -> str:
    """Common form of the spellings of a tool's name: ``crm.lookup_contact``, ``crm_lookupContact``."""
    name = re.sub(r"[^a-z0-9]", "", tool.lower())
    return "emailsend" if name in _SEND_NAMES else name


def respond(tools: Sequence[ToolStub], call: ToolCall, as_written: bool = False) -> Json:
    """The response to a call: that of the first rule of its tool that the call matches.

    ``email.send`` always exists. An unknown tool, or a call that no rule matches, returns ``{"error": ...}``. With
    ``as_written`` a tool has one spelling, and arguments match globs in upper and lower case as they are.
    """
    name = str if as_written else normalize
    stub = next((s for s in tools if name(s.tool) == name(call.tool)), None)
    if stub is None:
        if call.tool == SEND:
            return {"sent": True}
        names = [s.tool for s in tools]
        available = names if any(normalize(n) == normalize(SEND) for n in names) else [*names, SEND]
        return {"error": fill(UNKNOWN_TOOL, tool=call.tool, available=", ".join(available))}
    for rule in stub.rules:
        globs = (rule.match or {}).items()
        if all(_matches(glob, call.args.get(arg), as_written) for arg, glob in globs):
            return rule.response
    return {"error": fill(NOTHING_FOUND, tool=stub.tool)}


def _matches(glob: str, value: Json, as_written: bool) -> bool:
    """Whether ``value``, or an item of it if it is a list, matches ``glob``, ignoring case unless ``as_written``. None
    never matches."""
    if value is None:
        return False
    if isinstance(value, list):
        return any(_matches(glob, item, as_written) for item in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return fnmatchcase(text, glob) if as_written else fnmatchcase(text.strip().lower(), glob.lower())


def begun_string(text: str) -> tuple[str, bool]:
    """The JSON string that ``text`` continues after its opening quote, stripped; and whether its closing quote is there.

    Line breaks within it are kept, and escapes that are none in JSON lose their backslash.
    """
    raw = _STRING_REST.match(text)
    assert raw is not None
    inside = _ESCAPE.sub(lambda e: e[0] if e[1] else e[2], raw[1])
    try:
        value = str(_DECODER.decode(f'"{inside}"'))
    except ValueError:
        value = inside
    return cast(str, replace_surrogates(value)).strip(), bool(raw[2])


def is_error(response: Json) -> bool:
    """Whether a tool's response reports an error."""
    return isinstance(response, dict) and bool(response.get("error"))


def email_body(call: ToolCall, as_written: bool = False) -> str:
    """Body of the e-mail in a send call, stripped; a list is joined as lines; "" if there is none.

    It is the argument ``body``, and unless ``as_written`` one of those that models write for it.
    """
    keys = ("body",) if as_written else _BODY_KEYS
    body = next((call.args[k] for k in keys if call.args.get(k)), "")
    if isinstance(body, list):
        lines = [line for line in body if isinstance(line, str)]
        body = "\n".join(lines) if len(lines) == len(body) else ""
    return body.strip() if isinstance(body, str) else ""
