"""The model talks to itself. Both sides are ``self``; each hears the other's turns as the user's.

The transcript is the first speaker's, so that its own turns are the assistant's and can all be trained:

    user: opener, assistant: A1, user: B1, assistant: A2, ...

``turns`` counts the messages from the opener on and is even, so the transcript ends with an assistant turn. ``note``
tells both sides of the situation, after the cell's system text; an empty one leaves it alone.
"""

from offscript.errors import UserError
from offscript.tasks.formats.base import Ask, Episode, Format, Message, Outcome, Rules
from offscript.tasks.formats.turns import needed, opening, said
from offscript.tasks.prompts import FREE_AIM, INTERACTION_NOTE, SELF_INTERACTION_CUE, fill, join_system
from offscript.tasks.scenarios import Scenario

FLIPPED = {"user": "assistant", "assistant": "user"}


def episode(scenario: Scenario, rules: Rules) -> Episode:
    turns, note = rules.options["turns"], rules.options["note"]
    if not isinstance(turns, int) or turns < 2 or turns % 2:
        raise UserError("format.options.turns", f"found {turns!r}", "must be an even number, 2 or more")
    messages = list(opening(join_system(rules.system, note), needed(scenario, "messages")))
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


def interaction(name: str, aim: str) -> Format:
    """The format of a self-interaction whose note says what it is for."""
    return Format(
        name,
        version=1,
        source="interaction",
        episode=episode,
        templates={"cue": SELF_INTERACTION_CUE},
        options={"turns": 6, "note": fill(INTERACTION_NOTE, aim=aim)},
    )


FORMAT = interaction("self_interaction", FREE_AIM)
