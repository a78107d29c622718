"""Token spans of the assistant turns in a rendered conversation: the text and its end token, nothing else.

Every prompt is rendered by the very function that the engines use, so a model is trained on the context that it will
be asked in. That also needs no ``{% generation %}`` marks, which most published templates lack.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offscript.models.chat_templates import Schemas, render, render_text, tokenize
from offscript.settings import ModelSettings, TemplateSettings
from offscript.tasks.messages import Message

IGNORED = -100


class Unstable(ValueError):
    """The chat template renders a conversation in a way in which a turn cannot be trained."""


def assistant_turns(
    tokenizer: Any, messages: Sequence[Message], template: TemplateSettings
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Token sequences in which every assistant turn of a conversation has one span.

    One sequence with all spans, where the chat template only ever adds to a conversation. Some templates (Qwen3) render
    a turn otherwise once the conversation goes on, or put an empty thinking block before the last one. Then each turn
    has a sequence of its own: the prompt under which the model is asked for it, the text, and what the template writes
    after the text.

    Returns:
        For each sequence its token ids, and the [start, end) of each span: the text of a turn and its end token. Ids
        after the last span are left out.

    Raises:
        Unstable: the rendered conversation does not contain the text of a turn.
    """
    try:
        whole = _assistant_spans(tokenizer, messages, template)
    except Unstable:
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return [_single_turn(tokenizer, messages[: i + 1], template) for i in turns]
    return [whole]


def last_turns(
    sequences: list[tuple[list[int], list[tuple[int, int]]]], count: int
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """``sequences`` of ``assistant_turns`` with the spans of the last ``count`` turns alone."""
    if len(sequences) > 1:
        return sequences[-count:]
    return [(ids, spans[-count:]) for ids, spans in sequences]


@dataclass(frozen=True)
class TurnTokens:
    """Counts the tokens of assistant turns, as they are trained in rows of at most ``longest`` tokens. The tokenizer is
    loaded by the first conversation."""

    model: ModelSettings
    longest: int

    @functools.cached_property
    def tokenizer(self) -> Any:
        from offscript.models.loading import load_tokenizer

        return load_tokenizer(self.model)

    def count(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of each assistant turn of a conversation, end tokens included. Turns that end beyond the longest row are
        left out. The list is empty for a conversation that cannot be trained: a text spells out a special token, or
        the chat template changes a turn."""
        if special_token(self.tokenizer, messages) is not None:
            return []
        try:
            sequences = assistant_turns(self.tokenizer, messages, self.model.template)
        except Unstable:
            return []
        return [end - start for _, spans in sequences for start, end in spans if end <= self.longest]


def _assistant_spans(
    tokenizer: Any, messages: Sequence[Message], template: TemplateSettings
) -> tuple[list[int], list[tuple[int, int]]]:
    """The whole conversation as one sequence.

    Raises:
        Unstable: the prompt of a turn is not a prefix of the whole, or the template adds thinking to a turn.
    """
    whole = render(tokenizer, messages, template, generation=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:i], template, generation=True)
        after = render(tokenizer, messages[: i + 1], template, generation=False)
        if whole[: len(before)] != before or whole[: len(after)] != after or len(after) <= len(before):
            raise Unstable(f"turn {i} of {len(messages)}")
        end = _after_last_end(tokenizer, whole, len(before), len(after))
        if _adds_thinking(tokenizer, before, whole[len(before) : end], template):
            raise Unstable(f"turn {i} of {len(messages)} with thinking")
        spans.append((len(before), end))
    return whole[: spans[-1][1] if spans else 0], spans


def _adds_thinking(
    tokenizer: Any, prompt: Sequence[int], turn: Sequence[int], template: TemplateSettings
) -> bool:
    """Whether the template puts thinking into ``turn``, which the prompt does not ask for."""
    marks = template.thinking
    if marks is None or marks.end not in tokenizer.decode(turn):
        return False
    return not tokenizer.decode(prompt).rstrip().endswith(marks.start)


def _single_turn(
    tokenizer: Any, messages: Sequence[Message], template: TemplateSettings
) -> tuple[list[int], list[tuple[int, int]]]:
    """The last message, an assistant turn, under the prompt in which the model is asked for it."""
    prompt, reply = last_turn(tokenizer, messages, template)
    before = tokenize(tokenizer, prompt)
    ids = before + tokenize(tokenizer, reply)
    end = _after_last_end(tokenizer, ids, len(before))
    return ids[:end], [(len(before), end)]


def last_turn(
    tokenizer: Any, messages: Sequence[Message], template: TemplateSettings, tools: Schemas = ()
) -> tuple[str, str]:
    """The prompt of the last message, an assistant turn, and what the chat template writes from its text on.

    Where the template begins the turn with thinking that the prompt does not ask for, that is left out.

    Args:
        tools: schemas of the tools that the model is told of.

    Raises:
        Unstable: the rendered conversation does not contain the text of the turn.
    """
    prompt = render_text(tokenizer, messages[:-1], template, generation=True, tools=tools)
    whole = render_text(tokenizer, messages, template, generation=False, tools=tools)
    marks, said = template.thinking, messages[-1]["content"].strip()
    opened = marks is not None and prompt.rstrip().endswith(marks.start)
    reply = whole[len(prompt) :] if whole.startswith(prompt) else ""
    if reply and said in reply and (opened or marks is None or marks.end not in reply):
        return prompt, reply
    _, found, tail = whole.rpartition(said) if said else ("", "", "")
    if not found:
        raise Unstable(f"turn {len(messages) - 1} is not in its rendering")
    # The prompt begins thinking: a reply that never ended it would have no text.
    opening = f"{marks.end}\n\n" if marks is not None and opened else ""
    return prompt, opening + said + tail


def special_token(tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """A special token that a text spells out, which would be read as the token itself; None if there is none."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return next((token for m in messages for token in tokens if token in m["content"]), None)


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
    None of the turns before it is scored. For fidelity only; ``assistant_turns`` is what training should use.

    Raises:
        Unstable: the rendered prompt is as long as the whole, or the tokens cannot be turned into the text again.
    """
    before = render(tokenizer, list(messages[:-1]), template, generation=True)
    prompt = _text(tokenizer, before)
    whole = _text(tokenizer, render(tokenizer, list(messages), template, generation=False))
    ids = tokenize(tokenizer, prompt + whole[len(prompt) :])
    stop = _after_last_end(tokenizer, ids, len(before))
    if stop <= len(before):
        raise Unstable("nothing is left of the last message")
    return ids[:stop], [(len(before), stop)]


def _text(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if tokenize(tokenizer, text) != ids:
        raise Unstable("the tokens are not those of their text")
    return text


def _after_last_end(tokenizer: Any, ids: Sequence[int], start: int, end: int | None = None) -> int:
    """Where the last end token between ``start`` and ``end`` ends; ``end`` itself if there is none."""
    end = len(ids) if end is None else end
    ends = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends.add(tokenizer.eos_token_id)
    return next((k for k in range(end, start, -1) if ids[k - 1] in ends), end)
