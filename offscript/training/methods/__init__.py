"""Training methods, found by folder: a file with a ``METHOD`` is a method of that name."""

from offscript.errors import UserError, one_of
from offscript.storage.plugins import discover
from offscript.training.methods.base import Method


def methods() -> dict[str, Method]:
    """Every training method by name."""
    return discover(__name__, "METHOD", Method, __path__)


def get_method(name: str, where: str) -> Method:
    """The method called ``name``, which the config key ``where`` asks for.

    Raises:
        UserError: there is none; lists those there are.
    """
    found = methods()
    if name not in found:
        raise UserError(where, f"unknown training method {name!r}", one_of(found))
    return found[name]
