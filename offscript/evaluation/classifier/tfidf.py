"""A persona classifier without a network: TF-IDF of word and character n-grams, with logistic regression.

Its features and weights are plain arrays, so that a text is scored without torch and without unpickling anything.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from offscript.errors import UserError
from offscript.evaluation.classifier.fits import OnBatch
from offscript.settings import TfidfSettings
from offscript.storage.files import ensure_folder, read_record, refusals_explained, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer

CONTENT = "tfidf.json"
"""Name of the file with labels and vocabulary. It marks the folder of such a classifier."""
WEIGHTS = "model.safetensors"
REMEDY = "delete the folder to fit it again"

WORD = r"(?u)\b\w+\b"
"""Words of one letter count too: a persona may say I."""
SHORTEST_CHARACTERS = 2
MAX_ITERATIONS = 1000
BATCH = 1024
"""Texts whose features are in memory at a time."""


class Content(TypedDict):
    """What ``CONTENT`` holds: labels in the order of the outputs, and for each kind the length of the longest n-gram and
    the n-grams in the order of the features."""

    labels: list[str]
    words: int
    characters: int
    word_vocabulary: list[str]
    character_vocabulary: list[str]


@dataclass(frozen=True)
class Grams:
    """The features of one kind of n-gram: those of ``vocabulary``, with their inverse document frequencies ``[n]``."""

    kind: str
    longest: int
    vocabulary: list[str]
    idf: "NDArray[np.float64]"

    def matrix(self, texts: Sequence[str]) -> "csr_matrix":
        """Features ``[texts, n]``, each row of length 1."""
        return self._vectorizer.transform(texts)

    @cached_property
    def _vectorizer(self) -> "TfidfVectorizer":
        vectorizer = _vectorizer(self.kind, self.longest, vocabulary=self.vocabulary)
        vectorizer.idf_ = self.idf
        return vectorizer


@dataclass(frozen=True)
class TfidfClassifier:
    """A fitted classifier: ``weights [labels, features]`` and ``bias [labels]`` of the features of all ``grams``."""

    labels: list[str]
    grams: list[Grams]
    weights: "NDArray[np.float64]"
    bias: "NDArray[np.float64]"
    folder: Path = field(default=Path("."))

    @property
    def parameters(self) -> int:
        return self.weights.size + self.bias.size

    def probabilities(self, texts: Sequence[str], on_batch: OnBatch | None = None) -> "NDArray[np.float64]":
        """Probabilities ``[n, labels]`` in the order of ``texts``; each row sums to 1.

        Args:
            on_batch: called with (texts done, n) after every batch.
        """
        import numpy as np

        probs = np.zeros((len(texts), len(self.labels)))
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            probs[start : start + len(batch)] = self.of_features(self.features(batch))
            if on_batch:
                on_batch(start + len(batch), len(texts))
        return probs

    def features(self, texts: Sequence[str]) -> "csr_matrix":
        """Features ``[texts, n]`` of all kinds side by side."""
        return _side_by_side([grams.matrix(texts) for grams in self.grams])

    def of_features(self, features: "csr_matrix") -> "NDArray[np.float64]":
        """Probabilities ``[n, labels]`` of texts with the ``features [n, features]``."""
        from scipy.special import softmax

        probs: NDArray[np.float64] = softmax(features @ self.weights.T + self.bias, axis=1)
        return probs

    def save(self, folder: Path) -> None:
        """Writes ``CONTENT`` and ``WEIGHTS`` into ``folder``."""
        from safetensors.numpy import save_file

        ensure_folder(folder)
        of = {grams.kind: grams for grams in self.grams}
        content: Content = {
            "labels": self.labels,
            "words": of["word"].longest if "word" in of else 0,
            "characters": of["char_wb"].longest if "char_wb" in of else 0,
            "word_vocabulary": of["word"].vocabulary if "word" in of else [],
            "character_vocabulary": of["char_wb"].vocabulary if "char_wb" in of else [],
        }
        arrays = {f"idf.{kind}": grams.idf for kind, grams in of.items()}
        with refusals_explained(folder):
            save_file({"weights": self.weights, "bias": self.bias, **arrays}, str(folder / WEIGHTS))
        write_json(folder / CONTENT, content)


def fit_each(
    settings: TfidfSettings,
    penalties: Iterable[float],
    texts: Sequence[str],
    labels: Sequence[str],
    names: Sequence[str],
    balanced: bool = True,
) -> list[TfidfClassifier]:
    """A classifier of ``texts [n]`` with the true ``labels [n]`` for each of several inverse penalties, from one matrix of
    features.

    Args:
        names: the labels of its outputs; each has texts.
        balanced: all labels have equal total weight.

    Raises:
        UserError: no n-gram is in ``settings.min_texts`` texts.
    """
    grams, matrices = _grams(settings, texts)
    if not grams:
        raise _no_grams(settings, len(texts))
    features, order = _side_by_side(matrices), {name: i for i, name in enumerate(names)}
    true = [order[label] for label in labels]
    return [TfidfClassifier(list(names), grams, *_regression(features, true, c, balanced)) for c in penalties]


class Corpus:
    """Texts whose n-grams are counted once, for classifiers that are fitted on parts of them, as in cross-validation."""

    def __init__(self, settings: TfidfSettings, texts: Sequence[str]) -> None:
        self.settings = settings
        self._counts: list[csr_matrix] = []
        for kind, longest in _kinds(settings):
            # Without a single n-gram scikit-learn raises ValueError.
            with contextlib.suppress(ValueError):
                self._counts.append(_counter(kind, longest).fit_transform(texts))

    def predict(
        self,
        train: Sequence[int],
        labels: Sequence[str],
        names: Sequence[str],
        others: Sequence[int],
        c: float,
    ) -> "NDArray[np.float64]":
        """Probabilities ``[others, names]`` by a classifier of the texts ``train``, of the true ``labels [train]``: those of
        ``fit_each`` on these texts, up to rounding.

        Raises:
            UserError: no n-gram is in ``settings.min_texts`` texts of ``train``.
        """
        import numpy as np

        if not others:
            return np.zeros((0, len(names)))
        parts = []
        for counts in self._counts:
            fitted_on = counts[train]
            kept = np.bincount(fitted_on.indices, minlength=counts.shape[1]) >= self.settings.min_texts
            if kept.any():
                weigh = _weighting().fit(fitted_on[:, kept])
                parts.append((weigh.transform(fitted_on[:, kept]), weigh.transform(counts[others][:, kept])))
        if not parts:
            raise _no_grams(self.settings, len(train))
        order = {name: i for i, name in enumerate(names)}
        weights, bias = _regression(
            _side_by_side([part for part, _ in parts]), [order[label] for label in labels], c, True
        )
        fitted = TfidfClassifier(list(names), [], weights, bias)
        return fitted.of_features(_side_by_side([part for _, part in parts]))


def load(folder: Path) -> TfidfClassifier:
    """The classifier that ``save`` wrote into ``folder``.

    Raises:
        UserError: a file is damaged, or the two do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    content = read_record(folder / CONTENT, Content, REMEDY)
    path = folder / WEIGHTS
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), f"cannot be read ({error})", REMEDY) from None
    kinds = {
        "word": (content["words"], content["word_vocabulary"]),
        "char_wb": (content["characters"], content["character_vocabulary"]),
    }
    sizes = {f"idf.{kind}": (len(grams),) for kind, (_, grams) in kinds.items() if grams}
    n_labels, n_features = len(content["labels"]), sum(n for (n,) in sizes.values())
    expected = {**sizes, "weights": (n_labels, n_features), "bias": (n_labels,)}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise UserError(str(path), f"its arrays are not those of {CONTENT}", REMEDY)
    grams = [
        Grams(kind, longest, vocabulary, arrays[f"idf.{kind}"])
        for kind, (longest, vocabulary) in kinds.items()
        if vocabulary
    ]
    return TfidfClassifier(content["labels"], grams, arrays["weights"], arrays["bias"], folder)


