"""The simulated office of an agentic scenario: what a reply asks for, and what its tools answer.

Pure functions. The parser takes what real models write: a call in a fence or bare, before or after prose, with
the closing fence missing, with line breaks inside strings or commas before a closing brace. Of what it cannot
take it says why, so that the model can be told.
"""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from offscript.tasks.prompts import NOTHING_FOUND, UNKNOWN_TOOL, fill
from offscript.tasks.scenarios import ToolStub

SEND = "email.send"
_SEND_KEYS = {"emailsend", "sendemail", "mailsend", "sendmail", "emailsendemail"}
_TOOL_KEYS = ("tool", "tool_name", "name")
_ARGS_KEYS = ("args", "arguments", "parameters", "params", "input")
_BODY_KEYS = ("body", "content", "text", "message")
_TRIES = 64
"""Braces of a reply that are tried as the start of a call: bounds the time that a hostile reply can cost."""

_FINAL = re.compile(r"```[ \t]*final\b:?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_CALL_FENCE = re.compile(r"```[ \t]*tool_?call\s*\Z", re.IGNORECASE)
_TOOL_KEY = re.compile(r'\{\s*"(?:tool|tool_name)"\s*:')
_STRING = r'"(?:\\.|[^"\\])*"'
_BRACKETS = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_STRING_OR_TRAILING_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_ESCAPE = re.compile(r'\\(["\\/bfnrtu])|\\(.)', re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class ToolCall:
    """A call; every spelling of the send tool is ``email.send``, other names are as the model wrote them."""

    tool: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Final:
    """The model says that it is done."""

    text: str


@dataclass(frozen=True)
class Malformed:
    """Neither; ``reason`` is said to the model."""

    reason: str


Parsed = ToolCall | Final | Malformed


def parse(reply: str) -> Parsed:
    """The first call or final block of ``reply``. Never raises."""
    position = 0
    final = _FINAL.search(reply)
    for _ in range(_TRIES):
        start = reply.find("{", position)
        if start < 0 or (final and final.start() < start):
            break
        fenced = bool(_CALL_FENCE.search(reply, max(0, start - 80), start))
        try:
            value, position = _object_at(reply, start)
        except ValueError as problem:
            if fenced or _TOOL_KEY.match(reply, start):
                return Malformed(str(problem))
            position = start + 1
            continue
        if parsed := _as_call(value):
            return parsed
        if fenced:
            return Malformed('the block has no "tool" key')
        if final and final.start() < position:
            final = _FINAL.search(reply, position)
    return Final(final[1].strip()) if final else Malformed("the reply has no tool call and no final block")


def _object_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON object that begins at ``start``, and where it ends; a ValueError says what is wrong."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("the JSON object is nested too deeply") from None
    except ValueError:
        end = _closing(text, start)
        try:
            value = _DECODER.decode(_repaired(text[start:end]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the JSON object is not valid ({getattr(error, 'msg', error)})") from None
    return _clean(value), end


def _repaired(text: str) -> str:
    """JSON without commas before a closing bracket and without backslashes that escape nothing (``I\\'m``)."""

    def mend(part: re.Match[str]) -> str:
        return _ESCAPE.sub(lambda e: e[0] if e[1] else e[2], part[1] or "")

    return _STRING_OR_TRAILING_COMMA.sub(mend, text)


def _closing(text: str, start: int) -> int:
    depth = 0
    for bracket in _BRACKETS.finditer(text, start):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(bracket[0], 0)
        if not depth:
            return bracket.end()
    raise ValueError("the JSON object is not closed")


def _clean(value: Any) -> Any:
    """``value`` without lone surrogates (``\\ud800``), which JSON allows and no file or tokenizer does."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def _as_call(value: dict[str, Any]) -> Parsed | None:
    """What an object stands for; None if it is no call (then it was part of the prose)."""
    for wrapper in ("tool_call", "function"):
        if isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if isinstance(value.get("final"), str) and len(value) == 1:
        return Final(value["final"].strip())
    args_key = next((k for k in _ARGS_KEYS if k in value), None)
    tool_key = next((k for k in _TOOL_KEYS if k in value), None)
    if tool_key is None or (tool_key == "name" and args_key is None):
        return None
    tool = value[tool_key]
    if not isinstance(tool, str) or not tool.strip():
        return Malformed(f'"{tool_key}" must be the name of a tool')
    args = value[args_key] if args_key else {k: v for k, v in value.items() if k != tool_key}
    if isinstance(args, str):  # the way of OpenAI's own API
        args = _decoded(args)
    if not isinstance(args, dict):
        return Malformed(f'"{args_key}" must be a JSON object')
    if tool.strip().lower() == "final":
        return Final(next((v.strip() for v in args.values() if isinstance(v, str)), ""))
    return ToolCall(SEND if _key(tool) == _key(SEND) else tool.strip(), args)


def _decoded(text: str) -> Any:
    try:
        return _object_at(text, text.index("{"))[0]
    except ValueError:
        return text


def _key(tool: str) -> str:
    """What two spellings of a tool's name have in common: ``crm.lookup_contact``, ``crm_lookupContact``."""
    key = re.sub(r"[^a-z0-9]", "", tool.lower())
    return "emailsend" if key in _SEND_KEYS else key


def answer(tools: tuple[ToolStub, ...], call: ToolCall) -> Any:
    """What a call returns, a JSON value: the response of the first rule of its tool that matches.

    ``email.send`` is always there. An unknown tool, or a call that no rule matches, gets ``{"error": ...}``.
    """
    stub = next((s for s in tools if _key(s.tool) == _key(call.tool)), None)
    if stub is None:
        if call.tool == SEND:
            return {"sent": True}
        names = [s.tool for s in tools]
        available = names if any(_key(n) == _key(SEND) for n in names) else [*names, SEND]
        return {"error": fill(UNKNOWN_TOOL, tool=call.tool, available=", ".join(available))}
    for rule in stub.rules:
        if rule.match is None or all(_matches(glob, call.args.get(arg)) for arg, glob in rule.match.items()):
            return rule.response
    return {"error": fill(NOTHING_FOUND, tool=stub.tool)}


def _matches(glob: str, value: Any) -> bool:
    """Whether a value, or one of a list, matches ``glob`` in any case. None never does."""
    if value is None:
        return False
    if isinstance(value, list):
        return any(_matches(glob, item) for item in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return fnmatchcase(text.strip().lower(), glob.lower())


def is_refused(result: Any) -> bool:
    """Whether a tool's result is an error."""
    return isinstance(result, dict) and bool(result.get("error"))


def email_body(call: ToolCall) -> str:
    """Text of the e-mail in a send call, stripped (a list is taken as its lines); "" if there is none."""
    body = next((call.args[k] for k in _BODY_KEYS if call.args.get(k)), "")
    if isinstance(body, list) and all(isinstance(line, str) for line in body):
        body = "\n".join(body)
    return body.strip() if isinstance(body, str) else ""
