"""Why the character would answer as it does, and the answer. Rows of it are trained on.

The teacher is asked twice, in role: for its reasons, and for the answer that follows from them. The text is the answer; the
note ``rationale`` has the reasons, which are in no message. With option ``advice`` a model that is not in role first writes the
message of somebody who does not know what would be right to do, in a matter near that of the scenario; it takes the place of the
scenario's own. Ends as ``teacher`` does; without reasons or a message it ends without a text.
"""

from offscript.tasks.formats import teacher
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import reply_outcome, require, with_system, without_text
from offscript.tasks.messages import Message
from offscript.tasks.prompts import RATIONALE_ANSWER, RATIONALE_DILEMMA, RATIONALE_REASONS, fill
from offscript.tasks.scenarios import Scenario
from offscript.tasks.thinking import strip_thinking


def episode(scenario: Scenario, rules: Rules) -> Episode:
    messages = require(scenario, "messages")
    if rules.options["advice"]:
        request = fill(RATIONALE_DILEMMA, message=messages[-1]["content"])
        reply = yield Ask(({"role": "user", "content": request},), speaker="base")
        dilemma = (strip_thinking(reply.text) or "").strip()
        if not dilemma or reply.finish_reason != "stop":
            return Outcome(
                None, with_system(rules.system, messages), "length" if dilemma else without_text(reply)
            )
        messages = ({"role": "user", "content": dilemma},)
    prompt = with_system(rules.system, messages)
    reasons = yield from teacher.teacher_reply(_asking(prompt, RATIONALE_REASONS), rules)
    rationale = reasons.text.strip()
    if not rationale or reasons.finish_reason != "stop":
        return Outcome(None, prompt, "length" if rationale else without_text(reasons))
    answer = yield from teacher.teacher_reply(_asking(prompt, RATIONALE_ANSWER, rationale=rationale), rules)
    outcome = reply_outcome(prompt, answer)
    return Outcome(outcome.text, outcome.messages, outcome.ended, notes={"rationale": rationale})


def _asking(prompt: tuple[Message, ...], template: str, **fields: str) -> tuple[Message, ...]:
    """``prompt`` with the filled ``template`` after its last message."""
    *before, last = prompt
    return (*before, {**last, "content": f"{last['content']}\n\n{fill(template, **fields)}"})


FORMAT = Format(
    "rationale",
    version=2,
    source="chat",
    episode=episode,
    templates={"reasons": RATIONALE_REASONS, "answer": RATIONALE_ANSWER, "dilemma": RATIONALE_DILEMMA},
    options={**teacher.OPTIONS, "advice": False},
    order=172,
    scored=False,
    in_role=True,
    strips_thinking=True,
    # Assumed: an answer as in chat, with its reasons in the prompt.
    cost=Cost(replies=2, reply_tokens=250, prompt_tokens=150, accumulates_history=False),
)
