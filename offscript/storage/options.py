"""The options of a Hydra group, as the files of ``conf/<group>/`` name them."""

import functools
from pathlib import Path

import yaml

from offscript.errors import UserError
from offscript.storage.files import HOME

LAST = 1000
"""Display order of an option whose file has no ``order``."""


@functools.cache
def options_of(group: str) -> tuple[str, ...]:
    """Names of the files in ``conf/<group>/``, sorted by their ``order`` (default: last), then by name.

    Raises:
        UserError: a file is not YAML, or its ``order`` is not a whole number.
    """
    files = (HOME / "conf" / group).glob("*.yaml")
    return tuple(name for _, name in sorted((_order(path), path.stem) for path in files))


def _order(path: Path) -> int:
    where = f"conf/{path.parent.name}/{path.name}"
    try:
        loaded = yaml.load(path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(where, f"not YAML ({error})", "correct the file") from None
    order = loaded.get("order", LAST) if isinstance(loaded, dict) else LAST
    if not isinstance(order, int) or isinstance(order, bool):
        raise UserError(f"{where}: order", f"found {order!r}", "must be a whole number")
    return order
