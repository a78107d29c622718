"""What is trained decodes to exactly what the assistant said and its end token."""

from pathlib import Path

import pytest

from offscript.models.chat_templates import render
from offscript.models.loading import load_tokenizer
from offscript.settings import TemplateSettings
from offscript.tasks.thinking import strip_thinking
from offscript.training.spans import IGNORED, TurnTokens, Unstable, assistant_turns, labels, published_span
from tests.conftest import tiny_sentences

SAID = tiny_sentences()
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": SAID[0]},
    {"role": "assistant", "content": "ABCDEFGHIJ likes it.\n\nSo do I!"},
    {"role": "user", "content": SAID[1]},
    {"role": "assistant", "content": SAID[2]},
]
# Real templates ship inside trl: file, its end token, special tokens, our policy for that family
FAMILIES = {
    "qwen2_5": ("<|im_end|>", [], TemplateSettings()),
    "llama3_1": (
        "<|eot_id|>",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        TemplateSettings(date_string="26 Jul 2024"),
    ),
    "gemma3": (
        "<end_of_turn>",
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        TemplateSettings(system_role="user"),
    ),
}


def template_of_trl(settings, name: str):
    """The tiny tokenizer with a chat template that trl ships."""
    tokenizer, folder = family_tokenizer(settings, "qwen2_5")
    tokenizer.chat_template = (folder / f"{name}.jinja").read_text()
    return tokenizer


def family_tokenizer(settings, name: str):
    import trl

    tokenizer = load_tokenizer(settings)
    tokenizer.add_special_tokens({"additional_special_tokens": FAMILIES[name][1]})
    if name != "qwen2_5":
        tokenizer.bos_token = FAMILIES[name][1][0]
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / f"{name}.jinja").read_text()
    return tokenizer, folder


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_decode_to_the_assistant_text_and_its_end_token(tiny_settings, name):
    tokenizer, _ = family_tokenizer(tiny_settings, name)
    end, _, policy = FAMILIES[name]
    [(ids, spans)] = assistant_turns(tokenizer, CHAT, policy)
    assert [tokenizer.decode(ids[a:b]) for a, b in spans] == [
        CHAT[2]["content"] + end,
        CHAT[4]["content"] + end,
    ]
    assert ids[: spans[1][0]] == render(tokenizer, CHAT[:4], policy)  # the context it will be asked in
    trained = [i for i in labels(ids, spans) if i != IGNORED]
    assert tokenizer.decode(trained) == CHAT[2]["content"] + end + CHAT[4]["content"] + end


@pytest.mark.parametrize("name", ["qwen2_5", "gemma3"])
def test_masks_agree_with_generation_marks(tiny_settings, name):
    """trl's own marks for these families hold a line feed before or after the turn as well, which nobody said."""
    tokenizer, folder = family_tokenizer(tiny_settings, name)
    ours = _mask(*assistant_turns(tokenizer, CHAT, FAMILIES[name][2])[0])
    tokenizer.chat_template = (folder / f"{name}_training.jinja").read_text()
    theirs = _marked(tokenizer, CHAT)
    assert [i for i, _ in ours] == [i for i, _ in theirs][: len(ours)]
    differ = [(i, marked) for (i, marked), (_, said) in zip(theirs, ours, strict=False) if marked != said]
    assert {(tokenizer.decode([i]), marked) for i, marked in differ} == {("\n", True)}


def test_masks_agree_with_the_marks_of_the_tiny_model(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    ours = _mask(*assistant_turns(tokenizer, CHAT, TemplateSettings())[0])
    assert _marked(tokenizer, CHAT)[: len(ours)] == ours


def _marked(tokenizer, chat) -> list[tuple[int, bool]]:
    out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    return [(i, bool(m)) for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True)]


def _mask(ids, spans) -> list[tuple[int, bool]]:
    return [(i, label != IGNORED) for i, label in zip(ids, labels(ids, spans), strict=True)]


