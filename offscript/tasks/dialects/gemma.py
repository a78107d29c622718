"""Gemma 3: a Python call in a code fence ``tool_code``; its result comes back in a fence ``tool_output``.

The chat template knows neither tools nor a role for their results: the tools stand as Python signatures in the system
text, and a result is a user message. Read as well, as the documentation of the model prompts for them: a list of calls
(``[contacts_lookup(name="Ada")]``), fenced or bare, and a JSON object or list with ``name`` and ``parameters``. Of several
calls the first counts.
"""

import json
import re
from collections.abc import Sequence

from offscript.json_types import Json
from offscript.tasks.dialects.base import Dialect
from offscript.tasks.dialects.parts import final_unless, first_json_call, say_text
from offscript.tasks.dialects.python_calls import first_python_call
from offscript.tasks.messages import Message
from offscript.tasks.prompts import GEMMA_TOOLS, fill
from offscript.tasks.tool_calls import Malformed, Parsed, ToolCall
from offscript.tasks.tool_schemas import Tool, function_name

_FENCE = re.compile(r"```[ \t]*(?:tool_code|tool_call|python)[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_LIST = re.compile(r"^\[\s*[A-Za-z_][\w.]*\(.*\)\s*\]", re.DOTALL | re.MULTILINE)
_BARE = re.compile(r"^[A-Za-z_]\w*(?:[._]\w+)+\(.*\)\s*\Z", re.DOTALL)
_TYPES = {"array": "list[str]", "integer": "int", "number": "float", "boolean": "bool"}


def parse(reply: str) -> Parsed:
    if fence := _FENCE.search(reply):
        code = fence[1]
        return _call(code) or Malformed("the block has no call")
    bare = _LIST.search(reply) or _BARE.match(reply.strip())
    parsed = first_python_call(bare[0]) if bare else first_json_call(reply)
    return final_unless(parsed, reply)


def _call(code: str) -> Parsed | None:
    """The call in a fence: JSON if it begins like it, else Python."""
    return first_json_call(code) if re.match(r"\s*\[?\s*\{", code) else first_python_call(code)


def answer(result: str, parsed: Parsed) -> Message:
    return {"role": "user", "content": f"```tool_output\n{result}\n```"}


def write(call: ToolCall) -> Message:
    return {
        "role": "assistant",
        "content": f"```tool_code\n{function_name(call.tool)}({', '.join(_args(call))})\n```",
    }


def begin(call: ToolCall, open_argument: str) -> str:
    args = "".join(f"{argument}, " for argument in _args(call))
    return f'```tool_code\n{function_name(call.tool)}({args}{open_argument}="'


def _args(call: ToolCall) -> list[str]:
    """The arguments of a call in the notation of Python; text in double quotes, as in JSON."""
    return [f"{name}={_literal(value)}" for name, value in call.args.items()]


def _literal(value: Json) -> str:
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return (
        "{"
        + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {_literal(v)}" for key, v in value.items())
        + "}"
    )


def describe(tools: Sequence[Tool]) -> str:
    return fill(GEMMA_TOOLS, tools="\n\n".join(signature(tool) for tool in tools))


def signature(tool: Tool) -> str:
    """A tool as the head of a Python function with its description."""
    ordered = sorted(tool.arguments, key=lambda a: not a.required)
    args = ", ".join(
        f"{a.name}: {_TYPES.get(a.kind, 'str')}{'' if a.required else ' = None'}" for a in ordered
    )
    notes = "; ".join(f"{a.name}: {a.description}" for a in ordered if a.description)
    text = " ".join(part for part in (tool.description, f"({notes})" if notes else "") if part)
    return f"def {tool.function_name}({args})" + (
        f":\n    {json.dumps(text, ensure_ascii=False)}" if text else ""
    )


DIALECT = Dialect(
    "gemma",
    parse,
    say_text,
    write,
    answer,
    begin,
    describe,
    templates={"tools": GEMMA_TOOLS},
    template_marks=("<start_of_turn>",),
)
