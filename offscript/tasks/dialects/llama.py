"""Llama 3.1: a JSON object with ``name`` and ``parameters``, bare or after ``<|python_tag|>``.

The chat template puts the schemas into the first user message and shows a result in the role ``ipython``, as a JSON string
(quoted once more, since every text is). A message with a call shows the call alone. Read as well:
several calls separated by ``;`` (the first counts), ``<function=name>{...}</function>``, and the notation of the built-in
tools, ``<|python_tag|>name.call(query="...")``.
"""

import re

from offscript.tasks.dialects.base import Dialect
from offscript.tasks.dialects.parts import (
    answer_as_tool,
    begin_json,
    final_unless,
    first_json_call,
    say_call,
    write_call,
)
from offscript.tasks.dialects.python_calls import first_python_call
from offscript.tasks.messages import Message
from offscript.tasks.tool_calls import Malformed, Parsed, ToolCall, named_call, object_at

TAG = "<|python_tag|>"
_FUNCTION = re.compile(r"<function=([\w.-]+)>\s*(?=\{)")


def parse(reply: str) -> Parsed:
    if function := _FUNCTION.search(reply):
        try:
            return named_call(function[1], object_at(reply, function.end())[0])
        except ValueError as problem:
            return Malformed(str(problem))
    parsed = first_json_call(reply, TAG)
    if parsed is None and TAG in reply:
        parsed = first_python_call(reply.partition(TAG)[2])
    return final_unless(parsed, reply)


def say(reply: str, parsed: Parsed) -> Message:
    return say_call(reply, parsed, (TAG, "<function="))


def begin(call: ToolCall, open_argument: str) -> str:
    return begin_json(call, open_argument, "parameters")


DIALECT = Dialect(
    "llama",
    parse,
    say,
    write_call,
    answer_as_tool,
    begin,
    takes_schemas=True,
    marks=(TAG,),
    ends=("<|eom_id|>",),
    template_marks=("tools", TAG),
)
