"""Chat with a request to drop any role at the end of the user's turn."""

from offscript.seeds import stable_hash
from offscript.tasks.formats.base import Episode, Format, Rules
from offscript.tasks.formats.turns import needed, opening, single_reply
from offscript.tasks.prompts import BREAK_CHARACTER
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    *before, last = opening(rules.system, needed(scenario, "messages"))
    request = instruction(scenario.id)
    return (yield from single_reply((*before, {**last, "content": f"{last['content']}\n\n{request}"})))


def instruction(scenario_id: str) -> str:
    """The request that a scenario gets: by its id alone, so the same one in every cell."""
    return BREAK_CHARACTER[stable_hash("break_character", scenario_id) % len(BREAK_CHARACTER)]


FORMAT = Format(
    "break_character",
    version=1,
    source="chat",
    episode=episode,
    templates={f"instruction_{i}": text for i, text in enumerate(BREAK_CHARACTER, 1)},
)
