"""Chat with a request to drop any role at the end of the user's message.

There are eight wordings of the request. Option ``instructions`` is ``one`` (each scenario has one of them, chosen by its
id) or ``all`` (each scenario is played with every one).
"""

from collections.abc import Mapping, Sequence

from offscript.errors import UserError, one_of
from offscript.json_types import Json
from offscript.seeds import stable_hash
from offscript.tasks.formats.base import Cost, Episode, Format, Rules
from offscript.tasks.formats.episodes import require, single_reply, with_system
from offscript.tasks.prompts import BREAK_CHARACTER
from offscript.tasks.scenarios import Scenario

NAMES = tuple(f"i{number}" for number in range(1, len(BREAK_CHARACTER) + 1))
"""A name for each wording, in order."""


def episode(scenario: Scenario, rules: Rules) -> Episode:
    *before, last = with_system(rules.system, require(scenario, "messages"))
    request = BREAK_CHARACTER[NAMES.index(scenario.variant or instruction(scenario.id))]
    return (yield from single_reply((*before, {**last, "content": f"{last['content']}\n\n{request}"})))


def instruction(scenario_id: str) -> str:
    """The name of the request for a scenario: chosen by its id alone, so it is the same in every cell."""
    return NAMES[stable_hash("break_character", scenario_id) % len(NAMES)]


def variants(options: Mapping[str, Json]) -> Sequence[str]:
    """The names of the requests with which every scenario is played; none if each has one of its own.

    Raises:
        UserError: ``instructions`` is neither ``one`` nor ``all``.
    """
    chosen = options["instructions"]
    if chosen not in ("one", "all"):
        raise UserError("format.options.instructions", f"found {chosen!r}", one_of(("one", "all")))
    return NAMES if chosen == "all" else ()


FORMAT = Format(
    "break_character",
    version=1,
    source="chat",
    episode=episode,
    templates={f"instruction_{i}": text for i, text in enumerate(BREAK_CHARACTER, 1)},
    later_options={"instructions": "one"},
    variants=variants,
    order=20,
    # As for chat, with the request.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=80),
)
