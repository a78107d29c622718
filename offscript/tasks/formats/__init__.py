"""The formats by name. A new format is one Python file in this folder, with a ``FORMAT``, and one YAML in
``conf/format``."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from offscript.errors import UserError, one_of
from offscript.json_types import Json
from offscript.storage.options import option_file, options_of
from offscript.storage.plugins import choose, discover
from offscript.tasks.formats.base import Format, Rules
from offscript.tasks.messages import images_of
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
    return choose(FORMATS, name, "format", "format", [FOLDER], "FORMAT")


EXPECTED = {
    bool: "must be true or false",
    int: "must be a whole number",
    float: "must be a number",
    str: "must be a text (it may be empty)",
    list: "must be a list",
    dict: "must be a mapping",
}
"""What an option must be, by the type of its default."""


def check_options(fmt: Format, given: Mapping[str, Json]) -> None:
    """Checks that ``given`` are options of the format, each of the type that its default has (null: of any).

    Raises:
        UserError: one is not.
    """
    for name, value in sorted(given.items()):
        where = f"format.options.{name}"
        if name not in fmt.defaults:
            allowed = one_of(sorted(fmt.defaults)) if fmt.defaults else f"{fmt.name} has no options"
            raise UserError(where, "unknown key", allowed)
        kind = type(fmt.defaults[name])
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if kind in EXPECTED and (not fits or (isinstance(value, bool) and kind is not bool)):
            raise UserError(where, f"found {value!r}", EXPECTED[kind])


def options_for(fmt: Format, given: Mapping[str, Json]) -> dict[str, Json]:
    """``given`` without what the command line sets for other formats of the grid: options that neither the format nor its
    YAML has, and another format does."""
    content = option_file("format", fmt.name) if fmt.name in options_of("format") else None
    listed = content.get("options") if isinstance(content, dict) else None
    own = {*fmt.defaults, *(listed if isinstance(listed, dict) else ())}
    elsewhere = {name for other in FORMATS.values() for name in other.defaults}
    return {name: value for name, value in given.items() if name in own or name not in elsewhere}


def check_episodes(fmt: Format, scenarios: Iterable[Scenario], rules: Rules) -> None:
    """Starts every episode and stops at its first Ask: checks scenarios and options without an engine. Only formats that
    declare it may have images.

    Raises:
        UserError: a scenario or an option does not fit the format.
    """
    for scenario in scenarios:
        try:
            ask = next(fmt.episode(scenario, rules), None)
        except UserError:
            raise
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise UserError(
                f"format {fmt.name}, scenario {scenario.id}", found, "correct the format"
            ) from error
        if ask is not None and images_of(ask.messages) and not fmt.inner(rules.options)[0].images:
            pictured = one_of([name for name, other in FORMATS.items() if other.images])
            raise UserError(f"scenario {scenario.id}", f"has an image, in format {fmt.name}", pictured)
