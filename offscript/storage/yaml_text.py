"""YAML that others wrote: plain data without tags, read or refused with one line."""

from collections.abc import Hashable
from pathlib import Path

import yaml

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.storage.files import read_text
from offscript.storage.json_text import MAX_DEPTH, check_encodable

MAX_ALIASED = 10_000
"""Nodes that the aliases of a file may add. Nested aliases multiply, and every reader of the value walks through all."""

_FAULTS = (yaml.YAMLError, ValueError, LookupError, AttributeError)
"""What PyYAML raises for a text. The last two are its answers to ``!!bool abc`` and ``!!timestamp abc``."""


class _Strict:
    """YAML constructor that keeps dates as strings (tool results are JSON) and refuses repeated keys."""

    # As in PyYAML, a class attribute.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key in [k for k, _ in node.value if isinstance(k, yaml.ScalarNode)]:
            if key.value in seen:
                error = f"key {key.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, error, key.start_mark)
            seen.add(key.value)
        found: dict[Hashable, object] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return found


class _Loader(_Strict, yaml.SafeLoader):
    """In Python: its error messages say more than libyaml's."""


class _FastLoader(_Strict, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """On libyaml, ten times as fast."""


def read_yaml(path: Path) -> Json:
    """The value in a YAML file; None if it is empty.

    Raises:
        UserError: the file cannot be read, is not YAML, has a tag, a repeated key or half of a surrogate pair, is nested deeper than MAX_DEPTH, or
            its aliases add more than MAX_ALIASED nodes or contain themselves.
    """
    return parse_yaml(read_text(path, "a YAML file is needed"), path)


def parse_yaml(text: str, path: Path) -> Json:
    """As ``read_yaml``, of a ``text`` that was read from ``path``."""
    try:
        return _load(text, path, _FastLoader)
    except _FAULTS:
        pass
    try:
        return _load(text, path, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = error.problem or ""
        if problem.startswith("but "):
            problem = f"{error.context} {problem}"
        where, found = f"{path}:{line}", f"not valid YAML: {problem}"
        raise UserError(where, found, "correct this line or the one above") from None
    except _FAULTS as error:
        raise UserError(str(path), f"not valid YAML: {error}", "correct the file") from None


def _load(text: str, path: Path, loader: type[yaml.SafeLoader]) -> Json:
    # libyaml's composer is recursive C code, which ends the process where a file is nested too deeply.
    _check_size(text, path, loader)
    value: Json = yaml.load(text, loader)
    check_encodable(value, str(path))
    return value


def _check_size(text: str, path: Path, loader: type[yaml.SafeLoader]) -> None:
    """Refuses what is too deep or too large, from the parser's events, which are made without recursion."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    nodes = aliased = 0
    for event in yaml.parse(text, loader):
        where = f"{path}:{event.start_mark.line + 1}" if event.start_mark else str(path)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (name for name, _ in opened):
                raise UserError(
                    where, f"alias *{event.anchor} stands inside its own anchor", "correct the file"
                )
            aliased += sizes.get(str(event.anchor), 0)
            if aliased > MAX_ALIASED:
                raise UserError(
                    where,
                    f"aliases repeat more than {MAX_ALIASED:,} nodes",
                    "write the values out, without aliases",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = opened.pop()
            if name is not None:
                sizes[name] = nodes + aliased - before
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, nodes + aliased))
                if len(opened) > MAX_DEPTH:
                    raise UserError(where, f"nested more than {MAX_DEPTH} levels deep", "correct the file")
            elif event.anchor is not None:
                sizes[event.anchor] = 1
            nodes += 1
