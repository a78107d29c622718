"""Characters that a browser does not show, or that change the direction of the text around them."""

import re

# Control characters but tab and newline, marks of direction, line separators, tags, and halves of surrogate pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """``text`` with every hidden character replaced by its code point, ``<U+202E>`` in mathematical brackets. A carriage return before a newline
    is left out."""
    return _HIDDEN.sub(lambda match: f"\u27e8U+{ord(match[0]):04X}\u27e9", text.replace("\r\n", "\n"))
