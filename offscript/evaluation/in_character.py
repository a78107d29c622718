"""How much a reply is in character, as far as other replies tell: the score by which the best of several is kept.

A classifier of n-grams learns to tell the personas apart by their replies. Families of prompts are divided into folds, and
each reply is scored by the classifier that was fitted on the other folds: never on a reply to the same prompt.
"""

from collections.abc import Sequence

from offscript.errors import UserError
from offscript.evaluation.classifier import tfidf
from offscript.evaluation.folds import FOLDS, folds
from offscript.evaluation.oracle import SETTINGS

WHERE = "recipe.teacher.best_of"
VERSION = 1


def in_character(texts: Sequence[str], personas: Sequence[str], families: Sequence[str]) -> list[float]:
    """The probability of the own persona for each of ``texts [n]``, of the true ``personas [n]``.

    Args:
        families: family of the prompt of each text.

    Raises:
        UserError: the texts are of one persona or one family, or no word is in two of them.
    """
    fold = folds("best of", families)
    names = sorted(set(personas))
    scores = [0.0] * len(texts)
    corpus = tfidf.Corpus(SETTINGS, texts)
    for k in range(FOLDS):
        held_out = [i for i, family in enumerate(families) if fold[family] == k]
        if not held_out:
            continue
        train = [i for i, family in enumerate(families) if fold[family] != k]
        if len({personas[i] for i in train}) < len(names) or len(names) < 2:
            raise UserError(
                WHERE,
                f"replies of {len(names)} personas to prompts of {len(fold)} families",
                "at least two personas in grid.persona, each with replies to prompts of two families",
            )
        try:
            probs = corpus.predict(train, [personas[i] for i in train], names, held_out, SETTINGS.c[0])
        except UserError:
            raise UserError(WHERE, "no word is in two replies", "1, or longer replies") from None
        for i, row in zip(held_out, probs, strict=True):
            scores[i] = float(row[names.index(personas[i])])
    return scores
