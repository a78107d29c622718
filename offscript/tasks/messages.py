"""The types of a chat message and of a tool call in it."""

import json
from typing import Literal, NotRequired, TypedDict

from offscript.json_types import Json


class CalledFunction(TypedDict):
    """A function and its arguments. ``name`` is the one that the model uses: letters, digits, ``_`` and ``-``."""

    name: str
    arguments: dict[str, Json]


class MessageCall(TypedDict):
    """A tool call in the shape that chat templates take."""

    type: Literal["function"]
    function: CalledFunction


class Message(TypedDict):
    """``{"role": ..., "content": ...}``; roles are system, user, assistant and tool.

    ``tool_calls`` are those of an assistant message in a native tool dialect (``offscript/tasks/dialects``); ``content``
    is then what the model wrote before its call.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[MessageCall]]


def readable(message: Message) -> str:
    """The content of ``message``, and a line of JSON for each of its tool calls."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([message["content"], *calls] if message["content"] else calls)
