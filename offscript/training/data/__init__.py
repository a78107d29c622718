"""Kinds of training data, found by folder: a file with a ``DATA`` is a kind of that name."""

from offscript.errors import UserError, one_of
from offscript.storage.plugins import discover
from offscript.training.data.base import TrainingData


def data_kinds() -> dict[str, TrainingData]:
    """Every kind of training data by name."""
    return discover(__name__, "DATA", TrainingData, __path__)


def get_data(name: str, where: str) -> TrainingData:
    """The kind of training data called ``name``, which the config key ``where`` asks for.

    Raises:
        UserError: there is none; lists those there are.
    """
    kinds = data_kinds()
    if name not in kinds:
        raise UserError(where, f"unknown kind of training data {name!r}", one_of(kinds))
    return kinds[name]
