"""The parser of each native dialect on replies in the manner of its models, and what becomes of them in the conversation.

``CALL`` stands for the lookup of Ada, ``MAIL`` for an e-mail to her; a text is the reason of a malformed call.
"""

import json

import pytest

from offscript.tasks.dialects import DIALECTS
from offscript.tasks.dialects.openai import as_text
from offscript.tasks.tool_calls import Final, Malformed, ToolCall

CALL = ToolCall("contacts_lookup", {"name": "Ada"})
MAIL = ToolCall(
    "email.send", {"to": ["ada@kestrel.example"], "subject": "Parcel", "body": "Dear Ada,\nsnow."}
)
EMPTY = ToolCall("contacts_lookup", {})
FINAL = Final
ARGS = '{"name": "Ada"}'
MAIL_JSON = json.dumps(MAIL.args)

LLAMA = [
    ('{"name": "contacts_lookup", "parameters": {"name": "Ada"}}', CALL),
    ('<|python_tag|>{"name": "contacts_lookup", "parameters": {"name": "Ada"}}', CALL),
    ('{"type": "function", "name": "contacts_lookup", "parameters": {"name": "Ada"}}', CALL),
    ('<|python_tag|>{"type": "function", "function": {"name": "contacts_lookup", "parameters": {"name": "Ada"}}}', CALL),
    (f'{{"name": "contacts_lookup", "arguments": {ARGS}}}', CALL),
    ('{"name": "contacts_lookup", "parameters": "{\\"name\\": \\"Ada\\"}"}', CALL),
    (f'{{"name": "contacts_lookup", "parameters": {ARGS}}}; {{"name": "email_send", "parameters": {{}}}}', CALL),
    (f'[{{"name": "contacts_lookup", "parameters": {ARGS}}}]', CALL),
    (f'```json\n{{"name": "contacts_lookup", "parameters": {ARGS}}}\n```', CALL),
    (f'I will look her up first.\n\n{{"name": "contacts_lookup", "parameters": {ARGS}}}', CALL),
    (f"<function=contacts_lookup>{ARGS}</function>", CALL),
    ('<|python_tag|>contacts_lookup.call(name="Ada")', CALL),
    ('<|python_tag|>contacts_lookup(name="Ada")', CALL),
    ('{"name": "contacts_lookup", "parameters": {"name": "Ada",}}', CALL),
    (f'{{"name": "email_send", "parameters": {MAIL_JSON}}}', MAIL),
    ('{"name": "email.send", "parameters": ' + MAIL_JSON.replace("\\n", "\n") + "}", MAIL),
    ('{"name": "contacts_lookup", "parameters": {}}', EMPTY),
    ('{"name": "contacts_lookup", "parameters": {"name": "Ada"', "the JSON object is not closed"),
    ("<function=contacts_lookup>{Ada}</function>", "the JSON object is not valid (Expecting property name enclosed in double quotes)"),
    ("The parcel is late because of the snow.", FINAL),
    ("Her record is {missing}.", FINAL),
    ("", FINAL),
]  # fmt: skip
QWEN = [
    (f'<tool_call>\n{{"name": "contacts_lookup", "arguments": {ARGS}}}\n</tool_call>', CALL),
    (f'<tool_call>{{"name": "contacts_lookup", "arguments": {ARGS}}}</tool_call>', CALL),
    (f'First I look her up.\n<tool_call>\n{{"name": "contacts_lookup", "arguments": {ARGS}}}\n</tool_call>', CALL),
    (f'<tool_call>\n{{"name": "contacts_lookup", "arguments": {ARGS}}}', CALL),
    (f'<tool_call>\n{{"name": "contacts_lookup", "arguments": {ARGS}}}\n</tool_call>\n<tool_call>\n{{"name": "email_send", "arguments": {{}}}}\n</tool_call>', CALL),
    (f'{{"name": "contacts_lookup", "arguments": {ARGS}}}', CALL),
    (f'```json\n{{"name": "contacts_lookup", "arguments": {ARGS}}}\n```', CALL),
    (f'<tools>\n{{"name": "contacts_lookup", "arguments": {ARGS}}}\n</tools>', CALL),
    (f'<tool_call>\n{{"arguments": {ARGS}, "name": "contacts_lookup"}}\n</tool_call>', CALL),
    ('<tool_call>\n{"name": "contacts_lookup", "arguments": "{\\"name\\": \\"Ada\\"}"}\n</tool_call>', CALL),
    (f'<tool_call>\n{{"name": "contacts_lookup", "parameters": {ARGS}}}\n</tool_call>', CALL),
    ('<tool_call>\n{"name": "contacts_lookup", "arguments": {"name": "Ada",}}\n</tool_call>', CALL),
    (f'<tool_call>\n{{"name": "email_send", "arguments": {MAIL_JSON}}}\n</tool_call>', MAIL),
    ('<tool_call>\n{"name": "email_send", "arguments": ' + MAIL_JSON.replace("\\n", "\n") + "}\n</tool_call>", MAIL),
    ('<tool_call>\n{"name": "contacts_lookup", "arguments": {}}\n</tool_call>', EMPTY),
    ('<tool_call>\n{"name": "contacts_lookup"}\n</tool_call>', 'a call needs "name" and "arguments"'),
    ('<tool_call>\n{"name": "contacts_lookup", "arguments": {"name": "Ada\n</tool_call>', "the JSON object is not closed"),
    ("<tool_call>\ncontacts_lookup\n</tool_call>", "there is no JSON object after <tool_call>"),
    ("I have told Ada about the snow.", FINAL),
    ("", FINAL),
]  # fmt: skip
GEMMA = [
    ('```tool_code\ncontacts_lookup(name="Ada")\n```', CALL),
    ('```tool_code\nprint(contacts_lookup(name="Ada"))\n```', CALL),
    ('```tool_code\nresult = contacts_lookup(name="Ada")\nprint(result)\n```', CALL),
    ('```tool_code\nprint(default_api.contacts_lookup(name="Ada"))\n```', CALL),
    ('Okay, I will look her up.\n\n```tool_code\ncontacts_lookup(name=\'Ada\')\n```', CALL),
    ('```python\ncontacts_lookup(name="Ada")\n```', CALL),
    ('```tool_code\n[contacts_lookup(name="Ada"), email_send(to=[])]\n```', CALL),
    ('[contacts_lookup(name="Ada")]', CALL),
    ('contacts_lookup(name="Ada")', CALL),
    ('```tool_code\n# who is Ada?\ncontacts_lookup(name="Ada")\nemail_send(body="Hi")\n```', CALL),
    (f'{{"name": "contacts_lookup", "parameters": {ARGS}}}', CALL),
    (f'```json\n[{{"name": "contacts_lookup", "parameters": {ARGS}}}]\n```', CALL),
    (f'```tool_code\n[{{"name": "contacts_lookup", "parameters": {ARGS}}}]\n```', CALL),
    ('```tool_code\nemail_send(to=["ada@kestrel.example"], subject="Parcel", body="Dear Ada,\\nsnow.")\n```', MAIL),
    ('```tool_code\nemail_send(to=["ada@kestrel.example"], subject="Parcel", body="Dear Ada,\nsnow.")\n```', MAIL),
    ('```tool_code\nemail_send(to=["ada@kestrel.example"], subject="Parcel", body="""Dear Ada,\nsnow.""")\n```', MAIL),
    ('```tool_code\nemail_send(\n    to=["ada@kestrel.example"],\n    subject="Parcel",\n    body=("Dear Ada,\\n" "snow."),\n)\n```', MAIL),
    ('```tool_code\nbody = "Dear Ada"\nemail_send(to=["ada@kestrel.example"], body=body)\n```', 'the argument "body" is not a literal'),
    ('```tool_code\ncontacts_lookup("Ada")\n```', "arguments must be given by name"),
    ('```tool_code\nemail_send(to=["ada@kestrel.example"], body="Dear Ada, it', "the call is not valid Python"),
    ("```tool_code\n```", "the block has no call"),
    ("I have told Ada about the snow (see below).", FINAL),
    ("", FINAL),
]  # fmt: skip


