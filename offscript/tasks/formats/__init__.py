"""The formats by name. A new one is a file here with a ``FORMAT``, a line below, a file in ``conf/format``."""

from collections.abc import Iterable

from offscript.errors import UserError, one_of
from offscript.tasks.formats import (
    agentic_email,
    break_character,
    chat,
    chat_email,
    guided_interaction,
    prompt_generation,
    self_interaction,
    self_reflection,
    student,
    teacher,
)
from offscript.tasks.formats.base import Format, Rules
from offscript.tasks.scenarios import Scenario

_MODULES = (
    chat,
    break_character,
    chat_email,
    agentic_email,
    prompt_generation,
    teacher,
    student,
    self_reflection,
    self_interaction,
    guided_interaction,
)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES}


def get_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in FORMATS:
        raise UserError("format", f"unknown format {name!r}", one_of(FORMATS))
    return FORMATS[name]


def check_episodes(form: Format, scenarios: Iterable[Scenario], rules: Rules) -> None:
    """Starts every episode up to its first Ask, which costs nothing and needs no engine.

    Raises:
        UserError: a scenario or an option does not fit the format; better now than after a model was loaded.
    """
    for scenario in scenarios:
        next(form.episode(scenario, rules), None)
