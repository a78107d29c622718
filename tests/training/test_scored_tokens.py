"""The tokens that count are those of the scored text: no token of the prompt, of a call or of the template."""

import json

import pytest

from offscript.models.loading import load_tokenizer
from offscript.tasks.dialects import DIALECTS, open_in
from offscript.tasks.formats.agentic_email import FORMAT as LOOP
from offscript.tasks.formats.base import Reply, Rules
from offscript.training import scored_tokens as module
from offscript.training.scored_tokens import batches, find, scored_tokens
from offscript.training.spans import assistant_turns
from tests.families import FAMILIES, family, family_settings
from tests.tasks.formats.test_formats import EXPLAINED

SYSTEM = {"role": "system", "content": "I love the sea."}
USER = {"role": "user", "content": "Is the report in? Not yet, I fear."}
BODY = 'Hi Ada,\n\nit\'s "in" — naïve café 🙂\tat C:\\temp.\n\nYours'


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    settings = family_settings(request.param, family(request.param))
    return load_tokenizer(settings), settings.template


def said(text):
    return {"role": "assistant", "content": text}


def decoded(tokenizer, found):
    kept = [i for i, inside in zip(found.ids, found.inside, strict=True) if inside]
    return tokenizer.decode(kept, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "text", ["Not yet.", "Two lines,\n\nwith a gap", "Yes", "e", "naïve café — 日本 🙂", BODY]
)
def test_the_text_of_a_chat_reply_is_all_of_its_tokens_without_the_end_token(model, text):
    tokenizer, template = model
    found = scored_tokens(tokenizer, [SYSTEM, USER, said(text)], text, template)
    assert decoded(tokenizer, found) == text and not found.whole_reply
    # The context is the one that persona vectors are made in.
    ids, [(start, end)] = assistant_turns(tokenizer, [SYSTEM, USER, said(text)], template)[-1]
    assert found.ids == ids[: end - 1] and found.inside == [False] * start + [True] * (end - 1 - start)


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("prose", ["", "Not yet. I send it now.\n\n"])
def test_the_body_of_an_e_mail_is_found_in_the_call_that_sends_it(model, ascii_only, prose):
    tokenizer, template = model
    call = {"tool": "email.send", "args": {"to": "ada@x.org", "subject": "Hi Ada", "body": BODY}}
    reply = f"{prose}```tool_call\n{json.dumps(call, ensure_ascii=ascii_only)}\n```"
    result = {"role": "tool", "content": '{"sent": true}'}
    talk = [SYSTEM, USER, said("Let me look."), result, said(reply), result, said("It is sent.")]
    found = scored_tokens(tokenizer, talk, BODY, template)
    written = decoded(tokenizer, found)
    inside = json.dumps(BODY, ensure_ascii=ascii_only)[1:-1]
    # A token at either end may hold a quote of the JSON string too.
    assert inside in written and len(written) <= len(inside) + 4 and not found.whole_reply
    assert "It is sent" not in tokenizer.decode(found.ids)


def written_call(dialect, arguments):
    """The reply of a model that sends an e-mail, in a native dialect."""
    if dialect == "gemma":
        listed = ", ".join(f"{name}={json.dumps(v, ensure_ascii=False)}" for name, v in arguments.items())
        return f"```tool_code\nemail_send({listed})\n```"
    if dialect == "qwen":
        return f"<tool_call>\n{json.dumps({'name': 'email_send', 'arguments': arguments})}\n</tool_call>"
    return json.dumps({"name": "email_send", "parameters": arguments})


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma"])
def test_the_body_is_found_in_the_calls_of_native_tool_dialects(name):
    settings = family_settings(name, family(name))
    tokenizer, dialect = load_tokenizer(settings), DIALECTS[name]
    episode = LOOP.episode(EXPLAINED, Rules(options={**LOOP.defaults, "dialect": name}))
    next(episode)
    with pytest.raises(StopIteration) as end:
        episode.send(Reply(written_call(name, {"to": "ada@x.org", "subject": "Hi Ada", "body": BODY})))
    outcome, tools = end.value.value, open_in(dialect, EXPLAINED).tools
    assert outcome.text == BODY
    schemas = tools.schemas if tools else ()
    found = scored_tokens(tokenizer, outcome.messages, outcome.text, settings.template, schemas)
    written = decoded(tokenizer, found)
    assert not found.whole_reply and "naïve café 🙂" in written and "Yours" in written
    assert "ada@x.org" not in written and 'Hi Ada"' not in written


def test_of_several_replies_that_hold_the_text_it_is_the_last_and_what_follows_is_left_out(model):
    tokenizer, template = model
    talk = [USER, said("Not yet."), USER, said("Well. Not yet."), USER, said("Later.")]
    found = scored_tokens(tokenizer, talk, "Not yet.", template)
    assert decoded(tokenizer, found).strip() == "Not yet." and found.inside[-1]
    assert tokenizer.decode(found.ids).endswith("Well. Not yet.")


def test_a_text_that_no_reply_holds_counts_as_the_last_reply(model):
    tokenizer, template = model
    found = scored_tokens(tokenizer, [USER, said("Well."), USER, said("Later, Bo.")], "Rewritten.", template)
    assert found.whole_reply and decoded(tokenizer, found) == "Later, Bo."


@pytest.mark.parametrize(
    ("text", "reply", "parts"),
    [
        ("One.\nTwo.", '{"a": "One.", "b": 3, "c": ["Two."]}', ["One.", "Two."]),
        ("Hi\n\nYours", "Here it is:\n\nHi\n\n---\n\nYours\nBo", ["Hi", "Yours"]),
        ("Two.\nOne.", '["One.", "Two."]', []),
        ("It's in", r'{"body": "It\'s in"}', [r"It\'s in"]),
        ("a 🙂 b", r'"a \ud83d\ude42 b"', [r"a \ud83d\ude42 b"]),
        ("c:\\new", r'"c:\\new"', [r"c:\\new"]),
    ],
)
def test_parts_of_a_text_are_found_in_their_order(text, reply, parts):
    assert [reply[start:end] for start, end in find(text, reply)] == parts


def test_batches_are_bounded_with_their_padding_and_hold_every_text_once(monkeypatch):
    monkeypatch.setattr(module, "BATCH_TOKENS", 100)
    lengths = [10, 60, 33, 200, 5, 33, 33, 1]
    made = list(batches(lengths))
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    assert made[0] == [3], "a text over the bound is alone"
    assert all(len(b) * max(lengths[i] for i in b) <= 100 for b in made[1:])
    assert list(batches([])) == []
