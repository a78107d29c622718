"""Chat in role (the cell's system text is the constitution) on train prompts: the side that DPO prefers.

The teacher may be a reasoning model: ``thinking`` is what its reply has to begin with, and all that it says up to
``thinking_end`` is cut off, asked for or not. Ends as ``chat`` does, or ``unclosed_thinking`` (nothing but thinking).
"""

from offscript.errors import UserError
from offscript.tasks.formats.base import Ask, Episode, Format, Outcome, Rules
from offscript.tasks.formats.turns import THINKING_END, concluded, needed, opening, without_thinking
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    thinking, end = rules.options["thinking"], rules.options["thinking_end"]
    if not end:
        raise UserError(
            "recipe.teacher.thinking_end", "is empty", "the mark that ends thinking, e.g. </think>"
        )
    asked = opening(rules.system, needed(scenario, "messages"))
    reply = yield Ask(asked, prefix=thinking)
    words = without_thinking(reply.text, thinking, end)
    if words is None:
        return Outcome(None, asked, "unclosed_thinking")
    return concluded(asked, words, reply.finish_reason)


FORMAT = Format(
    "teacher",
    version=2,
    source="chat",
    episode=episode,
    options={"thinking": "", "thinking_end": THINKING_END},
)
