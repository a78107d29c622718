"""The tokens of the scored text in a rendered conversation, whose activations are read.

The text of an episode is the whole of a reply in chat, a part of it in other formats, and in a tool loop a JSON string in a
call, where line breaks and quotes are escaped.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offscript.errors import UserError
from offscript.models.chat_templates import Schemas
from offscript.settings import TemplateSettings
from offscript.tasks.messages import Message
from offscript.training.spans import Unstable, last_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""[start, end) in characters."""

BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding included; a longer text has a pass of its own."""

_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"({_HIGH}{_LOW}|\\u[0-9a-fA-F]{{4}}|\\[\"\\/bfnrt])|\\(.)", re.DOTALL)


@dataclass(frozen=True)
class ScoredTokens:
    """A conversation up to the end of the reply that holds the scored text.

    ``ids`` and ``inside`` have equal lengths; ``inside`` is true for the tokens of the text. ``whole_reply``: the text was
    not found word for word, and the tokens are those of the whole last reply.
    """

    ids: list[int]
    inside: list[bool]
    whole_reply: bool = False


def scored_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    text: str,
    template: TemplateSettings,
    tools: Schemas = (),
) -> ScoredTokens:
    """The conversation that the model had before it when it wrote ``text``, rendered as in training, with that text.

    Of several replies that hold the text it is the last one. What follows that reply is left out.

    Args:
        messages: the transcript of an episode, with at least one reply.
        text: what is scored, not empty.
        tools: schemas of the tools that the model was told of.

    Raises:
        UserError: the tokenizer gives no positions, or the chat template changes the replies.
    """
    if not tokenizer.is_fast:
        found = f"the tokenizer {tokenizer.name_or_path} does not say where its tokens are in a text"
        raise UserError("evaluation.projections", found, "a fast tokenizer (tokenizer.json), or false")
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    rendered: tuple[str, str] | None = None
    for i in reversed(turns):
        try:
            prompt, reply = last_turn(tokenizer, messages[: i + 1], template, tools)
        except Unstable:
            continue
        rendered = rendered or (prompt, reply)
        if spans := find(text, _written(messages[i], reply)):
            return _marked(tokenizer, prompt, reply, spans, False)
    if rendered is None:
        raise UserError(
            "model.template", "the chat template changes every reply", "evaluation.projections=false"
        )
    prompt, reply = rendered
    return _marked(tokenizer, prompt, reply, [(0, len(_written(messages[turns[-1]], reply)))], True)


def _written(message: Message, reply: str) -> str:
    """The part of a rendered ``reply`` that the model wrote, without the template's end tokens where the two can be told
    apart."""
    said = message["content"].strip()
    lead = len(reply) - len(reply.lstrip())
    if said and "tool_calls" not in message and reply.startswith(said, lead):
        return reply[: lead + len(said)]
    return reply


def _marked(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, reply: str, spans: Sequence[Span], whole_reply: bool
) -> ScoredTokens:
    encoded = tokenizer(prompt + reply, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    places: list[Span] = encoded["offset_mapping"]
    inside = [False] * len(ids)
    for start, end in ((len(prompt) + start, len(prompt) + end) for start, end in spans):
        touched = [k for k, (first, last) in enumerate(places) if first < end and last > start]
        if touched:
            # Some tokenizers give tokens of white space no characters: the whole range, not the tokens one by one.
            inside[touched[0] : touched[-1] + 1] = [True] * (touched[-1] + 1 - touched[0])
    if not any(inside):
        # An empty reply to the tokenizer: the last token is what the model made of it.
        inside[-1] = True
    last = max(k for k, mark in enumerate(inside) if mark)
    return ScoredTokens(ids[: last + 1], inside[: last + 1], whole_reply)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of texts of these lengths in batches of at most ``BATCH_TOKENS`` tokens with their padding, longest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


# ---------------------------------------------------------------- characters


def find(text: str, reply: str) -> list[Span]:
    """Where ``text`` stands in ``reply``, in characters; empty if it does not.

    It is looked for as it is, then as a JSON string, then line by line (texts of several JSON strings or of several parts
    of a reply are joined with line breaks), each line after the one before.
    """
    if (start := reply.rfind(text)) >= 0:
        return [(start, start + len(text))]
    plain, places = _without_escapes(reply)
    if (start := plain.rfind(text)) >= 0:
        return [(places[start], places[start + len(text)])]
    spans: list[Span] = []
    position = 0
    for line in filter(None, map(str.strip, text.splitlines())):
        start = plain.find(line, position)
        if start < 0:
            return []
        position = start + len(line)
        spans.append((places[start], places[position]))
    return spans


def _without_escapes(reply: str) -> tuple[str, list[int]]:
    """``reply`` with the escapes of JSON strings replaced by what they stand for, and where each of its characters, and its
    end, is in ``reply``. A backslash that begins no escape is dropped, as the parser of calls does."""
    plain: list[str] = []
    places: list[int] = []
    position = 0
    for match in _ESCAPE.finditer(reply):
        plain += reply[position : match.start()]
        places += range(position, match.start())
        escape, other = match.groups()
        plain.append(json.loads(f'"{escape}"') if escape else other)
        places.append(match.start())
        position = match.end()
    plain += reply[position:]
    places += range(position, len(reply) + 1)
    return "".join(plain), places
