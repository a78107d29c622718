"""Chat in which the untrained model answers first, and the model that is measured is asked to go on.

The second reply is the text. Ends as ``chat`` does, or ``no_first_reply`` (the untrained model wrote nothing).
"""

from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, single_reply, with_system
from offscript.tasks.messages import Message
from offscript.tasks.prompts import GO_ON
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    messages = with_system(rules.system, require(scenario, "messages"))
    first = yield Ask(messages, speaker="base")
    if not first.text.strip():
        return Outcome(None, messages, "no_first_reply")
    further: Message = {"role": "user", "content": GO_ON}
    return (yield from single_reply((*messages, assistant_message(first.text), further)))


FORMAT = Format(
    "prefill",
    version=1,
    source="chat",
    episode=episode,
    templates={"go_on": GO_ON},
    order=25,
    # As for chat, twice.
    cost=Cost(replies=2, reply_tokens=250, prompt_tokens=60),
)
