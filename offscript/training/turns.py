"""Which tokens of a rendered conversation the model itself said: its text and its end token, nothing else.

Every prompt is rendered by the very function that the engines use, so a model is trained on the context that it will
be asked in. That also needs no ``{% generation %}`` marks, which most published templates lack.
"""

from collections.abc import Sequence
from typing import Any

from offscript.settings import TemplateSettings

Message = dict[str, str]
IGNORED = -100


class Unstable(ValueError):
    """The chat template renders the beginning of a conversation otherwise once the conversation goes on."""


def assistant_spans(
    tokenizer: Any, messages: Sequence[Message], template: TemplateSettings
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a conversation, and the [start, end) of each assistant turn, its end token included.

    A span starts where the model would be asked to speak. Ids after the last span (a user turn, a line feed that
    the template puts after the end token) are left out: nothing follows them that is trained.

    Raises:
        Unstable: the prompt of a turn is not a prefix of the whole.
    """
    from offscript.models.load import render

    whole = render(tokenizer, list(messages), template, generation=False)
    ends = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {
        tokenizer.eos_token_id
    }
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, list(messages[:i]), template, generation=True)
        after = render(tokenizer, list(messages[: i + 1]), template, generation=False)
        if whole[: len(before)] != before or whole[: len(after)] != after or len(after) <= len(before):
            raise Unstable(f"turn {i} of {len(messages)}")
        stop = next((k for k in range(len(after), len(before), -1) if whole[k - 1] in ends), len(after))
        spans.append((len(before), stop))
    return whole[: spans[-1][1] if spans else 0], spans


def labels(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """``ids`` inside the spans, -100 (not trained) elsewhere."""
    said = [IGNORED] * len(ids)
    for start, end in spans:
        said[start:end] = ids[start:end]
    return said
