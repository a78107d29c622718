"""Kinds of training data, found by folder: a file with a ``DATA`` is a kind of that name."""

from offscript.storage.plugins import choose, discover
from offscript.training.data.base import TrainingData


def data_kinds() -> dict[str, TrainingData]:
    """Every kind of training data by name."""
    return discover(__name__, "DATA", TrainingData, __path__)


def get_data(name: str, where: str) -> TrainingData:
    """The kind of training data called ``name``, which the config key ``where`` asks for.

    Raises:
        UserError: there is none; the message lists all names.
    """
    return choose(data_kinds(), name, where, "kind of training data", __path__, "DATA")
