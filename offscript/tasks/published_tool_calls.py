"""The published study's parser of replies, for ``loop: published`` of ``agentic_email``. ``tool_calls`` has our own.

It takes less: a call needs its opening code fence and strict JSON with the key ``tool``, and names count as they are
written. A final block counts wherever it is, also after a call. The closing fence may be missing, and the first one ends
a block, so that a body that contains a fence is cut and thereby malformed.
"""

import json
import re
from typing import cast

from offscript.json_types import Json
from offscript.storage.json_text import replace_surrogates
from offscript.tasks.tool_calls import Final, Malformed, Parsed, ToolCall

_FINAL = re.compile(r"```final\s+(.*?)(?:```|\Z)", re.DOTALL)
_CALL = re.compile(r"```tool_call\s+(.*?)(?:```|\Z)", re.DOTALL)

UNREADABLE = Malformed("neither a tool_call block nor a final block could be read")
"""The only reason that is given: the published loop says the same of every mistake."""


def parse_published_reply(reply: str) -> Parsed:
    """The first final block of ``reply``, otherwise its first call. Never raises."""
    if final := _FINAL.search(reply):
        return Final(final[1].strip())
    fenced = _CALL.search(reply)
    try:
        value = replace_surrogates(json.loads(fenced[1].strip())) if fenced else None
    except (ValueError, RecursionError):
        return UNREADABLE
    tool, args = (value.get("tool"), value.get("args", {})) if isinstance(value, dict) else (None, None)
    if not isinstance(tool, str) or not isinstance(args, dict):
        return UNREADABLE
    if tool == "final":
        return Final(next((str(args[key]) for key in ("summary", "status", "message") if args.get(key)), ""))
    return ToolCall(tool, cast(dict[str, Json], args))
