"""Texts that repeat an earlier one almost word for word."""

from collections.abc import Sequence

BLOCK = 256
"""Texts that are compared with all others at a time."""


def distinct(texts: Sequence[str], similarity: float) -> list[int]:
    """Positions of the texts that are not near-duplicates of an earlier one that is kept, in order.

    Two texts are near-duplicates if the cosine similarity of their vectors is above ``similarity``. The vectors hold TF-IDF
    weights, relative to all ``texts``, of words in lower case, punctuation marks and pairs of neighbours.
    """
    if len(texts) < 2:
        return [*range(len(texts))]
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2)).fit_transform(texts)
    is_kept = np.zeros(len(texts), dtype=bool)
    for start in range(0, len(texts), BLOCK):
        above = (vectors[start : start + BLOCK] @ vectors.T).toarray() > similarity
        for i, row in enumerate(above, start):
            is_kept[i] = not (row[:i] & is_kept[:i]).any()
    return [int(i) for i in np.flatnonzero(is_kept)]
