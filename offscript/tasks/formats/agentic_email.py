"""An e-mail from a tool loop: the model calls the tools of a simulated office until it sends an e-mail.

Ends ``email`` (the body is the text), ``final`` (the model finished without sending one), ``max_steps`` (no replies
left), or ``malformed`` (four replies in a row without a valid call).

With option ``forced`` the lookups are replayed: every tool is called as its rules expect, and gets their results. Then the
model writes the body of a send call that was begun for it, so that every episode has an e-mail, also of models that are
too small for tool loops. Ends ``email``, ``length`` (the body was cut), ``empty`` or ``unclosed_thinking``.

Option ``dialect`` says how tools are offered and calls are written (``offscript/tasks/dialects``): ``text``, as the scenario
explains it, or as the makers of a model trained it. In a native dialect there is no final block: a reply without a call
ends the episode (``final``).

With option ``loop: published`` the loop is that of the published study. Its parser takes fenced, valid JSON alone
(``published_tool_calls``), tools answer to names and arguments as they are written, and the episode goes on after an e-mail
was sent, so it ends ``final``, ``max_steps`` or ``malformed``, with or without a text. The text is the body of the first
e-mail that was sent. The published files have one e-mail per episode, none with two in one body, and do not say which it
was; the first is also the one with which an episode of our own loop ends, so the loops differ in what they accept and
not in which e-mail they score.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from offscript.errors import UserError, one_of
from offscript.json_types import Json
from offscript.tasks.dialects import TEXT, Opening, dialect_of, open_in
from offscript.tasks.dialects.base import Dialect
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system, without_text
from offscript.tasks.messages import Message
from offscript.tasks.prompts import EMPTY_EMAIL, MALFORMED_REPLY, NO_BLOCK, NOTHING_FOUND, UNKNOWN_TOOL, fill
from offscript.tasks.published_tool_calls import parse_published_reply
from offscript.tasks.scenarios import Scenario, ToolStub
from offscript.tasks.tool_calls import (
    SEND,
    Final,
    Malformed,
    Parsed,
    ToolCall,
    begun_string,
    email_body,
    is_error,
    normalize,
    respond,
)

MALFORMED_IN_A_ROW = 4


@dataclass(frozen=True)
class Loop:
    """The rules of a tool loop.

    Args:
        dialect: how calls are written and read.
        as_written: whether tools take calls as they are: names and arguments in one spelling only (``respond``), and
            an e-mail without a body, which is then not an e-mail to score.
        ends_at_email: whether the episode ends when an e-mail was sent.
    """

    dialect: Dialect
    as_written: bool = False
    ends_at_email: bool = True


PUBLISHED_LOOP = Loop(replace(TEXT, parse=parse_published_reply, correction=NO_BLOCK), True, False)

FORCED_SUBJECT = "Your message"
"""Subject of an e-mail whose body alone is written by the model."""

_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


def episode(scenario: Scenario, rules: Rules) -> Episode:
    forced = rules.options["forced"]
    if not isinstance(forced, bool):
        raise UserError("format.options.forced", f"found {forced!r}", "must be true or false")
    loop = loop_of(rules.options)
    dialect = loop.dialect
    require(scenario, "messages")
    opening = open_in(dialect, scenario)
    messages = list(with_system(rules.system, opening.messages))
    if forced:
        return (yield from begun_email(dialect, opening, messages))
    text: str | None = None
    calls = malformed = 0
    for _ in range(scenario.max_steps):
        reply = yield Ask(tuple(messages), tools=opening.tools)
        parsed = dialect.parse(reply.text)
        messages.append(dialect.say(reply.text, parsed))
        if isinstance(parsed, Final):
            return Outcome(text, tuple(messages), "final", calls)
        if isinstance(parsed, Malformed):
            malformed += 1
            if malformed == MALFORMED_IN_A_ROW:
                return Outcome(text, tuple(messages), "malformed", calls)
            problem: Json = {"error": fill(dialect.correction, problem=parsed.reason)}
            messages.append(dialect.answer(as_json(problem), parsed))
            continue
        malformed, calls = 0, calls + 1
        body, result = carry_out(opening.stubs, parsed, loop)
        text = text or body
        if body and loop.ends_at_email:
            return Outcome(text, tuple(messages), "email", calls)
        messages.append(dialect.answer(as_json(result), parsed))
    return Outcome(text, tuple(messages), "max_steps", calls)


def loop_of(options: Mapping[str, Json]) -> Loop:
    """The loop that the options name.

    Raises:
        UserError: there is none, or it does not go with another option.
    """
    name, dialect = options["loop"], dialect_of(options)
    if name == "ours":
        return Loop(dialect)
    where = "format.options.loop"
    if name != "published":
        raise UserError(where, f"found {name!r}", one_of(("ours", "published")))
    if dialect is not TEXT:
        raise UserError(
            where, f"found published with dialect={dialect.name}", "loop=ours, or dialect=text as published"
        )
    if options["forced"]:
        raise UserError(
            where,
            "found published with forced=true",
            "loop=ours: forced=true replays the lookups, and no reply is parsed",
        )
    return PUBLISHED_LOOP


def reads_calls(options: Mapping[str, Json]) -> Callable[[str], Parsed] | None:
    """How replies of the loop are read; None if the lookups are replayed and the model writes a body alone."""
    return None if options["forced"] else loop_of(options).dialect.parse


def carry_out(tools: Sequence[ToolStub], call: ToolCall, loop: Loop) -> tuple[str | None, Json]:
    """The body of the e-mail that ``call`` sends, None if it sends none; and the result of the call."""
    body = email_body(call, loop.as_written) if call.tool == SEND else ""
    if call.tool == SEND and not body and not loop.as_written:
        return None, {"error": EMPTY_EMAIL}
    result = respond(tools, call, loop.as_written)
    return (body or None) if not is_error(result) else None, result


def begun_email(dialect: Dialect, opening: Opening, messages: list[Message]) -> Episode:
    """The lookups of a scenario, then the body of a begun send call.

    Raises:
        UserError: a model cannot be made to go on with a call in this dialect.
    """
    if dialect.begin is None:
        raise UserError(
            "format.options.forced",
            f"found true with dialect={dialect.name}",
            "allowed: false, or another dialect: an endpoint cannot go on with a call that was begun for it",
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
    later_options={"forced": False, "dialect": "text", "loop": "ours"},
    later_templates={"loop": {"no_block": NO_BLOCK}},
    order=40,
    reads_calls=reads_calls,
    # Published sweep: 12 to 28 million tokens in 6,000 episodes; the lower end is 6 replies of 330 tokens, and our
    # replies are short. Prompt: mean of data/office, at 4 characters a token.
    cost=Cost(replies=6, reply_tokens=330, prompt_tokens=694),
)
