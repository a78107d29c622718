"""Qwen 2.5 (the Hermes notation): ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

The chat template puts the schemas into the system message and shows a result within ``<tool_response>``. Read as well: a
call without its closing tag, without tags, or in a code fence. Of several calls the first counts.
"""

from offscript.tasks.dialects.base import Dialect
from offscript.tasks.dialects.parts import (
    answer_as_tool,
    begin_json,
    final_unless,
    first_json_call,
    say_call,
    write_call,
)
from offscript.tasks.messages import Message
from offscript.tasks.tool_calls import Malformed, Parsed, ToolCall

TAG = "<tool_call>"


def parse(reply: str) -> Parsed:
    parsed = first_json_call(reply, TAG)
    if parsed is None and TAG in reply:
        return Malformed(f"there is no JSON object after {TAG}")
    return final_unless(parsed, reply)


def say(reply: str, parsed: Parsed) -> Message:
    return say_call(reply, parsed, (TAG,))


def begin(call: ToolCall, open_argument: str) -> str:
    return f"{TAG}\n{begin_json(call, open_argument, 'arguments')}"


DIALECT = Dialect(
    "qwen",
    parse,
    say,
    write_call,
    answer_as_tool,
    begin,
    takes_schemas=True,
    marks=(TAG, "</tool_call>"),
    template_marks=("tools", TAG),
)
