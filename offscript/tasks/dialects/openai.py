"""An OpenAI-compatible endpoint: the request has ``tools``, and the answer ``tool_calls``.

The engine writes an answer as one text, ``as_text``: what the model said, then a line of JSON with its calls. Of several
calls the first counts. Arguments that are no JSON object are repaired if possible; the model is told otherwise, in the
role ``user``, since a result must belong to a call.
"""

import json
from collections.abc import Sequence

from offscript.json_types import Json
from offscript.tasks.dialects.base import Dialect
from offscript.tasks.dialects.parts import final_unless, write_call
from offscript.tasks.messages import Message
from offscript.tasks.tool_calls import Malformed, Parsed, ToolCall, interpret

_LINE = '{"tool_calls": '


def as_text(content: str, calls: Sequence[dict[str, Json]]) -> str:
    """An answer of an endpoint as one text; ``calls`` are mappings with the keys ``name`` and ``arguments``."""
    line = json.dumps({"tool_calls": list(calls)}, ensure_ascii=False) if calls else ""
    return "\n".join(part for part in (content, line) if part)


def parse(reply: str) -> Parsed:
    _, calls = _parts(reply)
    if not calls:
        return final_unless(None, reply)
    # A call without arguments has none, or an empty text.
    return interpret({**calls[0], "arguments": calls[0].get("arguments") or {}}) or Malformed("no call")


def say(reply: str, parsed: Parsed) -> Message:
    if isinstance(parsed, ToolCall):
        return write_call(parsed, _parts(reply)[0])
    return {"role": "assistant", "content": reply}


def answer(result: str, parsed: Parsed) -> Message:
    return {"role": "tool" if isinstance(parsed, ToolCall) else "user", "content": result}


def _parts(reply: str) -> tuple[str, list[dict[str, Json]]]:
    """What the model said, and its calls."""
    content, mark, line = reply.rpartition(_LINE)
    if not mark or (content and not content.endswith("\n")):
        return reply, []
    try:
        calls = json.loads(mark + line)["tool_calls"]
    except ValueError:
        return reply, []
    return content.removesuffix("\n"), calls


DIALECT = Dialect("openai", parse, say, write_call, answer, None, takes_schemas=True, needs_endpoint=True)
