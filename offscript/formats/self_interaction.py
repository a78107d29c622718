"""The model talks to itself. Both sides are ``self``; each hears the other's turns as the user's.

The transcript is the first speaker's, so that its own turns are the assistant's and can all be trained:

    user: opener, assistant: A1, user: B1, assistant: A2, ...

``turns`` counts the messages from the opener on and is even, so the transcript ends with an assistant turn.
"""

from offscript.errors import UserError
from offscript.formats.base import Ask, Episode, Format, Message, Outcome, Rules
from offscript.formats.turns import needed, opening, said
from offscript.prompts import SELF_INTERACTION_CUE
from offscript.scenarios import Scenario

FLIPPED = {"user": "assistant", "assistant": "user"}


def episode(scenario: Scenario, rules: Rules) -> Episode:
    turns = rules.options.get("turns", FORMAT.options["turns"])
    if not isinstance(turns, int) or turns < 2 or turns % 2:
        raise UserError("format.options.turns", f"found {turns!r}", "must be an even number, 2 or more")
    messages = list(opening(rules.system, needed(scenario, "messages")))
    ended = "stop"
    for turn in range(1, turns):
        first = turn % 2 == 1
        reply = yield Ask(tuple(messages) if first else other_view(messages))
        if not reply.text.strip():
            return Outcome(None, tuple(messages), "empty")
        if reply.finish_reason != "stop":
            ended = reply.finish_reason
        messages.append(said(reply.text) if first else {"role": "user", "content": reply.text})
    return Outcome(messages[-1]["content"].strip(), tuple(messages), ended)


def other_view(messages: list[Message]) -> tuple[Message, ...]:
    """The conversation as the second speaker has it. A cue in the user's place comes first, since the opener is
    now its own turn and chat templates want the user to begin."""
    system = tuple(m for m in messages if m["role"] == "system")
    flipped = [{**m, "role": FLIPPED[m["role"]]} for m in messages if m["role"] in FLIPPED]
    return (*system, {"role": "user", "content": SELF_INTERACTION_CUE}, *flipped)


FORMAT = Format(
    "self_interaction",
    version=1,
    source="interaction",
    episode=episode,
    templates={"cue": SELF_INTERACTION_CUE},
    options={"turns": 6},
)
