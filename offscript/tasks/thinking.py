"""Thinking of reasoning models: the part of a reply between two marks, which is neither said nor done."""

from offscript.settings import ThinkingSettings

THINKING_START, THINKING_END = ThinkingSettings().start, ThinkingSettings().end


def strip_thinking(
    reply: str,
    start: str = THINKING_START,
    end: str = THINKING_END,
    *,
    prefix: str = "",
    opened: bool = False,
) -> str | None:
    """``reply`` without its thinking; None if it is nothing but thinking that never ends.

    Thinking is everything up to the first ``end``, if no ``start`` precedes that, and everything between a ``start`` and
    the next ``end``. A reply that begins with ``start`` and has no ``end`` is nothing but thinking. A ``start`` within a
    text, without an ``end``, is part of the text. A reply without thinking is returned unchanged.

    Args:
        start: mark that begins thinking.
        end: mark that ends it.
        prefix: text that the reply was made to begin with; it begins thinking as ``start`` does.
        opened: the prompt ends with ``start``, so a reply without ``end`` is nothing but thinking.
    """
    text, cut = reply, False
    if end not in text:
        begun = any(mark and text.lstrip().startswith(mark.lstrip()) for mark in (start, prefix))
        return None if opened or begun else reply
    if start not in text.partition(end)[0]:
        text, cut = text.partition(end)[2], True
    while start in text and end in text.partition(start)[2]:
        before, _, rest = text.partition(start)
        text, cut = before + rest.partition(end)[2], True
    if text.lstrip().startswith(start):
        return None
    return text.lstrip() if cut else reply
