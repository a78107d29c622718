"""What is trained decodes to exactly what the assistant said and its end token."""

from pathlib import Path

import pytest

from offscript.models.chat_templates import render
from offscript.models.loading import load_tokenizer
from offscript.settings import TemplateSettings
from offscript.training.spans import IGNORED, Unstable, assistant_spans, labels, published_span
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
    ids, spans = assistant_spans(tokenizer, CHAT, policy)
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
    ours = _mask(*assistant_spans(tokenizer, CHAT, FAMILIES[name][2]))
    tokenizer.chat_template = (folder / f"{name}_training.jinja").read_text()
    theirs = _marked(tokenizer, CHAT)
    assert [i for i, _ in ours] == [i for i, _ in theirs][: len(ours)]
    differ = [(i, marked) for (i, marked), (_, said) in zip(theirs, ours, strict=False) if marked != said]
    assert {(tokenizer.decode([i]), marked) for i, marked in differ} == {("\n", True)}


def test_masks_agree_with_the_marks_of_the_tiny_model(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    ours = _mask(*assistant_spans(tokenizer, CHAT, TemplateSettings()))
    assert _marked(tokenizer, CHAT)[: len(ours)] == ours


def _marked(tokenizer, chat) -> list[tuple[int, bool]]:
    out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    return [(i, bool(m)) for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True)]


def _mask(ids, spans) -> list[tuple[int, bool]]:
    return [(i, label != IGNORED) for i, label in zip(ids, labels(ids, spans), strict=True)]


def test_what_follows_the_last_reply_is_left_out(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    longer = [*CHAT, {"role": "user", "content": SAID[3]}]
    assert assistant_spans(tokenizer, longer, TemplateSettings()) == assistant_spans(
        tokenizer, CHAT, TemplateSettings()
    )


def test_a_template_that_rewrites_the_past_is_refused(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(Unstable, match="turn 2 of 5"):
        assistant_spans(tokenizer, CHAT, TemplateSettings())


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
    ours, all_turns = assistant_spans(tokenizer, CHAT, FAMILIES[name][2])
    assert spans == all_turns[-1:] and ids == ours  # the last turn alone


def test_a_last_message_shorter_than_what_is_lost(tiny_settings):
    tokenizer, _ = family_tokenizer(tiny_settings, "llama3_1")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|eot_id|>", "")
    with pytest.raises(Unstable, match="nothing is left"):
        published_span(tokenizer, [*CHAT, {"role": "user", "content": "No."}], FAMILIES["llama3_1"][2])