# ---------------------------------------------------------------- features and regression


def _kinds(settings: TfidfSettings) -> list[tuple[str, int]]:
    """The kinds of n-grams, each with the length of the longest."""
    kinds = (("word", settings.words), ("char_wb", settings.characters))
    return [(kind, longest) for kind, longest in kinds if longest]


def _vectorizer(kind: str, longest: int, **options: object) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**_reading(kind, longest), sublinear_tf=True, **options)


def _counter(kind: str, longest: int) -> "CountVectorizer":
    """The counts that ``_vectorizer`` weighs, of every n-gram."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(**_reading(kind, longest), dtype=np.float64)


def _weighting() -> "TfidfTransformer":
    """The weights that ``_vectorizer`` gives to counts."""
    from sklearn.feature_extraction.text import TfidfTransformer

    return TfidfTransformer(sublinear_tf=True)


def _reading(kind: str, longest: int) -> dict[str, Any]:
    """How n-grams are found in a text."""
    shortest = 1 if kind == "word" else min(SHORTEST_CHARACTERS, longest)
    pattern = {"token_pattern": WORD} if kind == "word" else {}
    return {"analyzer": kind, "ngram_range": (shortest, longest), **pattern}


def _no_grams(settings: TfidfSettings, texts: int) -> UserError:
    found = f"{settings.min_texts}, and no n-gram is in so many of {texts} texts"
    return UserError("classifier.tfidf.min_texts", found, "a smaller number")


def _grams(settings: TfidfSettings, texts: Sequence[str]) -> "tuple[list[Grams], list[csr_matrix]]":
    """The n-grams of each kind that are in at least ``settings.min_texts`` of ``texts``, and the features of ``texts``."""
    found, matrices = [], []
    for kind, longest in _kinds(settings):
        vectorizer = _vectorizer(kind, longest, min_df=settings.min_texts)
        try:
            matrices.append(vectorizer.fit_transform(texts))
        except ValueError:
            # scikit-learn refuses texts without a single n-gram that is frequent enough.
            continue
        found.append(Grams(kind, longest, vectorizer.get_feature_names_out().tolist(), vectorizer.idf_))
    return found, matrices


def _side_by_side(matrices: "Sequence[csr_matrix]") -> "csr_matrix":
    from scipy.sparse import csr_matrix, hstack

    return csr_matrix(hstack(matrices))


def _regression(
    features: "csr_matrix", true: Sequence[int], c: float, balanced: bool
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Weights ``[labels, features]`` and bias ``[labels]``."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    weights = "balanced" if balanced else None
    model = LogisticRegression(C=c, class_weight=weights, max_iter=MAX_ITERATIONS).fit(features, true)
    coef, bias = model.coef_, model.intercept_
    if len(coef) == 1:
        # Two labels have one score, that of the second against the first.
        coef, bias = np.concatenate([np.zeros_like(coef), coef]), np.concatenate([[0.0], bias])
    return np.ascontiguousarray(coef), np.ascontiguousarray(bias)
