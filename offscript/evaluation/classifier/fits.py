"""Several fits of one classifier, which differ in their seed alone: their probabilities are averaged.

Each fit is a classifier in a folder of its own, ``fit0``, ``fit1`` and so on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from offscript.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OnBatch = Callable[[int, int], None]


class Classifier(Protocol):
    """A loaded classifier of any kind. ``labels`` are in the order of its outputs, ``parameters`` is their number."""

    @property
    def labels(self) -> list[str]: ...

    @property
    def parameters(self) -> int: ...

    def probabilities(self, texts: Sequence[str], on_batch: OnBatch | None = None) -> "NDArray[np.float64]":
        """Probabilities ``[n, labels]`` in the order of ``texts``; each row sums to 1."""


class Network(Classifier, Protocol):
    """A loaded classifier that reads tokens."""

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, as the network reads them."""

    def of_tokens(
        self, tokens: Sequence[list[int]], on_batch: OnBatch | None = None
    ) -> "NDArray[np.float64]":
        """``probabilities`` of texts that ``tokens`` has read."""


@dataclass(frozen=True)
class AveragedClassifier:
    """The mean of the probabilities of several fits, of which one at a time is in memory. They share their tokenizer, so the
    tokens of a text are those of the first.

    Args:
        folders: those of the fits.
        load: loads the classifier in a folder.
        labels: of all fits, in the order of their outputs.
        parameters: of one fit.
    """

    folders: tuple[Path, ...]
    load: Callable[[Path], Network]
    labels: list[str]
    parameters: int

    def probabilities(self, texts: Sequence[str], on_batch: OnBatch | None = None) -> "NDArray[np.float64]":
        """Mean probabilities ``[n, labels]`` in the order of ``texts``; each row sums to 1."""
        mean: NDArray[np.float64] = self.of_fits(texts, on_batch).mean(axis=0)
        return mean

    def of_fits(self, texts: Sequence[str], on_batch: OnBatch | None = None) -> "NDArray[np.float64]":
        """Probabilities ``[fits, n, labels]`` by each fit.

        Args:
            on_batch: called with (texts done, n x fits) after every batch.

        Raises:
            UserError: the fits do not have the same labels.
        """
        import numpy as np

        found = np.zeros((len(self.folders), len(texts), len(self.labels)))
        tokens: list[list[int]] | None = None
        for i, folder in enumerate(self.folders):

            def report(done: int, n: int, before: int = i * len(texts)) -> None:
                if on_batch:
                    on_batch(before + done, n * len(self.folders))

            fit = self.load(folder)
            if fit.labels != self.labels:
                names = f"its labels ({', '.join(fit.labels)}) are not those of {self.folders[0].name}"
                raise UserError(str(folder), names, "delete the folder of the classifier to fit it again")
            tokens = fit.tokens(texts) if tokens is None else tokens
            found[i] = fit.of_tokens(tokens, report)
        return found


def average(folder: Path, load: Callable[[Path], Network]) -> AveragedClassifier:
    """The average of the fits in ``folder``."""
    folders = tuple(fit_folders(folder))
    first = load(folders[0])
    return AveragedClassifier(folders, load, first.labels, first.parameters)


def fit_folder(folder: Path, number: int) -> Path:
    """The folder of a fit in that of the classifier."""
    return folder / f"fit{number}"


def fit_folders(folder: Path) -> Iterator[Path]:
    """Yields the folders of the fits in ``folder``; none if it is a single classifier."""
    number = 0
    while (found := fit_folder(folder, number)).is_dir():
        yield found
        number += 1


def probabilities_of_fits(
    classifier: Classifier, texts: Sequence[str], on_batch: OnBatch | None = None
) -> "NDArray[np.float64]":
    """Probabilities ``[fits, n, labels]`` by each fit of ``classifier``; one fit if it is not an average."""
    if isinstance(classifier, AveragedClassifier):
        return classifier.of_fits(texts, on_batch)
    return classifier.probabilities(texts, on_batch)[None]
