"""Discovery by folder: every file of a folder that defines a given name is one option, and no list is kept."""

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

from offscript.errors import UserError, one_of


class Plugin(Protocol):
    """What is discovered has a name."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Plugin)


def discover(package: str, attribute: str, kind: type[P], folders: Sequence[str | Path]) -> dict[str, P]:
    """What the Python files of ``folders`` define as ``attribute``, by name, sorted by file name.

    Files without ``attribute`` are helpers and are skipped. ``package`` is the dotted name of the folder that belongs to
    the library; files of other folders are loaded by their path.

    Raises:
        UserError: a file cannot be imported, ``attribute`` is not a ``kind``, its name is not that of its file, or two folders hold one name.
    """
    found: dict[str, tuple[Path, P]] = {}
    own = Path(importlib.import_module(package).__file__ or "").parent
    for path in sorted(file for folder in folders for file in Path(folder).glob("*.py")):
        if path.stem == "__init__":
            continue
        try:
            inside = path.parent == own
            module = importlib.import_module(f"{package}.{path.stem}") if inside else _load(path, package)
        except Exception as error:
            raise cannot_load(path, error) from error
        value = getattr(module, attribute, None)
        if value is None:
            continue
        where = f"{path}: {attribute}"
        if not isinstance(value, kind):
            raise UserError(where, f"found {type(value).__name__}", f"must be a {kind.__name__}")
        if value.name != path.stem:
            raise UserError(
                f"{where}.name", f"found {value.name!r}", f"must be {path.stem!r}, the file's name"
            )
        if value.name in found:
            first = found[value.name][0]
            raise UserError(
                str(path), f"a second {kind.__name__} {value.name!r}", f"rename it; the first is {first}"
            )
        found[value.name] = path, value
    return {name: value for name, (_, value) in sorted(found.items())}


def choose(
    options: Mapping[str, P], name: str, where: str, what: str, folders: Sequence[str | Path], attribute: str
) -> P:
    """The option called ``name``, which the config key ``where`` asks for; ``what`` is what options are called.

    Raises:
        UserError: there is none; the message lists all names, or names the file of ``folders`` that lacks ``attribute``.
    """
    if name not in options:
        raise not_found(options, name, where, what, folders, attribute)
    return options[name]


def not_found(
    names: Iterable[str],
    name: str,
    where: str,
    what: str,
    folders: Iterable[str | Path],
    attribute: str,
) -> UserError:
    """The error of ``choose``."""
    for file in (Path(folder) / f"{name}.py" for folder in folders):
        if file.is_file():
            return UserError(str(file), f"is no {what}", f"it must define {attribute} at the top level")
    return UserError(where, f"unknown {what} {name!r}", one_of(names))


def cannot_load(path: Path, error: Exception) -> UserError:
    """The error about a Python file that cannot be imported."""
    reason = (str(error).splitlines() or [""])[0]
    return UserError(str(path), f"{type(error).__name__}: {reason}", "correct or remove the file")


def _load(path: Path, package: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{package.replace('.', '_')}_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
