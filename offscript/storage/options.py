"""The options of a Hydra group, as the files of ``conf/<group>/`` name them."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.storage.files import HOME, read_text
from offscript.storage.yaml_text import read_yaml

LAST = 1000
"""Display order of an option whose file has no ``order``."""

_GLOBAL = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)
_REACHES_OUT = re.compile(r"^(?:#\s*@package|defaults\s*:)", re.MULTILINE)
_UNRESOLVED = re.compile(r"\$\{|\?\?\?")
_ALIAS = re.compile(r"(?:^|[\s\[{,:-])\*\w", re.MULTILINE)


def options_of(group: str) -> tuple[str, ...]:
    """The options of a group that have a name of their own: the ``choices_of`` without those that change every option
    (``persona=published``), whose ``name`` is null."""
    return tuple(name for _, name, named in _files_of(group) if named)


def choices_of(group: str) -> tuple[str, ...]:
    """Names of the files in ``conf/<group>/``, sorted by their ``order`` (default: last), then by name.

    Raises:
        UserError: a file is not YAML, or its ``order`` is not a whole number.
    """
    return tuple(name for _, name, _ in _files_of(group))


@functools.cache
def _files_of(group: str) -> tuple[tuple[int, str, bool], ...]:
    """Order and name of each file in ``conf/<group>/``, and whether its option has a name."""
    found = []
    for path in (HOME / "conf" / group).glob("*.yaml"):
        content = read_yaml(path)
        named = not isinstance(content, dict) or content.get("name", path.stem) is not None
        found.append((_order(path, content), path.stem, named))
    return tuple(sorted(found))


@functools.cache
def option_file(group: str, name: str) -> Json:
    """The content of ``conf/<group>/<name>.yaml``."""
    return read_yaml(HOME / "conf" / group / f"{name}.yaml")


def is_independent(group: str) -> bool:
    """Whether the files in ``conf/<group>/`` set keys of their own group only, and choose no options of other groups."""
    return not any(_REACHES_OUT.search(read_text(path)) for path in (HOME / "conf" / group).glob("*.yaml"))


def needs_others(group: str, name: str) -> bool:
    """Whether ``conf/<group>/<name>.yaml`` has a value that is taken from elsewhere, or one that must be given."""
    return bool(_UNRESOLVED.search(read_text(HOME / "conf" / group / f"{name}.yaml")))


def keys_replaced(group: str) -> set[str]:
    """The dotted keys of ``group`` to which a file that sets keys of several groups, such as an experiment, gives a value
    that is no mapping."""
    found: set[str] = set()
    for path in (HOME / "conf").rglob("*.yaml"):
        if path.parent == HOME / "conf" or _GLOBAL.search(read_text(path)):
            content = read_yaml(path)
            if isinstance(content, dict) and group in content:
                found |= set(_leaves(content[group], group))
    return found


def _leaves(node: Json, key: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}")
    else:
        yield key


def value_at(node: Json, key: str) -> Json:
    """The value that ``node`` has at the dotted ``key``, None if it has none."""
    for part in key.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.get(part)
        else:
            return None
    return node


def check_option_files() -> None:
    """Checks that the files of ``conf/`` are UTF-8, not empty, and without aliases that multiply, which would take Hydra
    for ever.

    Raises:
        UserError: one is not.
    """
    for path in sorted((HOME / "conf").rglob("*.yaml")):
        text = read_text(path)
        if not text.strip():
            raise UserError(_shown(path), "is empty", "fill it in, or remove it")
        if _ALIAS.search(text):
            read_yaml(path)
        if path.parent.name == "experiment" and not _GLOBAL.search(text):
            raise UserError(_shown(path), "has no line '# @package _global_'", "begin the file with it")


def _shown(path: Path) -> str:
    return str(path.relative_to(HOME))


def _order(path: Path, content: Json) -> int:
    order = content.get("order", LAST) if isinstance(content, dict) else LAST
    if not isinstance(order, int) or isinstance(order, bool):
        raise UserError(f"{_shown(path)}: order", f"found {order!r}", "must be a whole number")
    return order
