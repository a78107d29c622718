"""An e-mail from a tool loop: the model calls the tools of a simulated office until it sends an e-mail.

Ends ``email`` (the body is the text), ``final`` (the model finished without sending one), ``max_steps`` (no replies
left), or ``malformed`` (four replies in a row without a valid call).

With option ``forced`` the lookups are replayed: every tool is called as its rules expect, and gets their results. Then the
model writes the body of a send call that was begun for it, so that every episode has an e-mail, also of models that are
too small for tool loops. Ends ``email``, ``length`` (the body was cut), ``empty`` or ``unclosed_thinking``.
"""

import json
import re
from collections.abc import Sequence

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system, without_text
from offscript.tasks.messages import Message
from offscript.tasks.prompts import EMPTY_EMAIL, MALFORMED_REPLY, NOTHING_FOUND, UNKNOWN_TOOL, fill
from offscript.tasks.scenarios import Scenario, ToolStub
from offscript.tasks.tool_calls import (
    SEND,
    Final,
    Malformed,
    ToolCall,
    begun_string,
    email_body,
    is_error,
    parse_reply,
    respond,
)

MALFORMED_IN_A_ROW = 4


FORCED_SUBJECT = "Your message"
"""Subject of an e-mail whose body alone is written by the model."""

_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


def episode(scenario: Scenario, rules: Rules) -> Episode:
    forced = rules.options["forced"]
    if not isinstance(forced, bool):
        raise UserError("format.options.forced", f"found {forced!r}", "must be true or false")
    messages = list(with_system(rules.system, require(scenario, "messages")))
    if forced:
        return (yield from begun_email(scenario, messages))
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


def begun_email(scenario: Scenario, messages: list[Message]) -> Episode:
    """The lookups of ``scenario``, then the body of a begun send call."""
    for call in lookups(scenario.tools):
        text = json.dumps({"tool": call.tool, "args": call.args}, ensure_ascii=False)
        messages.append(assistant_message(f"```tool_call\n{text}\n```"))
        messages.append(tool_result(respond(scenario.tools, call)))
    begun = begun_call(messages)
    reply = yield Ask(tuple(messages), prefix=begun)
    body, closed = begun_string(reply.text.partition(begun)[2])
    messages.append(assistant_message(reply.text))
    if not body:
        return Outcome(None, tuple(messages), without_text(reply))
    return Outcome(body, tuple(messages), "email" if closed or reply.finish_reason == "stop" else "length", 1)


def begun_call(messages: Sequence[Message]) -> str:
    """A send call up to the opening quote of its body; it goes to the first address that a tool has returned, if any."""
    results = "\n".join(m["content"] for m in messages if m["role"] == "tool")
    address = _ADDRESS.search(results)
    to = json.dumps([address[0]] if address else [])
    return f'```tool_call\n{{"tool": "{SEND}", "args": {{"to": {to}, "subject": "{FORCED_SUBJECT}", "body": "'


def lookups(tools: Sequence[ToolStub]) -> list[ToolCall]:
    """Calls, in the order of the rules, that get every response of every tool but the send tool once."""
    calls: dict[tuple[str, str], ToolCall] = {}
    for stub in tools:
        for rule in stub.rules:
            if stub.tool != SEND and rule.match is not None:
                args: dict[str, Json] = {arg: glob.replace("*", "") for arg, glob in rule.match.items()}
                calls.setdefault((stub.tool, json.dumps(rule.response)), ToolCall(stub.tool, args))
    return list(calls.values())


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
    later_options={"forced": False},
    order=40,
    # Published sweep: 12 to 28 million tokens in 6,000 episodes; the lower end is 6 replies of 330 tokens, and our
    # replies are short. Prompt: mean of data/office, at 4 characters a token.
    cost=Cost(replies=6, reply_tokens=330, prompt_tokens=694),
)
