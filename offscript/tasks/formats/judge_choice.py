"""A judge reads a text and chooses the character that it shows from a list.

The first message of a scenario is the text; each further one is a character (``Name: description``), in the order of the
list. The judge is asked twice, each time in a conversation of its own: with this list, and with the same in reverse. The note
``choices`` has both answers as the number of the character in its list, from 0; null where the reply is no answer
(``offscript/tasks/formats/judge_replies.py``). The text of the row names the chosen characters. Ends ``stop`` (two answers) or
``no_answer``.
"""

import string

from offscript.errors import UserError
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system
from offscript.tasks.formats.judge_replies import MOST_OPTIONS, chosen
from offscript.tasks.messages import Message
from offscript.tasks.prompts import JUDGE_CHOICE, fill
from offscript.tasks.scenarios import Scenario

SOURCE = "texts"
"""``Format.source`` of the formats whose scenarios are the texts of other rollouts."""


def episode(scenario: Scenario, rules: Rules) -> Episode:
    text, *characters = (m["content"] for m in require(scenario, "messages"))
    if not 2 <= len(characters) <= MOST_OPTIONS:
        raise UserError(
            f"scenario {scenario.id}", f"has {len(characters)} characters", f"must have 2 to {MOST_OPTIONS}"
        )
    transcript, choices, names = list[Message](), list[int | None](), list[str]()
    for shown in (characters, characters[::-1]):
        listed = "\n".join(
            f"{letter}) {line}" for letter, line in zip(string.ascii_uppercase, shown, strict=False)
        )
        request = fill(JUDGE_CHOICE, mark=mark_of(scenario), text=text, characters=listed)
        messages = with_system(rules.system, ({"role": "user", "content": request},))
        reply = yield Ask(messages)
        shown_names = [line.partition(": ")[0] for line in shown]
        choices.append(answer := chosen(reply, shown_names))
        names += [] if answer is None else [shown_names[answer]]
        transcript += [*messages, assistant_message(reply.text)]
    ended = "no_answer" if None in choices else "stop"
    return Outcome(", ".join(names) or None, tuple(transcript), ended, notes={"choices": list(choices)})


def mark_of(scenario: Scenario) -> str:
    """The mark that stands around the text of a scenario."""
    return f"text-{scenario.id}"


FORMAT = Format(
    "judge_choice",
    version=1,
    source=SOURCE,
    episode=episode,
    templates={"request": JUDGE_CHOICE},
    order=180,
    scored=False,
    # Assumed: a text of 150 tokens, eleven characters of 25 each, and an answer with a few words around it.
    cost=Cost(replies=2, reply_tokens=10, prompt_tokens=550, accumulates_history=False),
)
