"""The last reply of a tool session whose calls and results are given: the answer to the user.

The text is what follows the last ``ANSWER:``; without that mark, what stands outside of ``tool_call`` fences. Ends as
``chat`` does, or ``no_answer`` (nothing but a further call).
"""

import re

from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system, without_text
from offscript.tasks.scenarios import Scenario

_CALL = re.compile(r"```[ \t]*tool_?call\b.*?(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"(?:\*\*)?ANSWER:(?:\*\*)?")


def episode(scenario: Scenario, rules: Rules) -> Episode:
    messages = with_system(rules.system, require(scenario, "messages"))
    reply = yield Ask(messages)
    text = answer(reply.text)
    ended = reply.finish_reason
    if not text:
        ended = "no_answer" if reply.text.strip() else without_text(reply)
    return Outcome(text or None, (*messages, assistant_message(reply.text)), ended)


def answer(reply: str) -> str:
    """The answer in a reply, stripped; empty if there is none."""
    *_, last = _ANSWER.split(reply)
    return _CALL.sub("", last).strip()


FORMAT = Format(
    "agentic_tools",
    version=1,
    source="agentic_tools",
    episode=episode,
    order=55,
    # Reply: assumed, as for chat. Prompt: mean of data/scaffolds, at 4 characters a token.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=235),
)
