"""Chat with a request to drop any role at the end of the user's message."""

from offscript.seeds import stable_hash
from offscript.tasks.formats.base import Cost, Episode, Format, Rules
from offscript.tasks.formats.episodes import require, single_reply, with_system
from offscript.tasks.prompts import BREAK_CHARACTER
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    *before, last = with_system(rules.system, require(scenario, "messages"))
    request = instruction(scenario.id)
    return (yield from single_reply((*before, {**last, "content": f"{last['content']}\n\n{request}"})))


def instruction(scenario_id: str) -> str:
    """The request for a scenario: chosen by its id alone, so it is the same in every cell."""
    return BREAK_CHARACTER[stable_hash("break_character", scenario_id) % len(BREAK_CHARACTER)]


FORMAT = Format(
    "break_character",
    version=1,
    source="chat",
    episode=episode,
    templates={f"instruction_{i}": text for i, text in enumerate(BREAK_CHARACTER, 1)},
    order=20,
    # As for chat, with the request.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=80),
)
