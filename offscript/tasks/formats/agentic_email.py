"""An e-mail from a tool loop: the model looks things up in a simulated office until it sends one.

Ends ``email`` (its body is the text), ``final`` (done, nothing sent), ``max_steps`` (replies used up), or
``malformed`` (four replies in a row that are no call).
"""

import json
from typing import Any

from offscript.tasks.formats.base import Ask, Episode, Format, Message, Outcome, Rules
from offscript.tasks.formats.turns import needed, opening, said
from offscript.tasks.prompts import EMPTY_EMAIL, MALFORMED_REPLY, NOTHING_FOUND, UNKNOWN_TOOL, fill
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tools import SEND, Final, Malformed, answer, email_body, is_refused, parse

MALFORMED_IN_A_ROW = 4


def episode(scenario: Scenario, rules: Rules) -> Episode:
    messages = list(opening(rules.system, needed(scenario, "messages")))
    calls = malformed = 0
    for _ in range(scenario.max_steps):
        reply = yield Ask(tuple(messages))
        messages.append(said(reply.text))
        parsed = parse(reply.text)
        if isinstance(parsed, Final):
            return Outcome(None, tuple(messages), "final", calls)
        if isinstance(parsed, Malformed):
            malformed += 1
            if malformed == MALFORMED_IN_A_ROW:
                return Outcome(None, tuple(messages), "malformed", calls)
            messages.append(tool_result({"error": fill(MALFORMED_REPLY, problem=parsed.reason)}))
            continue
        malformed, calls = 0, calls + 1
        body = email_body(parsed) if parsed.tool == SEND else ""
        result = (
            {"error": EMPTY_EMAIL} if parsed.tool == SEND and not body else answer(scenario.tools, parsed)
        )
        if body and not is_refused(result):
            return Outcome(body, tuple(messages), "email", calls)
        messages.append(tool_result(result))
    return Outcome(None, tuple(messages), "max_steps", calls)


def tool_result(value: Any) -> Message:
    return {"role": "tool", "content": json.dumps(value, ensure_ascii=False)}


FORMAT = Format(
    "agentic_email",
    version=1,
    source="office",
    episode=episode,
    templates={
        "malformed": MALFORMED_REPLY,
        "unknown_tool": UNKNOWN_TOOL,
        "nothing_found": NOTHING_FOUND,
        "empty_email": EMPTY_EMAIL,
    },
)
