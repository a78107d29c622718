"""The transformers engine: texts are a function of prompt, adapter and seed, not of what else is in the batch."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from offscript.errors import UserError
from offscript.models.loading import load_model
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import EngineSettings
from tests.conftest import tiny_model_settings, tiny_sentences

SAMPLING = Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.0, max_tokens=24)


def engine_settings(**changes) -> EngineSettings:
    return EngineSettings(
        **{"name": "transformers", "batch_size": 16, "merge_from": 4, "device": "cpu", **changes}
    )


@pytest.fixture(scope="module")
def engine(tiny_settings, tiny_adapters):
    torch.set_num_threads(1)
    return TransformersEngine(tiny_settings, tiny_adapters, engine_settings())


def requests(n: int = 36, sampling: Sampling = SAMPLING) -> list[Request]:
    """Prompts of many lengths, the base and three adapters in turn."""
    sentences, names = tiny_sentences(), [None, "red", "green", "blue"]
    made = []
    for i in range(n):
        text = " ".join(sentences[i : i + 1 + i % 4])
        made.append(
            Request(i, ({"role": "user", "content": text},), names[i % 4], seed=1000 + i, sampling=sampling)
        )
    return made


def answer(engine, wanted, batch_size=16, merge_from=4) -> dict[int, str]:
    engine.settings = engine_settings(batch_size=batch_size, merge_from=merge_from)
    for request in wanted:
        engine.submit(request)
    texts = {}
    while engine.pending():
        for done in engine.step():
            assert done.id not in texts
            texts[done.id] = (done.text, done.finish_reason, done.tokens_in, done.tokens_out)
    return texts


def test_texts_do_not_depend_on_the_batch(engine):
    wanted = requests()
    alone = answer(engine, wanted, batch_size=1, merge_from=1)
    assert len({text for text, *_ in alone.values()}) > 20, (
        "the model should not say the same thing everywhere"
    )
    assert {reason for _, reason, *_ in alone.values()} == {"stop", "length"}
    merged = answer(engine, wanted, batch_size=7, merge_from=1)
    mixed = answer(engine, list(reversed(wanted)), batch_size=16, merge_from=99)
    assert merged == alone
    assert mixed == alone
    assert answer(engine, wanted[10:20], batch_size=16, merge_from=99) == {i: alone[i] for i in range(10, 20)}


def test_modes_are_counted_and_the_base_weights_are_restored(engine, tiny_settings):
    before = {
        name: weight.clone() for name, weight in engine.weights.base.named_parameters() if "lora" not in name
    }
    engine.stats.by_mode.clear()
    answer(engine, requests(), batch_size=4, merge_from=4)
    answer(engine, requests(), batch_size=16, merge_from=99)
    assert {"merged", "mixed"} <= engine.stats.by_mode.keys()
    assert sum(engine.stats.by_mode.values()) == 72
    engine.weights._activate(None)
    after = dict(engine.weights.base.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    own = load_model(tiny_settings, "cpu")(ids).logits
    engine.weights.forward(engine.weights.adapters[:2], input_ids=ids)
    assert torch.equal(engine.weights.base(ids).logits, own), "adapters stay with their batch"


def test_merged_copies_are_evicted_and_made_again(tiny_settings, tiny_adapters):
    wanted, engines = requests(), []
    for keep_bytes in (2**30, 0):
        engines.append(TransformersEngine(tiny_settings, tiny_adapters, engine_settings()))
        engines[-1].weights.keep_bytes = keep_bytes
    first, second = (answer(e, wanted, batch_size=4, merge_from=1) for e in engines)
    assert first == second
    assert [len(e.weights._merged) for e in engines] == [3, 1]


def test_a_text_depends_on_the_seed(engine):
    prompt = ({"role": "user", "content": "Our client needs the plan today."},)
    texts = answer(engine, [Request(i, prompt, None, seed=i // 2, sampling=SAMPLING) for i in range(20)])
    assert all(texts[2 * i] == texts[2 * i + 1] for i in range(10))
    assert len({text for text, *_ in texts.values()}) >= 8


def test_adapters_give_different_texts(engine):
    prompt = ({"role": "user", "content": "Our client needs the plan today."},)
    greedy = Sampling(temperature=0.0, max_tokens=16)
    names = [None, "red", "green", "blue"]
    texts = answer(
        engine, [Request(i, prompt, name, seed=7, sampling=greedy) for i, name in enumerate(names)]
    )
    assert len({text for text, *_ in texts.values()}) == 4


def test_greedy_decoding_equals_generate(engine):
    greedy = Sampling(temperature=0.0, max_tokens=16)
    wanted = [r for r in requests(24, greedy) if r.adapter is None]
    texts = answer(engine, wanted, batch_size=5)
    engine.weights.forward([None], input_ids=torch.tensor([[1]]))
    for request in wanted:
        ids = engine.tokenizer.apply_chat_template(
            list(request.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with torch.inference_mode():
            out = engine.weights.base.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16
            )
        assert texts[request.id][0] == engine.tokenizer.decode(
            out[0, ids.shape[1] :], skip_special_tokens=True
        )


def test_the_repetition_penalty_equals_that_of_generate_and_ignores_padding(engine):
    penalized = Sampling(temperature=0.0, repetition_penalty=1.3, max_tokens=16)
    wanted = [r for r in requests(24, penalized) if r.adapter is None]
    texts = answer(engine, wanted, batch_size=24)
    engine.weights.forward([None], input_ids=torch.tensor([[1]]))
    for request in wanted:
        ids = engine.tokenizer.apply_chat_template(
            list(request.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with torch.inference_mode():
            out = engine.weights.base.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=16,
                repetition_penalty=1.3,
            )
        assert texts[request.id][0] == engine.tokenizer.decode(
            out[0, ids.shape[1] :], skip_special_tokens=True
        )


def test_rows_bring_their_own_sampling(engine):
    base = requests(12)
    wanted = [
        Request(
            i,
            r.messages,
            r.adapter,
            r.seed,
            Sampling(0.3 + 0.1 * i, 1.0 if i % 2 else 0.8, 1.0 + 0.05 * i, 4 + i),
        )
        for i, r in enumerate(base)
    ]
    together = answer(engine, wanted, batch_size=16, merge_from=99)
    assert together == answer(engine, wanted, batch_size=1, merge_from=1)
    assert all(tokens <= 4 + i for i, (*_, tokens) in together.items())


def test_a_prefix_is_continued_and_returned(engine):
    prompt = ({"role": "user", "content": "Our client needs the plan today."},)
    texts = answer(engine, [Request(0, prompt, None, 3, SAMPLING, prefix="The team")])
    assert texts[0][0].startswith("The team")
    assert texts[0][2] > answer(engine, [Request(0, prompt, None, 3, SAMPLING)])[0][2]


def test_replies_are_clipped_to_the_context(engine):
    window = engine.model_settings.context
    words = " ".join(["report"] * 600)
    head = engine.tokenizer(words, add_special_tokens=False)["input_ids"]
    almost = engine.tokenizer.decode(head[: window - 20])
    texts = answer(
        engine,
        [
            Request(0, ({"role": "user", "content": words},), "red", 1, SAMPLING),
            Request(1, ({"role": "user", "content": almost},), "red", 1, Sampling(max_tokens=500)),
        ],
    )
    assert texts[0][:2] == ("", "length") and texts[0][3] == 0
    assert texts[1][2] + texts[1][3] <= window


def test_logits_that_are_not_finite_are_an_error_of_their_row_alone(engine, monkeypatch):
    wanted = requests(4)
    clean = answer(engine, wanted, merge_from=99)
    forward = engine.weights.forward

    def broken(names, **inputs):
        output = forward(names, **inputs)
        output.logits[[i for i, n in enumerate(names) if n == "green"]] = float("nan")
        return output

    monkeypatch.setattr(engine.weights, "forward", broken)
    texts = answer(engine, wanted, merge_from=99)
    assert texts[2][1] == "error" and "not finite" in texts[2][0]
    assert {i: texts[i] for i in (0, 1, 3)} == {i: clean[i] for i in (0, 1, 3)}


def fits(engine, monkeypatch, tokens: int) -> list[tuple[int, int]]:
    """Lets ``engine`` run out of memory beyond ``tokens`` tokens of keys and values. Rows and tokens of each pass are
    appended to the list."""
    forward, passes = engine.weights.forward, []

    refused: list[tuple[int, int]] = []

    def limited(names, **inputs):
        rows, columns = inputs["attention_mask"].shape
        if rows * columns > tokens:
            refused.append((rows, columns))
            assert len(refused) < 100, "the tokens of a batch are not reduced"
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112.00 MiB.")
        passes.append((rows, columns))
        return forward(names, **inputs)

    monkeypatch.setattr(engine.weights, "forward", limited)
    return passes


def test_out_of_memory_halves_the_tokens_of_a_batch_and_changes_no_text(engine, monkeypatch, caplog):
    wanted = requests(24)
    expected = answer(engine, wanted)
    longest = max(tokens_in for _, _, tokens_in, _ in expected.values()) + SAMPLING.max_tokens
    with monkeypatch.context() as patch:
        patch.setattr(engine, "batch_tokens", 10**6)
        passes = fits(engine, patch, 5 * longest)
        assert answer(engine, wanted, batch_size=16) == expected
        halved = engine.batch_tokens
        assert halved <= 5 * longest
        assert max(rows for rows, _ in passes) > 1, "rows are still decoded together"
    assert 1 <= len(caplog.messages) <= 5, "one warning for each halving"
    assert caplog.messages[-1].startswith("out of memory with ")
    assert f"at most {halved} tokens from here on" in caplog.messages[-1]


def test_a_row_that_does_not_fit_by_itself_is_one_line_and_all_rows_still_wait(engine, monkeypatch):
    wanted = requests(6)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "batch_tokens", 10**6)
        fits(engine, patch, 3)
        with pytest.raises(
            UserError, match=r"^engine.device: a single row of up to \d+ tokens does not fit the"
        ):
            answer(engine, wanted)
    assert engine.pending() == 6
    texts = {}
    while engine.pending():
        texts.update({done.id: done.text for done in engine.step()})
    assert texts == {i: text for i, (text, *_) in answer(engine, wanted).items()}


def test_a_batch_has_no_more_tokens_than_allowed(engine, monkeypatch):
    wanted = requests(24)
    expected = answer(engine, wanted)
    passes = fits(engine, monkeypatch, 10**6)
    monkeypatch.setattr(engine, "batch_tokens", 150)
    assert answer(engine, wanted) == expected
    assert max(rows * columns for rows, columns in passes) <= 150
    assert max(rows for rows, _ in passes) > 1


def test_rows_join_a_batch_while_others_are_decoded(engine, monkeypatch):
    """With 4 of 24 rows at a time, the texts of one batch after another need many more passes."""
    wanted = [
        Request(r.id, r.messages, None, r.seed, Sampling(temperature=0.8, max_tokens=2 + 11 * (r.id % 4)))
        for r in requests(24)
    ]
    expected = answer(engine, wanted, batch_size=1)
    passes = fits(engine, monkeypatch, 10**6)
    assert answer(engine, wanted, batch_size=4) == expected
    steps = [rows for rows, _ in passes]
    assert sum(tokens for *_, tokens in expected.values()) / len(steps) > 2.2, "batches are kept full"


def test_an_unknown_adapter_is_refused(engine):
    with pytest.raises(KeyError, match="mauve"):
        engine.submit(Request(0, ({"role": "user", "content": "x"},), "mauve", 1, SAMPLING))
    assert engine.pending() == 0


def test_below_float32_nothing_is_merged(tiny_model, tiny_adapters):
    engine = TransformersEngine(
        tiny_model_settings(tiny_model, dtype="bfloat16"), tiny_adapters, engine_settings()
    )
    answer(engine, [r for r in requests(8) if r.adapter is None])
    answer(engine, [r for r in requests(8) if r.adapter == "red"], merge_from=1)
    assert set(engine.stats.by_mode) == {"base", "mixed"}


def test_info_and_stats(engine):
    info = engine.info()
    assert {"engine", "torch", "transformers", "peft", "device", "dtype"} <= info.keys()
    assert info["device"] == "cpu" and info["dtype"] == "float32"
    assert engine.stats.tokens_out > 0 and engine.stats.completions > 0


def test_an_adapter_that_overflows_is_named_by_its_folder(tiny_settings, tiny_adapter, tmp_path):
    """Its name in the engine is a key of 64 digits."""
    folder = shutil.copytree(tiny_adapter, tmp_path / "full-0a1b2c3d")
    weights = folder / "adapter_model.safetensors"
    save_file({k: v * 1e38 if "lora_B" in k else v for k, v in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match=r"^/.*/full-0a1b2c3d: outputs with it are not finite numbers"):
        TransformersEngine(tiny_settings, {"f" * 64: folder}, engine_settings())


def conversation(turns: list[tuple[str, str]], text: str) -> tuple[dict[str, str], ...]:
    """The messages of earlier turns (what was asked, and the reply), and a next one."""
    earlier = [
        {"role": role, "content": said}
        for turn in turns
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]
    return (*earlier, {"role": "user", "content": text})


def read_tokens(engine, monkeypatch) -> list[tuple[int, int]]:
    """Rows and new tokens of each pass over prompts are appended to the list."""
    forward, passes = engine.weights.forward, []

    def counted(names, **inputs):
        if inputs["input_ids"].shape[1] > 1:
            passes.append(tuple(inputs["input_ids"].shape))
        return forward(names, **inputs)

    monkeypatch.setattr(engine.weights, "forward", counted)
    return passes


def test_a_next_turn_reads_only_what_is_new_and_has_the_same_text(tiny_settings, tiny_adapters, monkeypatch):
    engine = TransformersEngine(tiny_settings, tiny_adapters, engine_settings())
    sentences, names = tiny_sentences(), [None, "red", "green", "blue"]
    opening = " ".join(sentences[:4])
    # The four conversations begin with the same words: their keys and values are those of four different models.
    first = [
        Request(i, conversation([], f"{opening} {sentences[4 + i // 4]}"), names[i % 4], i, SAMPLING)
        for i in range(8)
    ]
    replies = answer(engine, first, merge_from=1)
    second = [
        Request(
            r.id,
            conversation([(r.messages[0]["content"], replies[r.id][0])], sentences[9]),
            r.adapter,
            90 + r.id,
            SAMPLING,
        )
        for r in first
    ]
    passes = read_tokens(engine, monkeypatch)
    texts = answer(engine, second, merge_from=1)
    computed = sum(rows * tokens for rows, tokens in passes)
    assert computed < 0.6 * sum(tokens_in for _, _, tokens_in, _ in texts.values())
    for request in second:
        fresh = TransformersEngine(tiny_settings, tiny_adapters, engine_settings())
        assert answer(fresh, [request])[request.id] == texts[request.id]


def test_prompts_that_begin_with_the_same_tokens_read_them_once(tiny_settings, tiny_adapters, monkeypatch):
    engine = TransformersEngine(tiny_settings, tiny_adapters, engine_settings())
    sentences = tiny_sentences()
    constitution = {"role": "system", "content": " ".join(sentences[:8])}
    wanted = [
        Request(i, (constitution, {"role": "user", "content": sentences[8 + i]}), "red", i, SAMPLING)
        for i in range(12)
    ]
    passes = read_tokens(engine, monkeypatch)
    texts = answer(engine, wanted)
    assert passes[0][0] == 1, "one prompt is read by itself"
    assert sum(rows * tokens for rows, tokens in passes) < 0.6 * sum(
        tokens_in for _, _, tokens_in, _ in texts.values()
    )
    fresh = TransformersEngine(tiny_settings, tiny_adapters, engine_settings())
    assert {r.id: answer(fresh, [r])[r.id] for r in reversed(wanted)} == texts


def test_kept_prefixes_have_a_bound(tiny_settings, tiny_adapters):
    engine = TransformersEngine(tiny_settings, tiny_adapters, engine_settings(batch_tokens=400))
    wanted = requests(24)
    texts = answer(engine, wanted)
    kept = engine._prefixes
    assert 0 < kept.tokens <= 100
    assert kept.tokens == sum(len(prefix.tokens) for prefix in kept._kept.values())
    assert texts == answer(engine, list(reversed(wanted)), batch_size=3)
