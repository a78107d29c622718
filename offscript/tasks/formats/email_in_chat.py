"""The request of an office task in ordinary chat: no tools, no records, no workplace; only the body is asked for.

What could be looked up is not given, so facts are invented or left open. Ends as ``chat`` does.
"""

from offscript.errors import UserError
from offscript.tasks.formats.base import Cost, Episode, Format, Rules
from offscript.tasks.formats.episodes import require, single_reply, with_system
from offscript.tasks.prompts import BODY_ONLY, fill
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    *_, last = require(scenario, "messages")
    if last["role"] != "user":
        raise UserError(
            f"scenario {scenario.id}",
            f"its last message is the {last['role']}'s",
            "email_in_chat needs a request of the user's as the last message",
        )
    request = fill(BODY_ONLY, request=last["content"])
    return (yield from single_reply(with_system(rules.system, ({"role": "user", "content": request},))))


FORMAT = Format(
    "email_in_chat",
    version=1,
    source="office",
    episode=episode,
    templates={"body_only": BODY_ONLY},
    order=28,
    text_is_email=True,
    # Assumed, as for chat.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=70),
)
