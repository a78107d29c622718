"""The dialect of the scenarios themselves: calls and final blocks as text, which the system text explains."""

import json

from offscript.tasks.dialects.base import Dialect
from offscript.tasks.dialects.parts import answer_as_tool, say_text
from offscript.tasks.messages import Message
from offscript.tasks.prompts import MALFORMED_REPLY
from offscript.tasks.tool_calls import ToolCall, parse_reply


def write(call: ToolCall) -> Message:
    text = json.dumps({"tool": call.tool, "args": call.args}, ensure_ascii=False)
    return {"role": "assistant", "content": f"```tool_call\n{text}\n```"}


def begin(call: ToolCall, open_argument: str) -> str:
    args = json.dumps(call.args, ensure_ascii=False).removesuffix("}")
    return f'```tool_call\n{{"tool": "{call.tool}", "args": {args}, "{open_argument}": "'


DIALECT = Dialect(
    "text", parse_reply, say_text, write, answer_as_tool, begin, native=False, correction=MALFORMED_REPLY
)
