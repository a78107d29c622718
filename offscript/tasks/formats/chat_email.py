"""The task of an office scenario in one request: everything that could be looked up is given, and only the body of the
e-mail is asked for. The whole reply, stripped, is the body; nothing is parsed. Ends as ``chat``."""

from offscript.tasks.formats.base import Cost, Episode, Format, Rules
from offscript.tasks.formats.episodes import require, single_reply, with_system
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    return (yield from single_reply(with_system(rules.system, require(scenario, "brief"))))


FORMAT = Format(
    "chat_email",
    version=1,
    source="office",
    episode=episode,
    order=30,
    text_is_email=True,
    # Reply: assumed, as for chat. Prompt: mean of data/office, at 4 characters a token.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=740),
)
