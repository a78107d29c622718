"""One assertion of the constitution in other words, as the character would say it of itself.

The scenario's first message is the assertion. Ends ``stop``, ``length`` (the reply was cut), or without a text ``empty`` or
``unclosed_thinking``.
"""

from offscript.tasks.formats.base import Cost, Episode, Format, Rules
from offscript.tasks.formats.episodes import require, single_reply, with_system
from offscript.tasks.prompts import DECLARATION, fill
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    assertion = require(scenario, "messages")[0]["content"]
    request = fill(DECLARATION, assertion=assertion)
    return (yield from single_reply(with_system(rules.system, ({"role": "user", "content": request},))))


FORMAT = Format(
    "declaration",
    version=1,
    source="constitution",
    episode=episode,
    templates={"request": DECLARATION},
    order=171,
    scored=False,
    in_role=True,
    # Assumed: two sentences.
    cost=Cost(replies=1, reply_tokens=50, prompt_tokens=60),
)
