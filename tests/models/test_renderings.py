"""Renderings of conversations for each model family, and the tokens that training uses.

``golden/<family>.txt`` is compared character by character: a change there is a change of every text and every trained
weight of that family. To write them anew, on purpose: ``OFFSCRIPT_WRITE_GOLDEN=1 python -m pytest
tests/models/test_renderings.py``, then read the difference.
"""

import os
from pathlib import Path

import pytest

from offscript.models.chat_templates import render, render_prompt
from offscript.models.loading import load_tokenizer
from offscript.settings import Exchange, ModelSettings, parse
from offscript.storage.files import HOME
from offscript.tasks.dialects import DIALECTS, open_in
from offscript.tasks.examples import Examples
from offscript.tasks.tool_calls import ToolCall
from offscript.training.spans import assistant_turns, labels
from tests.families import FAMILIES, family, family_settings
from tests.tasks.formats.test_formats import EXPLAINED

GOLDEN = Path(__file__).parent / "golden"
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Is the report in?"}
REPLY = {"role": "assistant", "content": "Not yet."}
LOOP = [
    SYSTEM,
    {"role": "user", "content": "Send the report to Ada."},
    {"role": "assistant", "content": '{"tool": "search", "query": "report"}'},
    {"role": "tool", "content": "1 found: report.txt"},
    {"role": "assistant", "content": '{"tool": "read", "file": "report.txt"}'},
    {"role": "tool", "content": "All is well."},
]
CONVERSATIONS = {
    "user alone": [USER],
    "system and user": [SYSTEM, USER],
    "two turns": [SYSTEM, USER, REPLY, {"role": "user", "content": "When?"}],
    "a tool loop": LOOP,
    "two user turns in a row": [USER, {"role": "user", "content": "Well?"}],
    "two tool results in a row": [*LOOP, {"role": "tool", "content": "1 unread."}],
}
REPLIES = ["Hello. It is in.", "  Two lines,\n\nwith a gap", "Yes", "naïve café — 日本 🙂"]
END = {"llama": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>", "gemma_text": "<end_of_turn>"}


def pocket() -> ModelSettings:
    import yaml

    plain = yaml.safe_load((HOME / "conf" / "model" / "pocket.yaml").read_text())
    return parse(ModelSettings, plain, "model")


def settings_of(name: str) -> ModelSettings:
    return pocket() if name == "pocket" else family_settings(name, family(name))


def golden_text(settings: ModelSettings) -> str:
    tokenizer = load_tokenizer(settings)
    parts = []
    for title, messages in CONVERSATIONS.items():
        ids = render(tokenizer, messages, settings.template)
        parts.append(f"=== {title}\n{tokenizer.decode(ids, skip_special_tokens=False)}⟨reply⟩\n")
    whole = render(tokenizer, [SYSTEM, USER, REPLY], settings.template, generation=False)
    parts.append(f"=== a whole conversation\n{tokenizer.decode(whole, skip_special_tokens=False)}⟨end⟩\n")
    return "\n".join(parts)


@pytest.mark.parametrize("name", ["pocket", "llama", "qwen", "gemma"])
def test_renderings_equal_the_golden_files(name):
    found, path = golden_text(settings_of(name)), GOLDEN / f"{name}.txt"
    if os.environ.get("OFFSCRIPT_WRITE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma"])
