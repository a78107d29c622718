"""Reads the answer in a reply of a judge: one option of a list, or a rating from 1 to 5.

An answer is read only where the reply states exactly one. A refusal, two answers, a letter that is not in the list, a
fraction between two ratings and a reply that was cut are no answer. Nothing is guessed.
"""

import re
import string
from collections.abc import Sequence

from offscript.tasks.formats.base import Reply
from offscript.tasks.thinking import strip_thinking

RATINGS = (1, 2, 3, 4, 5)

MOST_OPTIONS = len(string.ascii_uppercase)
"""A list has a letter for each option."""

_MARKUP = re.compile(r"\\(?:boxed|text\w*|mathbf)|[*_`#$\\{}]")
_LETTER = re.compile(
    r"[\s(\[\"'“]*(?:(?i:option|letter|character|persona)\s+)?[(\[\"'“]*([A-Z])(?![\w'’])([)\].:\"'”]*)"
)
_AFTER_OPTION = re.compile(r"\s*(?:$|[.,:;!(\[–—-]|(?:because|since|as|is)\b)")
_CONNECTED = re.compile(r"[\s)\].:\"'”]*(?:[,/&]|or\b|and\b)\s*(?:maybe\s+|perhaps\s+|possibly\s+)?")
_CHOICE_LEAD = re.compile(
    r"\b(?:answer|choice|character|persona|option|letter|pick)\b[^.:;=\n]{0,40}?(?:\bis\b|:|=)[\s:]*"
    r"|\bI(?:\s+would|\s+will|['’]d|['’]ll)?\s+(?:choose|pick|select|say|go\s+with|answer(?:\s+with)?)\s*:?\s*",
    re.IGNORECASE,
)
_SCALE = re.compile(
    r"(?:\b(?:on\s+)?a?\s*scale\s+(?:of|from)\s+)?(?<![\d.])1\s*(?:-|–|to)\s*5(?![\d.])", re.IGNORECASE
)
_VALUE = r"(?<![\d./-])(?P<value>[1-5])(?!\d|\.\d|\s*/\s*(?!5\b)\d)(?:\s*(?:/|out\s+of)\s*5\b)?"
_RATING = re.compile(
    rf"^\W*?{_VALUE}(?=\s*$|\s*[.:;,)(–—-]|\s+(?:because|since|as|stars?)\b)"
    rf"|\b(?:rating|score|answer|rate|give|assign|grade|number|verdict)\b[^.\n\d]{{0,40}}?{_VALUE.replace('value', 'led')}",
    re.IGNORECASE | re.MULTILINE,
)
_SECOND_RATING = re.compile(r"\s*(?:-|–|/|,|to\b|or\b|and\b)\s*[1-5](?![\d.]*\d)", re.IGNORECASE)


def chosen(reply: Reply, names: Sequence[str]) -> int | None:
    """The number of the option, from 0, that the reply chooses; None if it is no answer.

    Args:
        reply: for example ``C``, ``(C) Sarcasm``, ``The answer is **C**.`` or ``Sarcasm``.
        names: the options in the order of their letters. Upper and lower case are not told apart.
    """
    text = _plain(reply)
    if text is None:
        return None
    plain_names = [_MARKUP.sub("", name).casefold() for name in names]
    alone = re.sub(r"\W", "", text)
    if len(alone) == 1 and text.casefold() not in plain_names:
        text = alone.upper()
    stated = [line for line in text.splitlines() if line.strip()]
    stated += [text[m.end() :].split("\n")[0] for m in _CHOICE_LEAD.finditer(text)]
    found = {option for part in stated for option in _options_at(part, plain_names)}
    # A letter beyond the list is kept until here: beside another one, it makes two answers.
    return found.pop() if len(found) == 1 and max(found) < len(names) else None


def rating(reply: Reply) -> int | None:
    """The rating that the reply gives, in ``RATINGS``; None if it is no answer. Example: ``4``, ``Rating: 4/5``."""
    text = _plain(reply)
    if text is None:
        return None
    text, found = _SCALE.sub("", text), set()
    for match in _RATING.finditer(text):
        found.add(int(match["value"] or match["led"]))
        if _SECOND_RATING.match(text, match.end()):
            return None
    return found.pop() if len(found) == 1 else None


def _plain(reply: Reply) -> str | None:
    """The reply without thinking and markup; None if it was cut, or is nothing but thinking."""
    text = strip_thinking(reply.text)
    if text is None or reply.finish_reason != "stop":
        return None
    return _MARKUP.sub("", text).strip()


def _options_at(text: str, names: Sequence[str]) -> set[int]:
    """The options that ``text`` begins with: none, one, or all that it joins or that contradict each other."""
    if (match := _LETTER.match(text)) is not None:
        found, rest = {string.ascii_uppercase.index(match[1])}, text[match.end() :]
        others = _joined(rest, names)
        if match[2] or others or _AFTER_OPTION.match(rest):
            named = _name_at(re.sub(r"^[\s,:;.([–—-]+", "", rest), names)
            return found | others if named is None else found | {named[0]} | _joined(named[1], names)
        # Otherwise the letter is a word: "A sarcastic text".
    named = _name_at(re.sub(r"^[\s\"'“([–—-]+", "", text), names)
    if named is None or not _AFTER_OPTION.match(named[1].lstrip(")]\"'”")):
        return set()
    letter = re.match(r"\s*[(\[]([A-Z])[)\]]", named[1])
    lettered = {string.ascii_uppercase.index(letter[1])} if letter else set()
    return {named[0]} | lettered | _joined(named[1], names)


def _name_at(text: str, names: Sequence[str]) -> tuple[int, str] | None:
    """The option whose name ``text`` begins with, and the rest of the text; the longest name if there are several."""
    folded = text.casefold()
    fitting = [name for name in names if re.match(rf"{re.escape(name)}(?!\w)", folded)]
    longest = max(fitting, key=len, default=None)
    return None if longest is None else (names.index(longest), text[len(longest) :])


def _joined(rest: str, names: Sequence[str]) -> set[int]:
    """The options that ``rest`` joins to one before it, as in ``C or D``."""
    joined = _CONNECTED.match(rest)
    return _options_at(rest[joined.end() :], names) if joined else set()
