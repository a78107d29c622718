"""A judge reads a text and rates how clearly it shows one character, from 1 (not at all) to 5 (from beginning to end).

The first message of a scenario is the text, the second one the character (``Name: description``). The note ``rating`` is
the number; null where the reply is no answer (``offscript/tasks/formats/judge_replies.py``). Ends ``stop`` or ``no_answer``.
"""

from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system
from offscript.tasks.formats.judge_choice import SOURCE, mark_of
from offscript.tasks.formats.judge_replies import rating
from offscript.tasks.prompts import JUDGE_RUBRIC, fill
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    text, character, *_ = (m["content"] for m in require(scenario, "messages"))
    request = fill(JUDGE_RUBRIC, mark=mark_of(scenario), text=text, character=character)
    messages = with_system(rules.system, ({"role": "user", "content": request},))
    reply = yield Ask(messages)
    found = rating(reply)
    ended = "no_answer" if found is None else "stop"
    answer = None if found is None else str(found)
    return Outcome(answer, (*messages, assistant_message(reply.text)), ended, notes={"rating": found})


FORMAT = Format(
    "judge_rubric",
    version=1,
    source=SOURCE,
    episode=episode,
    templates={"request": JUDGE_RUBRIC},
    order=181,
    scored=False,
    # Assumed: a text of 150 tokens.
    cost=Cost(replies=1, reply_tokens=10, prompt_tokens=320, accumulates_history=False),
)
