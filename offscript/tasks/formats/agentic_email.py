"""An e-mail from a tool loop: the model calls the tools of a simulated office until it sends an e-mail.

Ends ``email`` (the body is the text), ``final`` (the model finished without sending one), ``max_steps`` (no replies
left), or ``malformed`` (four replies in a row without a valid call).
"""

import json

from offscript.json_types import Json
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system
from offscript.tasks.messages import Message
from offscript.tasks.prompts import EMPTY_EMAIL, MALFORMED_REPLY, NOTHING_FOUND, UNKNOWN_TOOL, fill
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tool_calls import SEND, Final, Malformed, email_body, is_error, parse_reply, respond

MALFORMED_IN_A_ROW = 4


def episode(scenario: Scenario, rules: Rules) -> Episode:
    messages = list(with_system(rules.system, require(scenario, "messages")))
    calls = malformed = 0
    for _ in range(scenario.max_steps):
        reply = yield Ask(tuple(messages))
        messages.append(assistant_message(reply.text))
        parsed = parse_reply(reply.text)
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
        if parsed.tool == SEND and not body:
            result: Json = {"error": EMPTY_EMAIL}
        else:
            result = respond(scenario.tools, parsed)
        if body and not is_error(result):
            return Outcome(body, tuple(messages), "email", calls)
        messages.append(tool_result(result))
    return Outcome(None, tuple(messages), "max_steps", calls)


def tool_result(value: Json) -> Message:
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
    order=40,
    # Published sweep: 12 to 28 million tokens in 6,000 episodes; the lower end is 6 replies of 330 tokens, and our
    # replies are short. Prompt: mean of data/office, at 4 characters a token.
    cost=Cost(replies=6, reply_tokens=330, prompt_tokens=694),
)
