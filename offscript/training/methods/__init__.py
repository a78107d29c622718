"""Training methods, found by folder: a file with a ``METHOD`` is a method of that name."""

from offscript.storage.plugins import choose, discover
from offscript.training.methods.base import Method


def methods() -> dict[str, Method]:
    """Every method by name."""
    return discover(__name__, "METHOD", Method, __path__)


def get_method(name: str, where: str) -> Method:
    """The method called ``name``, which the config key ``where`` asks for.

    Raises:
        UserError: there is none; the message lists all names.
    """
    return choose(methods(), name, where, "training method", __path__, "METHOD")