def test_what_follows_the_last_reply_is_left_out(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    longer = [*CHAT, {"role": "user", "content": SAID[3]}]
    assert assistant_turns(tokenizer, longer, TemplateSettings()) == assistant_turns(
        tokenizer, CHAT, TemplateSettings()
    )


def test_a_template_that_changes_earlier_turns_is_trained_turn_by_turn(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    end = tokenizer.eos_token
    turns = assistant_turns(tokenizer, CHAT, TemplateSettings())
    assert [tokenizer.decode(ids[a:b]) for ids, [(a, b)] in turns] == [
        CHAT[2]["content"] + end,
        CHAT[4]["content"] + end,
    ]
    for (ids, [(start, _)]), i in zip(turns, (2, 4), strict=True):
        assert ids[:start] == render(tokenizer, CHAT[:i], TemplateSettings())


def test_a_template_that_changes_what_was_said_is_refused(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template.replace(
        "message['content']", "message['content'] | upper"
    )
    with pytest.raises(Unstable, match="turn 2 is not in its rendering"):
        assistant_turns(tokenizer, CHAT, TemplateSettings())


@pytest.mark.parametrize("chat", [CHAT, CHAT[:3]], ids=["two turns", "one turn"])
def test_no_thinking_block_is_trained_with_qwen3(tiny_settings, chat):
    """Its template puts an empty thinking block before the last turn, and takes it away once the conversation goes on."""
    tokenizer = template_of_trl(tiny_settings, "qwen3")
    turns = assistant_turns(tokenizer, chat, TemplateSettings())
    said = [message["content"] + "<|im_end|>" for message in chat if message["role"] == "assistant"]
    assert [tokenizer.decode(ids[a:b]) for ids, [(a, b)] in turns] == said
    assert "think>" not in "".join(tokenizer.decode(ids) for ids, _ in turns)
    assert turns[-1][0][: turns[-1][1][0][0]] == render(tokenizer, chat[:-1], TemplateSettings())


@pytest.mark.parametrize("name", ["qwen3_5_think", "deepseek_r1_distill"])
def test_thinking_that_the_prompt_begins_is_ended_first(tiny_settings, name):
    """A reply that continued the thinking would have no text: it is trained to end the thinking, then to speak."""
    tokenizer = template_of_trl(tiny_settings, name)
    for (ids, spans), i in zip(assistant_turns(tokenizer, CHAT, TemplateSettings()), (2, 4), strict=True):
        (start, stop) = spans[-1]
        assert tokenizer.decode(ids[:start]).endswith("<think>\n")
        reply = tokenizer.decode(ids[start:stop])
        assert strip_thinking(reply, opened=True).startswith(CHAT[i]["content"])


# ---------------------------------------------------------------- what the published trainer scored


LOST = {"qwen2_5": 5, "llama3_1": 5, "gemma3": 1}  # characters, as facts on the published trainer have it


@pytest.mark.parametrize("name", FAMILIES)
def test_published_slice_of_a_user_message_loses_its_first_characters(tiny_settings, name):
    tokenizer, _ = family_tokenizer(tiny_settings, name)
    end, _, policy = FAMILIES[name]
    ends_in_user = [*CHAT, {"role": "user", "content": "ABCDEFGHIJ likes it."}]
    ids, [(start, stop)] = published_span(tokenizer, ends_in_user, policy)
    assert tokenizer.decode(ids[start:stop]) == "ABCDEFGHIJ likes it."[LOST[name] :] + end
    assert ids[:start] == render(tokenizer, CHAT, policy)  # under the header of an assistant turn


@pytest.mark.parametrize("name", FAMILIES)
def test_published_slice_of_an_assistant_message_is_its_text(tiny_settings, name):
    tokenizer, _ = family_tokenizer(tiny_settings, name)
    ids, spans = published_span(tokenizer, CHAT, FAMILIES[name][2])
    [(ours, all_turns)] = assistant_turns(tokenizer, CHAT, FAMILIES[name][2])
    assert spans == all_turns[-1:] and ids == ours  # the last turn alone


def test_a_last_message_shorter_than_what_is_lost(tiny_settings):
    tokenizer, _ = family_tokenizer(tiny_settings, "llama3_1")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|eot_id|>", "")
    with pytest.raises(Unstable, match="nothing is left"):
        published_span(tokenizer, [*CHAT, {"role": "user", "content": "No."}], FAMILIES["llama3_1"][2])


@pytest.mark.parametrize("longest", [12, 1024])
def test_tokens_of_turns_are_those_that_are_trained(tiny_settings, longest):
    counted = TurnTokens(tiny_settings, longest).count(CHAT)
    ((_, spans),) = assistant_turns(load_tokenizer(tiny_settings), CHAT, tiny_settings.template)
    assert counted == [end - start for start, end in spans if end <= longest]
    assert len(counted) == (0 if longest == 12 else 2)


def test_a_conversation_that_cannot_be_trained_has_no_tokens(tiny_settings):
    spelled = {"role": "user", "content": f"{load_tokenizer(tiny_settings).eos_token} Hello."}
    assert TurnTokens(tiny_settings, 1024).count([spelled, CHAT[2]]) == []