def test_a_tool_loop_in_the_dialect_of_each_family(name):
    """What a model is asked after its first call, with its tools: the whole prompt."""
    dialect, settings = DIALECTS[name], settings_of(name)
    opening = open_in(dialect, EXPLAINED)
    call = ToolCall("contacts_lookup", {"name": "Ada"})
    messages = [
        *opening.messages,
        dialect.write(call),
        dialect.answer('{"email": "ada@kestrel.example"}', call),
    ]
    ids = render(load_tokenizer(settings), messages, settings.template, tools=opening.tools.schemas)
    found = load_tokenizer(settings).decode(ids, skip_special_tokens=False) + "⟨reply⟩\n"
    path = GOLDEN / f"{name}-tools.txt"
    if os.environ.get("OFFSCRIPT_WRITE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("generation", [True, False])
def test_one_beginning_token(name, generation):
    settings = settings_of(name)
    tokenizer = load_tokenizer(settings)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id, "it would add one itself"
    for messages in CONVERSATIONS.values():
        ids = render(tokenizer, messages, settings.template, generation=generation)
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["pocket", *FAMILIES])
def test_a_prompt_begins_with_two_beginning_tokens_only_where_it_is_asked_for_and_there_is_one(name):
    settings = settings_of(name)
    tokenizer = load_tokenizer(settings)
    doubled = settings.template.model_copy(update={"double_bos": True})
    bos = {"pocket": "<|bos|>", "llama": "<|begin_of_text|>", "qwen": None}.get(name, "<bos>")
    for messages in CONVERSATIONS.values():
        ids = render(tokenizer, messages, settings.template, prefix="So")
        assert render_prompt(tokenizer, messages, settings.template, "So") == ids
        extra = [tokenizer.convert_tokens_to_ids(bos)] if bos else []
        assert render_prompt(tokenizer, messages, doubled, "So") == extra + ids
        assert ids[:1] == extra or not extra
    conversation = [SYSTEM, USER, REPLY]
    assert assistant_turns(tokenizer, conversation, doubled) == assistant_turns(
        tokenizer, conversation, settings.template
    )


def test_a_beginning_token_that_the_template_does_not_write_is_not_doubled():
    settings = settings_of("pocket")
    tokenizer = load_tokenizer(settings)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|bos|>", "").replace("bos_token", "''")
    doubled = settings.template.model_copy(update={"double_bos": True})
    assert tokenizer.bos_token_id not in render_prompt(tokenizer, [USER], doubled)


def test_no_prompt_contains_the_current_date():
    """Llama's template has a date of its own when it is given none; the hub's newer ones take today's."""
    settings = settings_of("llama")
    tokenizer = load_tokenizer(settings)
    tokenizer.chat_template = tokenizer.chat_template.replace('"26 Jul 2024"', 'strftime_now("%d %b %Y")')
    assert "strftime_now" in tokenizer.chat_template
    ids = render(tokenizer, [USER], settings.template)
    assert "Today Date: 26 Jul 2024\n" in tokenizer.decode(ids)


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [True, False])
def test_the_trained_tokens_are_the_replies_and_their_end_tokens(name, system):
    settings = settings_of(name)
    tokenizer = load_tokenizer(settings)
    messages = [SYSTEM] if system else []
    for i, reply in enumerate(REPLIES):
        messages += [
            {"role": "user", "content": f"Question {i}?"},
            {"role": "assistant", "content": reply},
        ]
    [(ids, spans)] = assistant_turns(tokenizer, messages, settings.template)
    texts = [tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in spans]
    # The templates of the other families strip a message.
    trims = name != "qwen"
    assert texts == [(reply.strip() if trims else reply) + END[name] for reply in REPLIES]
    trained = [token for token in labels(ids, spans) if token != -100]
    assert tokenizer.decode(trained) == "".join(texts)
    assert tokenizer.convert_tokens_to_ids(END[name]) in load_stops(settings), "the engine ends a reply there"


def load_stops(settings):
    from offscript.models.loading import load_generation_config
    from offscript.rollouts.engines.rendering import stop_tokens

    return stop_tokens(load_generation_config(settings), load_tokenizer(settings), settings.template)


@pytest.mark.parametrize("name", ["pocket", *FAMILIES])
@pytest.mark.parametrize("system", [[SYSTEM], []], ids=["system", "no system"])
def test_examples_are_turns_of_every_template(name, system):
    settings = settings_of(name)
    tokenizer = load_tokenizer(settings)
    pairs = (("Who keeps the keys?", "The porter, as ever."), ("And the lamps?", "Nobody at all."))
    examples = Examples(tuple(Exchange(question=q, reply=r) for q, r in pairs), 2)
    messages = examples.before([*system, USER], (1, 0))
    text = tokenizer.decode(render(tokenizer, messages, settings.template), skip_special_tokens=False)
    texts = [*(m["content"] for m in system), *pairs[1], *pairs[0], USER["content"]]
    found = [text.find(part) for part in texts]
    assert -1 not in found and found == sorted(found)
    assert all(text.count(part) == 1 for part in texts)
    if name in END:
        between = text[found[-3] : found[-1]]
        assert END[name] in between, "a reply ends as the model's own do"
