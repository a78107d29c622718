"""An e-mail from a tool loop: the model calls the tools of a simulated office until it sends an e-mail.

Ends ``email`` (the body is the text), ``final`` (the model finished without sending one), ``max_steps`` (no replies
left), or ``malformed`` (four replies in a row without a valid call).

With option ``forced`` the lookups are replayed: every tool is called as its rules expect, and gets their results. Then the
model writes the body of a send call that was begun for it, so that every episode has an e-mail, also of models that are
too small for tool loops. Ends ``email``, ``length`` (the body was cut), ``empty`` or ``unclosed_thinking``.

Option ``dialect`` says how tools are offered and calls are written (``offscript/tasks/dialects``): ``text``, as the scenario
explains it, or as the makers of a model trained it. In a native dialect there is no final block: a reply without a call
ends the episode (``final``).
"""

import json
import re
from collections.abc import Sequence

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.tasks.dialects import Opening, dialect_of, open_in
from offscript.tasks.dialects.base import Dialect
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
    normalize,
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
    dialect = dialect_of(rules.options)
    require(scenario, "messages")
    opening = open_in(dialect, scenario)
    messages = list(with_system(rules.system, opening.messages))
    if forced:
        return (yield from begun_email(dialect, opening, messages))
    calls = malformed = 0
    for _ in range(scenario.max_steps):
        reply = yield Ask(tuple(messages), tools=opening.tools)
        parsed = dialect.parse(reply.text)
        messages.append(dialect.say(reply.text, parsed))
        if isinstance(parsed, Final):
            return Outcome(None, tuple(messages), "final", calls)
        if isinstance(parsed, Malformed):
            malformed += 1
            if malformed == MALFORMED_IN_A_ROW:
                return Outcome(None, tuple(messages), "malformed", calls)
            problem: Json = {"error": fill(dialect.correction, problem=parsed.reason)}
            messages.append(dialect.answer(as_json(problem), parsed))
            continue
        malformed, calls = 0, calls + 1
        body = email_body(parsed) if parsed.tool == SEND else ""
        if parsed.tool == SEND and not body:
            result: Json = {"error": EMPTY_EMAIL}
        else:
            result = respond(opening.stubs, parsed)
        if body and not is_error(result):
            return Outcome(body, tuple(messages), "email", calls)
        messages.append(dialect.answer(as_json(result), parsed))
    return Outcome(None, tuple(messages), "max_steps", calls)


def begun_email(dialect: Dialect, opening: Opening, messages: list[Message]) -> Episode:
    """The lookups of a scenario, then the body of a begun send call.

    Raises:
        UserError: a model cannot be made to go on with a call in this dialect.
    """
    if dialect.begin is None:
        found = f"true with dialect={dialect.name}"
        raise UserError(
            "format.options.forced", found, "a model cannot go on with a call that was begun for it"
        )
    results = []
    for call in lookups(opening.stubs):
        results.append(as_json(respond(opening.stubs, call)))
        messages += [dialect.write(call), dialect.answer(results[-1], call)]
    begun = dialect.begin(begun_call(results), "body")
    reply = yield Ask(tuple(messages), prefix=begun, tools=opening.tools)
    body, closed = begun_string(reply.text.partition(begun)[2])
    messages.append(assistant_message(reply.text))
    if not body:
        return Outcome(None, tuple(messages), without_text(reply))
    return Outcome(body, tuple(messages), "email" if closed or reply.finish_reason == "stop" else "length", 1)


def begun_call(results: Sequence[str]) -> ToolCall:
    """A send call without its body; it goes to the first address that a tool has returned, if any."""
    address = _ADDRESS.search("\n".join(results))
    to: list[Json] = [address[0]] if address else []
    return ToolCall(SEND, {"to": to, "subject": FORCED_SUBJECT})


def lookups(tools: Sequence[ToolStub]) -> list[ToolCall]:
    """Calls, in the order of the rules, that get every response of every tool but the send tool once."""
    calls: dict[tuple[str, str], ToolCall] = {}
    for stub in tools:
        for rule in stub.rules:
            if normalize(stub.tool) != normalize(SEND) and rule.match is not None:
                args: dict[str, Json] = {arg: glob.replace("*", "") for arg, glob in rule.match.items()}
                calls.setdefault((stub.tool, json.dumps(rule.response)), ToolCall(stub.tool, args))
    return list(calls.values())


def as_json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


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
    later_options={"forced": False, "dialect": "text"},
    order=40,
    # Published sweep: 12 to 28 million tokens in 6,000 episodes; the lower end is 6 replies of 330 tokens, and our
    # replies are short. Prompt: mean of data/office, at 4 characters a token.
    cost=Cost(replies=6, reply_tokens=330, prompt_tokens=694),
)
