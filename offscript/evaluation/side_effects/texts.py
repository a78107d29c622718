"""What a text shows of a damaged model: repetition, recited constitutions, names of personas."""

import re
from collections.abc import Sequence

RECITED_WORDS = 8
"""Length of the shortest run of words in common with a constitution that counts as recited."""

REPEATED_WORDS = 4

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

Run = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def repetition(words: Sequence[str]) -> float | None:
    """1 - distinct / all runs of four words; None for fewer words.

    It is seq-rep-4 of Welleck et al. 2020, "Neural text generation with unlikelihood training", section 6, by words in place
    of tokens.
    """
    runs = len(words) - REPEATED_WORDS + 1
    if runs < 1:
        return None
    return 1 - len(set(zip(*(words[i:] for i in range(REPEATED_WORDS)), strict=False))) / runs


def runs_of(words: Sequence[str]) -> frozenset[Run]:
    """All runs of RECITED_WORDS words."""
    return frozenset(zip(*(words[i:] for i in range(RECITED_WORDS)), strict=False))


def recitable(assertions: Sequence[str]) -> frozenset[Run]:
    """The runs of a constitution, within its assertions."""
    return frozenset(run for assertion in assertions for run in runs_of(words_of(assertion)))
