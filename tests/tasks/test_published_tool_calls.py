"""What our parser and the published study's make of the same replies, written in the manner of Llama, Qwen and Gemma."""

import time

import pytest

from offscript.tasks.published_tool_calls import parse_published_reply
from offscript.tasks.tool_calls import Final, Malformed, Parsed, ToolCall, parse_reply

OBJECT = '{"tool": "crm.lookup_contact", "args": {"query": "Rosa"}}'
MAIL = '{"tool": "email.send", "args": {"to": ["r@b.c"], "body": "Hi"}}'
CALLED, SENT, DONE = "lookup", "send", "final"
UNREADABLE = "neither a tool_call block nor a final block could be read"
NOTHING = "the reply has no tool call and no final block"

REPLIES: dict[str, tuple[str, str, str]] = {
    # name: reply, what our parser makes of it, what the published one does
    "fenced": (f"```tool_call\n{OBJECT}\n```", CALLED, CALLED),
    "fenced in one line": (f"```tool_call {OBJECT}```", CALLED, CALLED),
    "never closed fence": (f"```tool_call\n{OBJECT}", CALLED, CALLED),
    "prose around": (f"Let me look.\n\n```tool_call\n{OBJECT}\n```\nI will wait.", CALLED, CALLED),
    "two blocks": (f"```tool_call\n{OBJECT}\n```\n\n```tool_call\n{MAIL}\n```", CALLED, CALLED),
    "several lines": ('```tool_call\n{\n  "tool": "crm.lookup_contact",\n  "args": {"query": "Rosa"}\n}\n```', CALLED, CALLED),
    "final block": ("```final\nSent it.\n```", DONE, DONE),
    "final after prose": ("All is done.\n```final\nSent it.", DONE, DONE),
    "final as a tool": ('```tool_call\n{"tool": "final", "args": {"summary": "Sent it."}}\n```', DONE, DONE),
    "e-mail": (f"```tool_call\n{MAIL}\n```", SENT, SENT),
    # The loops differ from here on.
    "bare object": (OBJECT, CALLED, UNREADABLE),
    "json fence": (f"```json\n{OBJECT}\n```", CALLED, UNREADABLE),
    "plain fence": (f"```\n{OBJECT}\n```", CALLED, UNREADABLE),
    "word without a fence": (f"tool_call\n{OBJECT}", CALLED, UNREADABLE),
    "hermes tags": (f"<tool_call>\n{OBJECT}\n</tool_call>", CALLED, UNREADABLE),
    "python tag": ('<|python_tag|>{"name": "crm.lookup_contact", "parameters": {"query": "Rosa"}}', CALLED, UNREADABLE),
    "space before the label": (f"``` tool_call\n{OBJECT}\n```", CALLED, UNREADABLE),
    "capitals": (f"```TOOL_CALL\n{OBJECT}\n```", CALLED, UNREADABLE),
    "bare final object": ('{"final": "Sent it."}', DONE, UNREADABLE),
    "trailing commas": (
        '```tool_call\n{"tool": "crm.lookup_contact", "args": {"query": "Rosa",},}\n```',
        CALLED, UNREADABLE,
    ),
    "line break in a string": (
        '```tool_call\n{"tool": "email.send", "args": {"to": ["r@b.c"], "body": "Hi\n"}}\n```',
        SENT, UNREADABLE,
    ),
    "invalid escape": (
        '```tool_call\n{"tool": "email.send", "args": {"to": ["r@b.c"], "body": "\\Hi"}}\n```',
        SENT, UNREADABLE,
    ),
    "two objects in a block": (f"```tool_call\n{OBJECT}\n{MAIL}\n```", CALLED, UNREADABLE),
    "a fence in the body": (
        '```tool_call\n{"tool": "email.send", "args": {"to": ["r@b.c"], "body": "Hi", "note": "```x```"}}\n```',
        SENT, UNREADABLE,
    ),
    "other keys": (
        '```tool_call\n{"name": "crm.lookup_contact", "arguments": {"query": "Rosa"}}\n```', CALLED, UNREADABLE,
    ),
    "a list of calls": (f"```tool_call\n[{OBJECT}]\n```", CALLED, UNREADABLE),
    "arguments as a string": (
        '```tool_call\n{"tool": "crm.lookup_contact", "args": "{\\"query\\": \\"Rosa\\"}"}\n```',
        CALLED, UNREADABLE,
    ),
    "call, then final": (f"```tool_call\n{OBJECT}\n```\n```final\nSent it.\n```", CALLED, DONE),
    "e-mail, then final": (f"```tool_call\n{MAIL}\n```\n\n```final\nSent it.\n```", SENT, DONE),
    # Neither takes these.
    "single quotes": (
        "```tool_call\n{'tool': 'email.send', 'args': {'body': 'Hi'}}\n```",
        "the JSON object is not valid (Expecting property name enclosed in double quotes)",
        UNREADABLE,
    ),
    "python": ("```tool_call\ncrm.lookup_contact(query='Rosa')\n```", NOTHING, UNREADABLE),
    "cut": (
        '```tool_call\n{"tool": "email.send", "args": {"body": "Hi',
        "the JSON object is not closed", UNREADABLE,
    ),
    "prose": ("I have sent the e-mail to Rosa.", NOTHING, UNREADABLE),
    "empty": ("", NOTHING, UNREADABLE),
}  # fmt: skip
MEANINGS: dict[str, Parsed] = {
    CALLED: ToolCall("crm.lookup_contact", {"query": "Rosa"}),
    SENT: ToolCall("email.send", {"to": ["r@b.c"], "body": "Hi"}),
    DONE: Final("Sent it."),
}


def meaning(parsed: Parsed) -> str:
    """The name of ``parsed`` in ``REPLIES``."""
    if isinstance(parsed, Malformed):
        return parsed.reason
    if isinstance(parsed, ToolCall) and parsed.tool == "email.send":
        known = {k: v.strip() if isinstance(v, str) else v for k, v in parsed.args.items() if k != "note"}
        parsed = ToolCall(parsed.tool, known)
    return next(name for name, value in MEANINGS.items() if value == parsed)


@pytest.mark.parametrize("name", REPLIES)
def test_what_each_parser_makes_of_a_reply(name: str) -> None:
    reply, ours, published = REPLIES[name]
    assert (meaning(parse_reply(reply)), meaning(parse_published_reply(reply))) == (ours, published)


def test_names_count_as_they_are_written_in_the_published_loop() -> None:
    fenced = '```tool_call\n{"tool": "send_email", "args": {"body": "Hi"}}\n```'
    assert parse_reply(fenced) == ToolCall("email.send", {"body": "Hi"})
    assert parse_published_reply(fenced) == ToolCall("send_email", {"body": "Hi"})
    assert parse_published_reply('```tool_call\n{"tool": "calendar.list"}\n```') == ToolCall(
        "calendar.list", {}
    )


def test_lone_surrogates_are_replaced() -> None:
    call = parse_published_reply('```tool_call\n{"tool": "x\\ud800", "args": {"body": "a\\udfffb"}}\n```')
    assert call == ToolCall("x?", {"body": "a?b"})


@pytest.mark.parametrize(
    "piece", ["```tool_call ", "```final", "```final {", '{"a":[', "`", "```tool_call\n[", "9"]
)
def test_a_degenerate_reply_is_parsed_in_bounded_time(piece: str) -> None:
    start = time.process_time()
    for reply in (piece * (60_000 // len(piece)), "```tool_call\n" + piece * (60_000 // len(piece))):
        assert isinstance(parse_published_reply(reply), Malformed | Final)
    assert time.process_time() - start < 10
