"""The template language of the pocket world.

A template is plain text with ``[one|of|these]`` (nested, an empty branch allowed) and ``{slot}``. A slot holds a
string or a list to choose from, and what it holds may itself be a template. Every choice comes from the given random
stream, so a text is a function of (template, slots, seed).
"""

import random
import re
from collections.abc import Mapping, Sequence

Slots = Mapping[str, "str | Sequence[str]"]

_SENTENCE_START = re.compile(r"(^|[.!?] )([a-z])")
_MAX_DEPTH = 12


def expand(template: str, slots: Slots, rng: random.Random) -> str:
    """One text of ``template``.

    Raises:
        ValueError: a slot is unknown, a bracket is not closed, or slots refer to each other without end.
    """
    text = _expand(template, slots, rng, depth=0)
    return re.sub(r"\s+([,.!?])", r"\1", re.sub(r" {2,}", " ", text)).strip()


def choices(template: str) -> int:
    """How many different texts the brackets of ``template`` allow, slots counted as one."""
    total = 1
    for kind, options in _pieces(template):
        if kind == "choice":
            total *= sum(choices(option) for option in options)
    return total


def sentence_case(text: str) -> str:
    """``text`` with a capital at the start of every sentence."""
    return _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text)


def agree(text: str, plural: bool) -> str:
    """``text`` with each verb marked ``walks^`` in the form that its subject wants."""
    irregular = {"is": "are", "has": "have", "was": "were"}

    def verb(match: re.Match[str]) -> str:
        word = match.group(1)
        return irregular.get(word, word.removesuffix("s")) if plural else word

    return re.sub(r"(\w+)\^", verb, text)


def is_plural(noun: str) -> bool:
    """Whether a noun phrase such as "the new prices from Anchor" takes a plural verb."""
    head = re.split(r" (?:of|for|from|in|on|near|with|to|about) ", noun, maxsplit=1)[0]
    return head.startswith(("two ", "three ")) or (head.endswith("s") and not head.endswith("ss"))


def lower_first(sentence: str, proper: frozenset[str] = frozenset()) -> str:
    """``sentence`` made fit to follow an introduction: a small first letter, unless it is "I" or a proper name."""
    first = re.split(r"[\s,']", sentence, maxsplit=1)[0]
    if first in {"I", ""} or first in proper:
        return sentence
    return sentence[0].lower() + sentence[1:]


def forms(block: str) -> list[str]:
    """The templates of a text block, one a line; blank lines and ``#`` comments are skipped."""
    lines = (line.strip() for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def names(block: str) -> list[str]:
    """The words or phrases of a comma-separated block."""
    return [" ".join(part.split()) for part in block.split(",") if part.strip()]


def _expand(template: str, slots: Slots, rng: random.Random, depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise ValueError(f"template never ends, its slots refer to each other: {template[:60]!r}")
    out = []
    for kind, options in _pieces(template):
        if kind == "text":
            out.append(options[0])
        elif kind == "choice":
            out.append(_expand(rng.choice(options), slots, rng, depth + 1))
        else:
            if options[0] not in slots:
                raise ValueError(f"template has an unknown slot {{{options[0]}}}: {template[:60]!r}")
            held = slots[options[0]]
            out.append(_expand(held if isinstance(held, str) else rng.choice(held), slots, rng, depth + 1))
    return "".join(out)


def _pieces(template: str) -> list[tuple[str, list[str]]]:
    """Splits a template into ("text", [text]), ("choice", options) and ("slot", [name])."""
    pieces: list[tuple[str, list[str]]] = []
    i = start = 0
    while i < len(template):
        if template[i] not in "[{":
            i += 1
            continue
        if i > start:
            pieces.append(("text", [template[start:i]]))
        if template[i] == "{":
            end = template.find("}", i)
            if end < 0:
                raise ValueError(f"template has an open brace: {template[:60]!r}")
            pieces.append(("slot", [template[i + 1 : end]]))
        else:
            options, end = _options(template, i)
            pieces.append(("choice", options))
        i = start = end + 1
    if start < len(template):
        pieces.append(("text", [template[start:]]))
    return pieces


def _options(template: str, opening: int) -> tuple[list[str], int]:
    """The options of the bracket that opens at ``opening``, and where it closes."""
    options, depth, start = [], 0, opening + 1
    for i in range(opening, len(template)):
        char = template[i]
        if char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
            if depth == 0:
                options.append(template[start:i])
                return options, i
        elif char == "|" and depth == 1:
            options.append(template[start:i])
            start = i + 1
    raise ValueError(f"template has an open bracket: {template[:60]!r}")
