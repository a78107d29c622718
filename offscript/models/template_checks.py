"""Checks of a chat template, made when a tokenizer is loaded."""

import contextlib
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offscript.console import say
from offscript.errors import UserError
from offscript.models.bounded import OutOfBounds, call_bounded
from offscript.models.chat_templates import (
    apply,
    join_consecutive,
    map_roles,
    place_of,
    render,
    render_text,
    source_of,
)
from offscript.settings import TemplateSettings
from offscript.tasks.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bounds on rendering the short conversations below; the templates of the supported families take 1 ms.
MAX_SECONDS, MAX_MEMORY, MAX_CHARACTERS = 10.0, 256 * 2**20, 100_000

_SYSTEM: Message = {"role": "system", "content": "Alpha."}
_USER: Message = {"role": "user", "content": "Bravo."}
_REPLY: Message = {"role": "assistant", "content": "Charlie."}
_TOOL: Message = {"role": "tool", "content": "Delta."}
_PROBES: list[list[Message]] = [[_USER], [_USER, _REPLY], [_SYSTEM, _USER, _REPLY, _TOOL]]

_bounded: set[tuple[str, str]] = set()
"""Templates and policies whose rendering is known to end."""


def check_template(tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings) -> None:
    """Checks that the chat template can be rendered, and renders the text of every role.

    A template that drops the system message without an error would prompt every persona with nothing.

    Raises:
        UserError: there is no template, or it takes too much time or memory, fails, depends on the date or on chance, or
            leaves out the text of a role.
    """
    source = source_of(tokenizer)
    if re.search(r"\|\s*random\b|\blipsum\b", source):
        raise UserError(
            place_of(tokenizer),
            "the chat template draws at random",
            "equal prompts are needed: correct the template",
        )
    _check_bounds(tokenizer, template, source)
    for probe in _PROBES:
        rendered = render_text(tokenizer, probe, template, _asks(probe))
    for message in _PROBES[-1]:
        role = message["role"]
        if message["content"] not in rendered:
            raise UserError(
                "model.template",
                f"the chat template leaves out what the {role} says",
                f"set model.template.{role}_role=user"
                if role in ("system", "tool")
                else "correct the template",
            )


def _asks(messages: Sequence[Message]) -> bool:
    """Whether the assistant speaks next."""
    return messages[-1]["role"] != "assistant"


def _check_bounds(tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings, source: str) -> None:
    """Renders the probes in a process of their own; once per template, since a process takes about 50 ms.

    Raises:
        UserError: they take too much time or memory, or make too much text.
    """
    key = (source, template.model_dump_json())
    if key in _bounded:
        return

    def longest() -> int:
        lengths = [0]
        for probe in _PROBES:
            mapped = map_roles(probe, template)
            for messages in (mapped, join_consecutive(mapped)):
                # A template that fails is reported by the check that follows.
                with contextlib.suppress(Exception):
                    lengths.append(len(apply(tokenizer, messages, template, _asks(probe))))
        return max(lengths)

    try:
        length = call_bounded(longest, MAX_SECONDS, MAX_MEMORY)
    except OutOfBounds as stop:
        raise UserError(
            place_of(tokenizer), f"rendering the chat template {stop}", "correct the template"
        ) from None
    if length > MAX_CHARACTERS:
        found = f"the chat template makes {length:,} characters of four short messages"
        raise UserError(place_of(tokenizer), found, f"allowed: {MAX_CHARACTERS:,}")
    _bounded.add(key)


# ---------------------------------------------------------------- the end of a reply


def end_of_reply(tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings) -> int | None:
    """The id of the last special token that the chat template puts after a reply; None if there is none."""
    prompt = render(tokenizer, [_USER], template)
    whole = render(tokenizer, [_USER, _REPLY], template, generation=False)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.add(tokenizer.eos_token_id)
    return next((token for token in reversed(whole[len(prompt) :]) if token in special), None)


def warn_without_end(tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings) -> None:
    """Prints a warning, once per process, if the chat template puts no end token after a reply."""
    if end_of_reply(tokenizer, template) is None:
        warn(
            f"{place_of(tokenizer)}: the chat template puts no end token after a reply; a model that is trained with it"
            " does not learn to end its replies"
        )


@functools.cache
def warn(text: str) -> None:
    """Prints ``text`` as a warning, once per process."""
    say(f"warning: {text}")
