"""The formats by name. A new format is one Python file in this folder, with a ``FORMAT``, and one YAML in
``conf/format``."""

from collections.abc import Iterable
from pathlib import Path

from offscript.errors import UserError
from offscript.storage.plugins import choose, discover
from offscript.tasks.formats.base import Format, Rules
from offscript.tasks.scenarios import Scenario

FOLDER = Path(__file__).parent


def formats_in(*folders: Path) -> dict[str, Format]:
    """The formats of ``folders`` by name, sorted by ``order``, then by name: every Python file that defines ``FORMAT``.

    Raises:
        UserError: a ``FORMAT`` is not a Format, its name is not that of its file, or two folders hold the same name.
    """
    found = discover(__name__, "FORMAT", Format, folders).values()
    for fmt in found:
        if not isinstance(fmt.order, int):
            raise UserError(f"format {fmt.name}: order", f"found {fmt.order!r}", "must be a whole number")
    return {fmt.name: fmt for fmt in sorted(found, key=lambda fmt: (fmt.order, fmt.name))}


FORMATS: dict[str, Format] = formats_in(FOLDER)


def get_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        UserError: there is none; the message lists all names.
    """
    return choose(FORMATS, name, "format", "format")


def check_episodes(fmt: Format, scenarios: Iterable[Scenario], rules: Rules) -> None:
    """Starts every episode and stops at its first Ask: checks scenarios and options without an engine.

    Raises:
        UserError: a scenario or an option does not fit the format.
    """
    for scenario in scenarios:
        next(fmt.episode(scenario, rules), None)
