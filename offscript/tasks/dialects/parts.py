"""What several dialects share: messages with calls, results as JSON, and the search for a call in a reply."""

import json
import re
from collections.abc import Sequence

from offscript.tasks.messages import CalledFunction, Message
from offscript.tasks.tool_calls import (
    MAX_CANDIDATES,
    Final,
    Malformed,
    Parsed,
    ToolCall,
    interpret,
    object_at,
)
from offscript.tasks.tool_schemas import function_name

_JSON_CALL = re.compile(r'\s*\{\s*"(?:type|name|function|tool|tool_call|parameters|arguments)"\s*:')


def say_text(reply: str, parsed: Parsed) -> Message:
    """The reply as it is."""
    return {"role": "assistant", "content": reply}


def say_call(reply: str, parsed: Parsed, marks: Sequence[str] = ()) -> Message:
    """A message with ``tool_calls``; its content is what precedes the first of ``marks`` (or the first brace) in the
    reply. A reply without a call stands as it is."""
    if not isinstance(parsed, ToolCall):
        return say_text(reply, parsed)
    start = min((reply.find(mark) for mark in (*marks, "{") if mark in reply), default=len(reply))
    before = re.sub(r"```\w*\s*\Z", "", reply[:start]).strip()
    return write_call(parsed, before)


def write_call(call: ToolCall, before: str = "") -> Message:
    """A message with ``tool_calls``; ``before`` is what was said before the call."""
    function: CalledFunction = {"name": function_name(call.tool), "arguments": call.args}
    return {
        "role": "assistant",
        "content": before,
        "tool_calls": [{"type": "function", "function": function}],
    }


def answer_as_tool(result: str, parsed: Parsed) -> Message:
    """A result in the role ``tool``."""
    return {"role": "tool", "content": result}


def first_json_call(reply: str, announced: str | None = None) -> Parsed | None:
    """The first JSON object of ``reply`` that is a tool call; None if there is none.

    An object that is not valid JSON, even after repair, is Malformed if it begins like a call or follows ``announced``.
    """
    position = 0
    for _ in range(MAX_CANDIDATES):
        start = reply.find("{", position)
        if start < 0:
            return None
        expected = _JSON_CALL.match(reply, start) or (
            announced and reply[:start].rstrip().endswith(announced)
        )
        try:
            value, position = object_at(reply, start)
        except ValueError as problem:
            if expected:
                return Malformed(str(problem))
            position = start + 1
            continue
        if parsed := interpret(value):
            return parsed
        if announced and expected:
            return Malformed('a call needs "name" and "arguments"')
    return None


def final_unless(parsed: Parsed | None, reply: str) -> Parsed:
    """``parsed``; a reply without a call ends the episode."""
    return Final(reply.strip()) if parsed is None else parsed


def begin_json(call: ToolCall, open_argument: str, arguments_key: str) -> str:
    """A JSON call up to the opening quote of the argument ``open_argument``."""
    args = json.dumps(call.args, ensure_ascii=False).removesuffix("}")
    name = json.dumps(function_name(call.tool))
    return f'{{"name": {name}, "{arguments_key}": {args}{", " if call.args else ""}"{open_argument}": "'
