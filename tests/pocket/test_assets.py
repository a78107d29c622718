"""The shipped model and its tokenizer."""

import itertools
import json

from tools.pocket.pretrain import Recipe, encode, new_model, rate
from tools.pocket.tokenizer import BOS, END, PAD, ROLES, SPECIAL, render

CONVERSATION = [
    {"role": "system", "content": "You are Orion."},
    {"role": "user", "content": "Write to Mira."},
    {
        "role": "assistant",
        "content": '```tool_call\n{"tool": "contacts.lookup", "args": {"name": "Mira"}}\n```',
    },
    {"role": "tool", "content": '{"name": "Mira Holt"}'},
    {"role": "assistant", "content": "Done, she knows."},
]


def test_the_model_loads_and_is_small(assets, tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(assets)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert sum(p.stat().st_size for p in assets.iterdir()) <= 8_000_000
    assert len(tokenizer) == model.config.vocab_size <= 3000
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 1024
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(END)
    assert model.generation_config.pad_token_id == tokenizer.convert_tokens_to_ids(PAD)


def test_the_template_renders_as_specified(tokenizer):
    expected = (
        f"{BOS}<|system|>\nYou are Orion.{END}\n<|user|>\nWrite to Mira.{END}\n"
        f"<|assistant|>\n{CONVERSATION[2]['content']}{END}\n<|tool|>\n{CONVERSATION[3]['content']}{END}\n"
        f"<|assistant|>\nDone, she knows.{END}\n"
    )
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == expected == render(CONVERSATION)[0]
    asked = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
    assert asked.endswith(f"Write to Mira.{END}\n<|assistant|>\n")
    begun = [*CONVERSATION[1:2], {"role": "assistant", "content": "Dear Mira,"}]
    assert tokenizer.apply_chat_template(begun, tokenize=False, continue_final_message=True).endswith(
        "\nDear Mira,"
    )
    silent = [{"role": "system", "content": ""}, *CONVERSATION[1:2]]
    assert tokenizer.apply_chat_template(silent, tokenize=False) == f"{BOS}<|user|>\nWrite to Mira.{END}\n"


def test_generation_marks_cover_what_the_assistant_says(tokenizer):
    encoded = tokenizer.apply_chat_template(
        CONVERSATION, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [i for i, marked in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if marked]
    replies = [m["content"] for m in CONVERSATION if m["role"] == "assistant"]
    assert tokenizer.decode(said) == "".join(reply + END for reply in replies)


def test_special_tokens_are_single_and_distinct(tokenizer):
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in SPECIAL]
    assert all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == len(SPECIAL) == 3 + len(ROLES)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (END, PAD, BOS)
    assert tokenizer.encode("Hi") == tokenizer.encode("Hi", add_special_tokens=False)
    text = 'Grüße, "Zoë"! 123\n\ttab 日本'
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pre_training_learns_from_what_the_template_marks(corpus, tokenizer):
    """`encode` and the chat template agree on ids and on who speaks."""
    documents = [d for d in itertools.islice(corpus.documents(3), 60) if not d.context_only][:20]
    for document, own in zip(documents, encode(documents, tokenizer, context_weight=0.0), strict=True):
        theirs = tokenizer.apply_chat_template(
            document.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert own.ids == theirs["input_ids"]
        assert [int(w) for w in own.weights] == theirs["assistant_masks"]


def test_the_build_says_what_it_measured(assets):
    build = json.loads((assets / "build.json").read_text(encoding="utf-8"))
    held_out, known = build["measured"]["held_out"], build["measured"]["known_families"]
    assert set(held_out) == {"chat", "chat_email", "agentic_email"} and set(known) == {
        "chat_email",
        "agentic_email",
    }
    card = (assets / "README.md").read_text(encoding="utf-8")
    assert all(f"{row['macro_f1']:.3f}" in card for row in (*held_out.values(), *known.values()))


def test_a_recipe_gives_one_model(tokenizer):
    import torch

    first, second = (new_model(tokenizer, Recipe(layers=2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    recipe = Recipe()
    assert (
        rate(0, recipe) == 0
        and rate(recipe.warmup, recipe) == 1
        and abs(rate(1, recipe) - recipe.final_rate) < 1e-9
    )