def answered(*calls: tuple[str, object], content: str = "") -> str:
    return as_text(content, [{"name": name, "arguments": arguments} for name, arguments in calls])


OPENAI = [
    (answered(("contacts_lookup", ARGS)), CALL),
    (answered(("contacts_lookup", ARGS), content="I look her up."), CALL),
    (answered(("contacts_lookup", ARGS), content='Like {"tool_calls": []}, but real.'), CALL),
    (answered(("contacts_lookup", ARGS), ("email_send", "{}")), CALL),
    (answered(("contacts_lookup", {"name": "Ada"})), CALL),
    (answered(("contacts_lookup", '{"name": "Ada",}')), CALL),
    (answered(("contacts_lookup", f"Here: {ARGS}")), CALL),
    (answered(("contacts_lookup", "{}")), EMPTY),
    (answered(("contacts_lookup", "")), EMPTY),
    (answered(("contacts_lookup", None)), EMPTY),
    (answered(("email_send", MAIL_JSON)), MAIL),
    (answered(("email-send", MAIL_JSON)), MAIL),
    (answered(("email_send", MAIL_JSON.replace("\\n", "\n"))), MAIL),
    (answered(("contacts_lookup", '{"name": "Ada')), '"arguments" must be a JSON object'),
    (answered(("contacts_lookup", '["Ada"]')), '"arguments" must be a JSON object'),
    (answered(("", ARGS)), '"name" must be the name of a tool'),
    (answered((None, ARGS)), '"name" must be the name of a tool'),
    ("I have told Ada about the snow.", FINAL),
    (f'{{"name": "contacts_lookup", "arguments": {ARGS}}}', FINAL),
    ('They said {"tool_calls": [', FINAL),
    ("", FINAL),
]
REPLIES = {"llama": LLAMA, "qwen": QWEN, "gemma": GEMMA, "openai": OPENAI}
CASES = [
    pytest.param(name, reply, wanted, id=f"{name}-{i}")
    for name, table in REPLIES.items()
    for i, (reply, wanted) in enumerate(table)
]


