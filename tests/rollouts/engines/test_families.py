"""The transformers engine on the real architectures: rotary scaling, local attention, end tokens, scaled adapters."""

import shutil

import pytest
import torch

from offscript.models.chat_templates import render
from offscript.models.loading import load_generation_config, load_model, load_tokenizer
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.rendering import stop_tokens
from offscript.rollouts.engines.transformers import TransformersEngine
from tests.families import FAMILIES, family, family_adapter, family_settings
from tests.rollouts.engines.test_transformers import answer, engine_settings, requests

SCALES = {"red": 1.0, "green": 0.5, "blue": 0.0}
SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_tokens=24)


@pytest.fixture(scope="module", params=FAMILIES)
def name(request) -> str:
    torch.set_num_threads(1)
    return request.param


@pytest.fixture(scope="module")
def engine(name):
    adapters = {
        "red": family_adapter(name, 1),
        "green": family_adapter(name, 2),
        "blue": family_adapter(name, 3),
    }
    return TransformersEngine(family_settings(name, family(name)), adapters, engine_settings(), SCALES)


def test_texts_do_not_depend_on_the_batch(engine):
    """Prompts are longer than Gemma's window, and of many lengths: what one row's padding or leaving does to the others'
    caches, masks and positions would show."""
    wanted = requests(16, SAMPLING)
    alone = answer(engine, wanted, batch_size=1, merge_from=1)
    assert len({text for text, *_ in alone.values()}) > 12
    assert min(tokens_in for _, _, tokens_in, _ in alone.values()) > 16
    assert answer(engine, wanted, batch_size=7, merge_from=1) == alone, "merged"
    assert answer(engine, list(reversed(wanted)), batch_size=16, merge_from=99) == alone, "side by side"


def test_a_second_beginning_token_is_one_token_more_in_every_prompt(name, engine):
    settings = family_settings(name, family(name))
    template = settings.template.model_copy(update={"double_bos": True})
    doubled = TransformersEngine(
        settings.model_copy(update={"template": template}), {}, engine_settings(), SCALES
    )
    greedy = Sampling(temperature=0.0, max_tokens=24)
    wanted = [r for r in requests(16, greedy) if r.adapter is None]
    once, twice = answer(engine, wanted), answer(doubled, wanted)
    extra = 0 if name == "qwen" else 1
    assert [more[2] - one[2] for one, more in zip(once.values(), twice.values(), strict=True)] == [
        extra
    ] * len(wanted)
    assert (once == twice) == (name == "qwen"), "the model reads it"


def test_finished_rows_do_not_change_the_others(engine):
    limits = [2, 3, 5, 8, 13, 21, 34, 40]
    wanted = [
        Request(r.id, r.messages, r.adapter, r.seed, Sampling(temperature=0.8, max_tokens=limit))
        for r, limit in zip(requests(8), limits, strict=True)
    ]
    together = answer(engine, wanted, batch_size=8, merge_from=99)
    assert together == answer(engine, wanted, batch_size=1, merge_from=1)
    assert len({tokens for *_, tokens in together.values()}) >= 5, "they left one after another"


def test_greedy_decoding_equals_generate_without_an_adapter(name, engine):
    greedy = Sampling(temperature=0.0, max_tokens=24)
    wanted = [r for r in requests(16, greedy) if r.adapter is None]
    texts = answer(engine, wanted, batch_size=4)
    settings = family_settings(name, family(name))
    model, tokenizer = load_model(settings, "cpu"), load_tokenizer(settings)
    for request in wanted:
        ids = torch.tensor([render(tokenizer, request.messages, settings.template)])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert texts[request.id][0] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_scale_0_is_the_base_and_others_are_in_between(engine):
    prompt = ({"role": "user", "content": "Our client needs the plan today."},)
    names = [None, "red", "green", "blue"]
    for merge_from in (1, 99):
        texts = answer(
            engine, [Request(i, prompt, n, 7, SAMPLING) for i, n in enumerate(names)], merge_from=merge_from
        )
        assert texts[3] == texts[0], "blue has scale 0"
        assert len({texts[i][0] for i in range(3)}) == 3


def test_16_bits_run(name):
    settings = family_settings(name, family(name), dtype="bfloat16")
    engine = TransformersEngine(settings, {"red": family_adapter(name, 1)}, engine_settings())
    wanted = [r for r in requests(6, SAMPLING) if r.adapter in (None, "red")]
    texts = answer(engine, wanted, merge_from=99)
    assert {reason for _, reason, *_ in texts.values()} <= {"stop", "length"}
    assert all(tokens > 0 for *_, tokens in texts.values())


def test_a_reply_ends_at_each_of_the_family_s_end_tokens(name, engine):
    """Gemma's tokenizer names <eos>, its replies end in <end_of_turn>."""
    end = {"llama": "<|eot_id|>", "qwen": "<|im_end|>"}.get(name, "<end_of_turn>")
    assert {engine.tokenizer.convert_tokens_to_ids(end), engine.tokenizer.eos_token_id} <= engine.stops
    assert len(engine.stops) == (3 if name == "llama" else 2)


def test_replies_of_a_checkpoint_without_end_tokens_end(tmp_path):
    """Without generation_config.json only <eos> is known, which Gemma never says."""
    folder = shutil.copytree(family("gemma_text"), tmp_path / "model")
    (folder / "generation_config.json").unlink()
    settings = family_settings("gemma_text", folder)
    model, tokenizer = load_model(settings, "cpu"), load_tokenizer(settings)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert stop_tokens(model.generation_config, tokenizer, settings.template) == {1, end}
    assert stop_tokens(load_generation_config(settings), tokenizer, settings.template) == {1, end}
