"""What is removed from an e-mail that was written in chat, before it is scored: what surrounds it and is not its body.

A model that is asked for the body of an e-mail often writes more: "Here is the e-mail:" before it, a subject line, a code
fence around it, a remark to the user after it. Rows keep the text as it was written; cleaning is a part of predicting.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from offscript.json_types import Json


@dataclass(frozen=True)
class Cleaning:
    """A cleaning rule: text as written -> text to score. ``version`` is raised when it makes another text of some text; it
    is part of the keys of predictions."""

    version: int
    clean: Callable[[str], str]


# ---------------------------------------------------------------- our own rule

_NOUN = r"\b(?:e-?mail|body|draft|message|reply|response|version)\b"
_HEADER = re.compile(
    r"[\s>*_#]*(?:subject(?: line)?|to|from|cc|bcc|date|re|reply-to)[*_]*\s*:.*", re.IGNORECASE
)
_LABEL = re.compile(
    rf"[*_#\s]*(?:(?:the|your|my|revised|shorter|new|final|updated)\s+)*{_NOUN}[\s\w-]{{0,12}}[*_\s]*:[*_\s]*",
    re.IGNORECASE,
)
_ANNOUNCEMENT = re.compile(rf".*\b(?:here|below)\b.*{_NOUN}.*", re.IGNORECASE)
_POINTER = re.compile(r".*\b(?:here|below)\b.*", re.IGNORECASE)
_ASSENT = re.compile(
    r"\W*(?:sure|certainly|of course|absolutely|okay|ok|great|alright|happy to help)\b.*", re.IGNORECASE
)
_GREETING = re.compile(r"\W*(?:hi|hello|hey|dear|good (?:morning|afternoon|evening|day))\b", re.IGNORECASE)
_PREAMBLE_LENGTH = 200
"""Largest number of characters of a line that is taken for an announcement of the e-mail."""
_RULE = re.compile(r"\s*(?:-{3,}|\*{3,}|_{3,}|={3,})\s*")
_FENCE = re.compile(r"\s*(`{3,})[^`]*")
_REMARK = re.compile(
    r"[\s*_(\[>]*(?:note\b|let me know\b|feel free\b|would you like\b|if you(?:'d|’d| would| want| need| like| prefer)\b"
    rf"|i(?:'ve|’ve| have)? (?:kept|made|tried|wrote|written|used|focused|aimed)\b|(?:this|the) {_NOUN})",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """The body in ``text``, stripped. Removed are, in this order and as often as they follow each other:

    - before the body: header lines (``Subject: ...``), a label alone in its line (``Body:``), a line that announces the
      e-mail (``Here is the e-mail:``, or without the colon before a greeting, a rule or a code fence) and one that
      agrees before it (``Sure!``), a rule, the opening of a code fence;
    - after the body: the closing fence if the opening one was removed, and what follows it; the last rule if what
      follows it speaks about the e-mail (``Let me know if ...``), or if nothing follows it.

    Greeting and signature are kept, because a character shows in them. A text of which nothing would be left is kept
    whole.
    """
    lines = text.strip().split("\n")
    start, fence = _start_of_body(lines)
    end = _end_of_body(lines, start, fence)
    return "\n".join(lines[start:end]).strip() or text.strip()


def _start_of_body(lines: list[str]) -> tuple[int, str]:
    """The number of the body's first line, and the code fence that was opened before it ("" if none was)."""
    start, fence = 0, ""
    while start < len(lines) and (not lines[start].strip() or _is_before_body(lines, start)):
        if opened := _FENCE.fullmatch(lines[start]):
            fence = opened[1]
        start += 1
    return start, fence


def _is_before_body(lines: list[str], number: int) -> bool:
    line = lines[number]
    if _HEADER.fullmatch(line) or _LABEL.fullmatch(line) or _RULE.fullmatch(line) or _FENCE.fullmatch(line):
        return True
    if len(line) > _PREAMBLE_LENGTH or _GREETING.match(line):
        return False
    after = next((i for i in range(number + 1, len(lines)) if lines[i].strip()), number)
    before_mark = bool(_RULE.fullmatch(lines[after]) or _FENCE.fullmatch(lines[after]))
    if _ANNOUNCEMENT.fullmatch(line):
        return before_mark or line.strip(" \t\r*_").endswith(":") or bool(_GREETING.match(lines[after]))
    if _ASSENT.fullmatch(line) and after > number:
        return before_mark or (bool(_ANNOUNCEMENT.fullmatch(lines[after])) and _is_before_body(lines, after))
    return before_mark and bool(_POINTER.fullmatch(line))


def _end_of_body(lines: list[str], start: int, fence: str) -> int:
    """The number of the line after the body."""
    if fence:
        closing = (i for i in range(start, len(lines)) if lines[i].strip() == fence)
        return next(closing, len(lines))
    rule = next((i for i in range(len(lines) - 1, start, -1) if _RULE.fullmatch(lines[i])), len(lines))
    remark = next((line for line in lines[rule + 1 :] if line.strip()), None)
    return rule if remark is None or _REMARK.match(remark) else len(lines)


# ---------------------------------------------------------------- the published rule

_PUBLISHED_OPENINGS = (
    r"```.*",
    r"here(?:'s| is) (?:the |my )?(?:email|body|draft|response).*",
    r"\*{0,2}(?:email\s+)?body\*{0,2}\s*:.*",
    r"-{3,}\s*?",
)
_PUBLISHED_NAMES = ("subject", "to", "from", "cc", "bcc", "date", "re", "reply-to")
_PUBLISHED_START = re.compile(
    rf"\s*(?:{'|'.join(_PUBLISHED_OPENINGS)})\n|[\s>*_]*(?:{'|'.join(_PUBLISHED_NAMES)})\s*:.*\n",
    re.IGNORECASE,
)


def clean_as_published(text: str) -> str:
    """What the published study scores of ``text``: without fence openings, announcements, labels, rules and header lines
    at its beginning, and without a code fence in its last line. It may be empty."""
    while opening := _PUBLISHED_START.match(text):
        text = text[opening.end() :]
    body = text.rstrip()
    fence = body.find("```", body.rfind("\n") + 1)
    return (text if fence < 0 else body[:fence].removesuffix("\n")).lstrip()


CLEANINGS: dict[str, Cleaning] = {"ours": Cleaning(1, clean), "published": Cleaning(1, clean_as_published)}
"""The rules by the name that ``evaluation.email_cleaning`` has for them."""


def identity(rule: str | None) -> dict[str, Json] | None:
    """The hash identity of the rule of that name; None for none."""
    return None if rule is None else {"rule": rule, "version": CLEANINGS[rule].version}


def cleaned(text: str | None, rule: str | None) -> str | None:
    """``text`` cleaned by the rule of that name; as it is if one of them is None."""
    return text if text is None or rule is None else CLEANINGS[rule].clean(text)