@pytest.mark.parametrize(("name", "reply", "wanted"), CASES)
def test_a_reply_in_the_manner_of_the_model(name: str, reply: str, wanted) -> None:
    if isinstance(wanted, str):
        wanted = Malformed(wanted)
    elif wanted is FINAL:
        wanted = Final(reply.strip())
    assert DIALECTS[name].parse(reply) == wanted


def test_every_native_dialect_has_twenty_replies() -> None:
    assert {name for name, dialect in DIALECTS.items() if dialect.native} == set(REPLIES)
    assert min(map(len, REPLIES.values())) >= 20


@pytest.mark.parametrize("name", REPLIES)
def test_a_call_that_is_written_is_read(name: str) -> None:
    """A replayed call is read back as itself, where it is text; else it stands in ``tool_calls``."""
    dialect = DIALECTS[name]
    args = {
        **MAIL.args,
        "urgent": True,
        "copies": None,
        "notes": {"a": [1, 2.5]},
        "body": 'He said "no".\n\tYes \\ é',
    }
    message = dialect.write(ToolCall("email.send", args))
    if "tool_calls" in message:
        assert message["tool_calls"] == [
            {"type": "function", "function": {"name": "email_send", "arguments": args}}
        ]
    else:
        assert dialect.parse(message["content"]) == ToolCall("email.send", args)


@pytest.mark.parametrize(("name", "reply", "before"), [
    ("llama", f'I look.\n<|python_tag|>{{"name": "contacts_lookup", "parameters": {ARGS}}}', "I look."),
    ("qwen", f'I look.\n<tool_call>\n{{"name": "contacts_lookup", "arguments": {ARGS}}}\n</tool_call>', "I look."),
    ("qwen", f'I look.\n```json\n{{"name": "contacts_lookup", "arguments": {ARGS}}}\n```', "I look."),
    ("openai", answered(("contacts_lookup", ARGS), content="I look."), "I look."),
])  # fmt: skip
def test_the_conversation_keeps_what_was_said_before_a_call(name: str, reply: str, before: str) -> None:
    dialect = DIALECTS[name]
    assert dialect.say(reply, dialect.parse(reply)) == {
        "role": "assistant",
        "content": before,
        "tool_calls": [
            {"type": "function", "function": {"name": "contacts_lookup", "arguments": {"name": "Ada"}}}
        ],
    }


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("reply", ["{" * 5000, "(" * 5000, "```tool_code\n" + "(" * 5000, "[" * 3000 + "f()", '{"name": "' + "x" * 10_000, "<tool_call>" * 2000, "\0", "```tool_code\nf(a=" + "-" * 20_000 + "1)\n```"])  # fmt: skip
def test_a_degenerate_reply_is_read_quickly(name: str, reply: str) -> None:
    assert isinstance(DIALECTS[name].parse(reply), Malformed | Final)
