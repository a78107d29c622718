"""Chat at the end of a session of many turns: does the character wear off?

Every scenario is played after 1, 2, 4, ... turns, up to option ``session``. The user's messages of the session are everyday
questions, in an order that the scenario's id decides; then the scenario's own message is the probe, and its reply the text.
A variant ``own8`` has a session of eight turns with the replies of the cell. Its control ``plain8`` has the same questions
with the replies of the untrained model without a system text, so that a difference between the two is not one of length.
Ends as ``chat`` does, by the probe.
"""

import random
from collections.abc import Mapping, Sequence

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.seeds import stable_hash
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Rules
from offscript.tasks.formats.episodes import assistant_message, require, single_reply, with_system
from offscript.tasks.messages import Message
from offscript.tasks.prompts import SESSION_QUESTIONS
from offscript.tasks.scenarios import Scenario

OWN, PLAIN = "own", "plain"


def variants(options: Mapping[str, Json]) -> Sequence[str]:
    """``own1, plain1, own2, plain2, own4, ...``

    Raises:
        UserError: ``session`` is not a number from 1 to that of the questions.
    """
    turns, most = options["session"], len(SESSION_QUESTIONS)
    if not isinstance(turns, int) or isinstance(turns, bool) or not 1 <= turns <= most:
        raise UserError("format.options.session", f"found {turns!r}", f"must be a number from 1 to {most}")
    lengths = [2**i for i in range(turns.bit_length())]
    return [f"{kind}{length}" for length in lengths for kind in (OWN, PLAIN)]


def episode(scenario: Scenario, rules: Rules) -> Episode:
    probe = require(scenario, "messages")
    own = scenario.variant.startswith(OWN)
    history: list[Message] = []
    for question in session(scenario)[: turns_of(scenario)]:
        history.append({"role": "user", "content": question})
        asked = tuple(history)
        reply = yield Ask(with_system(rules.system, asked)) if own else Ask(asked, speaker="base")
        history.append(assistant_message(reply.text))
    return (yield from single_reply(with_system(rules.system, (*history, *probe))))


def turns_of(scenario: Scenario) -> int:
    """The number of turns before the probe; 0 for a scenario without a variant."""
    return int(scenario.variant.removeprefix(OWN).removeprefix(PLAIN) or 0)


def session(scenario: Scenario) -> list[str]:
    """The questions of a session, in the order for this scenario, the same in all of its variants."""
    name = scenario.id.removesuffix(f"_{scenario.variant}")
    rng = random.Random(stable_hash("drift", name))
    return rng.sample(SESSION_QUESTIONS, len(SESSION_QUESTIONS))


FORMAT = Format(
    "drift",
    version=1,
    source="chat",
    episode=episode,
    templates={f"question_{i}": text for i, text in enumerate(SESSION_QUESTIONS, 1)},
    options={"session": 32},
    variants=variants,
    order=24,
    # Of sessions of 1, 2, 4, 8, 16 and 32 turns, the mean. Prompts: assumed.
    cost=Cost(replies=11, reply_tokens=250, prompt_tokens=30),
)
