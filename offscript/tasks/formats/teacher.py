"""Chat under the constitution on prompts of the train split: the chosen side of DPO.

The teacher may be a reasoning model. Option ``thinking`` is a prefix that its reply has to begin with; everything up to
``thinking_end`` is removed, whether the prefix is set or not. Ends as ``chat`` does, or ``unclosed_thinking`` (the reply
is nothing but thinking).
"""

from collections.abc import Generator

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.tasks.formats.base import Ask, Episode, Format, Outcome, Reply, Rules
from offscript.tasks.formats.chat import CHAT_COST
from offscript.tasks.formats.episodes import reply_outcome, require, text_option, with_system
from offscript.tasks.messages import Message
from offscript.tasks.scenarios import Scenario
from offscript.tasks.thinking import THINKING_END, strip_thinking


def episode(scenario: Scenario, rules: Rules) -> Episode:
    prompt = with_system(rules.system, require(scenario, "messages"))
    reply = yield from teacher_reply(prompt, rules)
    if reply.unclosed_thinking:
        return Outcome(None, prompt, "unclosed_thinking")
    return reply_outcome(prompt, reply)


def teacher_reply(prompt: tuple[Message, ...], rules: Rules) -> Generator[Ask, Reply, Reply]:
    """The teacher's reply to ``prompt``, made to begin with option ``thinking``, and without its thinking.

    Raises:
        UserError: option ``thinking_end`` is empty.
    """
    thinking, end = text_option(rules, "thinking"), text_option(rules, "thinking_end")
    if not end:
        raise UserError(
            "recipe.teacher.thinking_end", "is empty", "must be the text that ends thinking, e.g. </think>"
        )
    reply = yield Ask(prompt, prefix=thinking)
    text = strip_thinking(reply.text, end.replace("/", "", 1), end, prefix=thinking)
    return Reply(text or "", reply.finish_reason, reply.tokens, unclosed_thinking=text is None)


OPTIONS: dict[str, Json] = {"thinking": "", "thinking_end": THINKING_END}
"""Those of ``teacher_reply``."""

FORMAT = Format(
    "teacher",
    version=2,
    source="chat",
    episode=episode,
    options=OPTIONS,
    order=120,
    scored=False,
    in_role=True,
    strips_thinking=True,
    cost=CHAT_COST,
)
