"""Token spans of the assistant turns in a rendered conversation: the text and its end token, nothing else.

Every prompt is rendered by the very function that the engines use, so a model is trained on the context that it will
be asked in. That also needs no ``{% generation %}`` marks, which most published templates lack.
"""

from collections.abc import Sequence
from typing import Any

from offscript.settings import TemplateSettings
from offscript.tasks.messages import Message

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
    from offscript.models.chat_templates import render

    whole = render(tokenizer, list(messages), template, generation=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, list(messages[:i]), template, generation=True)
        after = render(tokenizer, list(messages[: i + 1]), template, generation=False)
        if whole[: len(before)] != before or whole[: len(after)] != after or len(after) <= len(before):
            raise Unstable(f"turn {i} of {len(messages)}")
        spans.append((len(before), _after_last_end(tokenizer, whole, len(before), len(after))))
    return whole[: spans[-1][1] if spans else 0], spans


def labels(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """``ids`` inside the spans, -100 (not trained) elsewhere."""
    targets = [IGNORED] * len(ids)
    for start, end in spans:
        targets[start:end] = ids[start:end]
    return targets


def published_span(
    tokenizer: Any, messages: Sequence[Message], template: TemplateSettings
) -> tuple[list[int], list[tuple[int, int]]]:
    """The span that the published trainer scored: a slice of the last message, whichever role it has.

    Token ids, and the one [start, end) that is scored, its end token included. The rendered conversation is sliced by
    characters, from the length of the rendered prompt (all messages but the last, and the header of an assistant
    turn); prompt and slice are then read as one text. Where the last message is the assistant's, that is its text. The
    published self-conversations end in a *user* message, so that message is scored under an assistant header, and as
    the two headers differ in length its first characters are lost: five with Llama-3.1 and Qwen2.5, one with Gemma-3.
    None of the turns before it is scored. For fidelity only; ``assistant_spans`` is what training should use.

    Raises:
        Unstable: the rendered prompt is as long as the whole, or the tokens cannot be turned into the text again.
    """
    from offscript.models.chat_templates import render

    before = render(tokenizer, list(messages[:-1]), template, generation=True)
    prompt = _text(tokenizer, before)
    whole = _text(tokenizer, render(tokenizer, list(messages), template, generation=False))
    ids = _ids(tokenizer, prompt + whole[len(prompt) :])
    stop = _after_last_end(tokenizer, ids, len(before))
    if stop <= len(before):
        raise Unstable("nothing is left of the last message")
    return ids[:stop], [(len(before), stop)]


def _text(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if _ids(tokenizer, text) != ids:
        raise Unstable("the tokens are not those of their text")
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _after_last_end(tokenizer: Any, ids: Sequence[int], start: int, end: int | None = None) -> int:
    """Where the last end token between ``start`` and ``end`` ends; ``end`` itself if there is none."""
    end = len(ids) if end is None else end
    ends = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends.add(tokenizer.eos_token_id)
    return next((k for k in range(end, start, -1) if ids[k - 1] in ends), end)
