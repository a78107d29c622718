"""The formats by name. A new format is one Python file in this folder, with a ``FORMAT``, and one YAML in
``conf/format``."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from offscript.errors import UserError, one_of
from offscript.tasks.formats.base import Format, Rules
from offscript.tasks.scenarios import Scenario

FOLDER = Path(__file__).parent


def discover(*folders: Path) -> dict[str, Format]:
    """The formats of ``folders`` by name, sorted by their ``order``, then by name.

    Every Python file that defines ``FORMAT`` is a format; other files are helpers and skipped.

    Raises:
        UserError: a ``FORMAT`` is not a Format, its name is not the name of its file, or two folders hold the same name.
    """
    found: dict[str, tuple[Path, Format]] = {}
    for folder in folders:
        for name in sorted(module.name for module in pkgutil.iter_modules([str(folder)])):
            path = folder / f"{name}.py"
            fmt = getattr(_load(path), "FORMAT", None)
            if fmt is None:
                continue
            if not isinstance(fmt, Format):
                raise UserError(f"{path}: FORMAT", f"found {type(fmt).__name__}", "must be a Format")
            if fmt.name != name:
                raise UserError(
                    f"{path}: FORMAT.name", f"found {fmt.name!r}", f"must be {name!r}, the file's name"
                )
            if name in found:
                raise UserError(
                    str(path), f"a second format {name!r}", f"rename it; the first is {found[name][0]}"
                )
            found[name] = path, fmt
    ordered = sorted((fmt for _, fmt in found.values()), key=lambda fmt: (fmt.order, fmt.name))
    return {fmt.name: fmt for fmt in ordered}


def _load(path: Path) -> ModuleType:
    if path.parent == FOLDER:
        return importlib.import_module(f"{__name__}.{path.stem}")
    spec = importlib.util.spec_from_file_location(f"offscript_format_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMATS: dict[str, Format] = discover(FOLDER)


def get_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        UserError: there is none; the message lists all names.
    """
    if name not in FORMATS:
        raise UserError("format", f"unknown format {name!r}", one_of(FORMATS))
    return FORMATS[name]


def check_episodes(fmt: Format, scenarios: Iterable[Scenario], rules: Rules) -> None:
    """Starts every episode and stops at its first Ask: checks scenarios and options without an engine.

    Raises:
        UserError: a scenario or an option does not fit the format.
    """
    for scenario in scenarios:
        next(fmt.episode(scenario, rules), None)
