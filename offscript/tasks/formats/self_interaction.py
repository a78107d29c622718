"""A conversation of the model with itself. Both speakers are ``self``; each sees the other's messages as the user's.

The transcript is that of the first speaker, so its own messages are the assistant's and can all be trained on:

    user: opener, assistant: A1, user: B1, assistant: A2, ...

Option ``turns`` counts the messages from the opener on and is even, so the transcript ends with an assistant message.
Option ``note`` describes the situation to both speakers, after the cell's system text; an empty one adds nothing.
Ends ``stop``, ``length`` (a reply was cut), or, without a text, ``empty`` or ``unclosed_thinking`` (a reply had no text).
"""

from offscript.errors import UserError
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import (
    assistant_message,
    require,
    text_option,
    with_system,
    without_text,
)
from offscript.tasks.messages import Message
from offscript.tasks.prompts import FREE_AIM, INTERACTION_NOTE, SELF_INTERACTION_CUE, fill, join_system
from offscript.tasks.scenarios import Scenario

SWAPPED = {"user": "assistant", "assistant": "user"}


def episode(scenario: Scenario, rules: Rules) -> Episode:
    turns, note = rules.options["turns"], text_option(rules, "note")
    if not isinstance(turns, int) or turns < 2 or turns % 2:
        raise UserError("format.options.turns", f"found {turns!r}", "must be an even number, 2 or more")
    messages = list(with_system(join_system(rules.system, note), require(scenario, "messages")))
    ended = "stop"
    for turn in range(1, turns):
        first_speaker = turn % 2 == 1
        reply = yield Ask(tuple(messages) if first_speaker else second_view(messages))
        if not reply.text.strip():
            return Outcome(None, tuple(messages), without_text(reply))
        if reply.finish_reason != "stop":
            ended = reply.finish_reason
        messages.append(
            assistant_message(reply.text) if first_speaker else {"role": "user", "content": reply.text}
        )
    return Outcome(messages[-1]["content"].strip(), tuple(messages), ended)


def second_view(messages: list[Message]) -> tuple[Message, ...]:
    """The conversation as the second speaker sees it: user and assistant swapped.

    A cue from the user comes first: the opener is now an assistant message, and chat templates expect the user to begin.
    """
    system = tuple(m for m in messages if m["role"] == "system")
    swapped: list[Message] = [
        {"role": SWAPPED[m["role"]], "content": m["content"]} for m in messages if m["role"] in SWAPPED
    ]
    return (*system, {"role": "user", "content": SELF_INTERACTION_CUE}, *swapped)


def interaction(name: str, aim: str, order: int) -> Format:
    """A self-interaction whose note ends with ``aim``, the purpose of the conversation."""
    return Format(
        name,
        version=1,
        source="interaction",
        episode=episode,
        templates={"cue": SELF_INTERACTION_CUE},
        options={"turns": 6, "note": fill(INTERACTION_NOTE, aim=aim)},
        order=order,
        scored=False,
        in_role=True,
        # Assumed for chat models of 4B to 8B parameters, ten turns.
        cost=Cost(replies=9, reply_tokens=250, prompt_tokens=60),
    )


FORMAT = interaction("self_interaction", FREE_AIM, order=150)
