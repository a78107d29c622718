"""The task of ``chat_email``, then two rounds in which the user asks for a change of the draft.

The two wishes are chosen by the id of the scenario, so they are the same in every cell; none of them asks for a tone.
Option ``draft`` is the number of the draft that is scored, 1 to 3. Ends as ``chat`` does, by the last reply.
"""

import random

from offscript.errors import UserError
from offscript.seeds import stable_hash
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system, without_text
from offscript.tasks.messages import Message
from offscript.tasks.prompts import REVISION_WISHES
from offscript.tasks.scenarios import Scenario

DRAFTS = 3


def episode(scenario: Scenario, rules: Rules) -> Episode:
    scored = rules.options["draft"]
    if not isinstance(scored, int) or isinstance(scored, bool) or not 1 <= scored <= DRAFTS:
        raise UserError("format.options.draft", f"found {scored!r}", f"must be a number from 1 to {DRAFTS}")
    messages: list[Message] = list(with_system(rules.system, require(scenario, "brief")))
    drafts: list[str] = []
    for wish in (*wishes(scenario.id), None):
        reply = yield Ask(tuple(messages))
        messages.append(assistant_message(reply.text))
        drafts.append(reply.text.strip())
        if not drafts[-1]:
            return Outcome(None, tuple(messages), without_text(reply))
        if wish is not None:
            messages.append({"role": "user", "content": wish})
    return Outcome(drafts[scored - 1], tuple(messages), reply.finish_reason)


def wishes(scenario_id: str) -> list[str]:
    """The two wishes of a scenario, in order."""
    rng = random.Random(stable_hash("email_multiturn", scenario_id))
    return rng.sample(REVISION_WISHES, DRAFTS - 1)


FORMAT = Format(
    "email_multiturn",
    version=1,
    source="office",
    episode=episode,
    templates={f"wish_{i}": text for i, text in enumerate(REVISION_WISHES, 1)},
    options={"draft": DRAFTS},
    order=35,
    text_is_email=True,
    # As for chat_email, three times.
    cost=Cost(replies=DRAFTS, reply_tokens=250, prompt_tokens=740),
)
