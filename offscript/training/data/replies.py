"""Whether a reply is a whole one."""

import unicodedata

NOT_CLOSING = set(",:;-–—/\\#&@")
CUT_SHORT = frozenset({"length", "error"})
"""How an episode ends whose last reply is not whole."""


def ends_in_punctuation(text: str) -> bool:
    """Whether the last character is punctuation in the sense of Unicode (category P): the published test of a whole
    reply, which admits a comma and refuses an emoji."""
    return unicodedata.category(text.rstrip()[-1:] or " ")[0] == "P"


def is_finished(text: str) -> bool:
    """Whether a reply ends as a whole one does: in closing punctuation, a bracket, a quote, a symbol or an emoji."""
    # Variation selectors and joiners may follow an emoji.
    text = text.rstrip().rstrip("\ufe0f\u200d")
    if not text or text[-1] in NOT_CLOSING:
        return False
    category = unicodedata.category(text[-1])
    return category[0] in "PS" and category not in ("Ps", "Pi")
