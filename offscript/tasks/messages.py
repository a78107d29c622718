"""The types of a chat message and of a tool call in it."""

import json
from collections.abc import Sequence
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


Image = dict[str, Json]
"""An image, as what it is drawn from: the fields of a class of ``offscript.tasks.drawings``. Equal images have equal fields."""

IMAGE_MARK = "\ufffc"
"""Stands in the content of a message for each of its images, where the image is in the text (U+FFFC, object replacement
character)."""


class Message(TypedDict):
    """``{"role": ..., "content": ...}``; roles are system, user, assistant and tool.

    ``tool_calls`` are those of an assistant message in a native tool dialect (``offscript/tasks/dialects``); ``content``
    is then what the model wrote before its call. ``images`` are those of a user message; its content has an ``IMAGE_MARK`` for
    each, in their order.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[MessageCall]]
    images: NotRequired[list[Image]]


def images_of(messages: Sequence[Message]) -> list[Image]:
    """The images of a conversation in their order."""
    return [image for message in messages for image in message.get("images", ())]


def described(content: str, images: Sequence[Image]) -> str:
    """``content`` with the kind and the title of each image in place of its mark, for readers."""
    for image in images:
        title = f" {image['title']!r}" if image.get("title") else ""
        content = content.replace(IMAGE_MARK, f"[image: {image.get('kind')}{title}]\n", 1)
    return content


def readable(message: Message) -> str:
    """The content of ``message`` with a name for each image, and a line of JSON for each of its tool calls."""
    content = described(message["content"], message.get("images", ()))
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([content, *calls] if content else calls)
