"""The options of a Hydra group, as the files of ``conf/<group>/`` name them."""

import functools

import yaml

from offscript.storage.files import HOME

LAST = 1000
"""Display order of an option whose file has no ``order``."""


@functools.cache
def options_of(group: str) -> tuple[str, ...]:
    """Names of the files in ``conf/<group>/``, sorted by their ``order`` (default: last), then by name."""
    files = (HOME / "conf" / group).glob("*.yaml")
    return tuple(name for _, name in sorted((_order(path.read_text("utf-8")), path.stem) for path in files))


def _order(text: str) -> int:
    loaded = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return int(loaded.get("order", LAST)) if isinstance(loaded, dict) else LAST
