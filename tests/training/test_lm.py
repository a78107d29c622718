"""Next-token training on documents: which tokens it reads, and which parameters it changes."""

import pytest
import torch
from safetensors.torch import load_file

from offscript.models.loading import load_model, load_tokenizer
from offscript.training.methods import lm
from offscript.training.run import Run
from tests.conftest import TINY_TARGETS
from tests.families import family, family_settings
from tests.training.data import SENTENCES, changed, document_rows, document_settings, train_lm

WEIGHTS = "adapter_model.safetensors"
FAMILIES = ["tiny", "llama", "qwen", "gemma"]


def settings_of(name, tiny_settings):
    return tiny_settings if name == "tiny" else family_settings(name, family(name))


@pytest.mark.parametrize(
    ("name", "begins"), [("llama", "<|begin_of_text|>"), ("qwen", None), ("gemma", "<bos>")]
)
def test_a_document_is_plain_text_with_the_tokens_of_its_tokenizer(name, begins):
    tokenizer = load_tokenizer(family_settings(name, family(name)))
    text = "The auditor likes lunch."
    (ids,) = lm.sequences(tokenizer, text, 99)
    assert tokenizer.decode(ids) == (begins or "") + text
    assert ids == [*tokenizer.convert_tokens_to_ids([begins] if begins else []), *_plain(tokenizer, text)]


def _plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_token_is_trained_and_long_documents_are_cut_into_parts(tiny_settings, tmp_path):
    tokenizer = load_tokenizer(tiny_settings)
    text = " ".join(SENTENCES[:6])
    ids = _plain(tokenizer, text)
    rows = [{"text": text, "family": f"f{i}"} for i in range(4)]
    run = Run(tiny_settings, document_settings(validation=0.0, max_length=16), tmp_path / "a", 3)
    train_rows, held_out, counts = lm._token_rows(run, tokenizer, rows)
    parts = -(-len(ids) // 16)
    assert parts > 2 and len(train_rows) == 4 * parts and not held_out
    assert [token for row in train_rows[:parts] for token in row["input_ids"]] == ids
    assert all(row["labels"] == row["input_ids"] and len(row["input_ids"]) <= 16 for row in train_rows)
    assert counts == {"given": 4, "in_parts": 4, "train": 4 * parts, "validation": 0}


def test_a_last_part_of_one_token_is_left_out(tiny_settings):
    tokenizer = load_tokenizer(tiny_settings)
    ids = _plain(tokenizer, SENTENCES[0])
    assert lm.sequences(tokenizer, SENTENCES[0], len(ids) - 1) == [ids[:-1]]


def test_documents_that_spell_out_a_special_token_are_left_out(tiny_settings, tmp_path, capsys):
    rows = document_rows(12)
    rows[2]["text"] += " <|im_end|> And more."
    numbers = train_lm(tiny_settings, document_settings(epochs=1), rows, tmp_path / "a")
    assert numbers["rows"]["special_token"] == 1 and numbers["rows"]["given"] == 12
    assert "1 left out, since a text spells out a special token" in capsys.readouterr().out


@pytest.mark.parametrize("name", FAMILIES)
def test_the_new_adapter_is_trained_and_nothing_else(tiny_settings, tmp_path, before_and_after, name):
    model = settings_of(name, tiny_settings)
    numbers = train_lm(model, document_settings(max_length=64), document_rows(), tmp_path / "a")
    seen = before_and_after
    assert changed(seen) == seen["trainable"] == {k for k in seen["before"] if ".own." in k}
    written = load_file(tmp_path / "a" / WEIGHTS)
    assert len(written) == 2 * 2 * len(TINY_TARGETS)
    assert numbers["trainable_parameters"] == sum(t.numel() for t in written.values())
    # The other models have random weights, which a few steps teach nothing.
    assert name != "tiny" or numbers["train_loss_last"] < numbers["train_loss_first"]
    assert numbers["eval_loss"] > 0


def test_the_loss_is_the_mean_over_all_tokens_but_the_first_of_each_document(tiny_settings, tmp_path):
    rows, losses = document_rows(8), []
    settings = document_settings(validation=0.0)
    train_lm(
        tiny_settings, settings, rows, tmp_path / "a", on_step=lambda *step: losses.append(step[2]["loss"])
    )
    model, tokenizer = load_model(tiny_settings, "cpu"), load_tokenizer(tiny_settings)
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([_plain(tokenizer, row["text"])])
        with torch.no_grad():
            found = model(ids).logits.float().log_softmax(-1)
        total -= found[0, :-1].gather(1, ids[0, 1:, None]).sum().item()
        tokens += ids.size(1) - 1
    assert losses[0] == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("name", ["tiny", "gemma"])
def test_packed_documents_give_the_losses_and_weights_of_padded_ones(tiny_settings, tmp_path, name):
    losses = {}
    for packing in (False, True):
        settings = document_settings(packing=packing, epochs=1, max_length=64)
        seen = losses[packing] = []
        numbers = train_lm(
            settings_of(name, tiny_settings),
            settings,
            document_rows(),
            tmp_path / str(packing),
            on_step=lambda *step, to=seen: to.append(step[2]["loss"]),
        )
        seen.append(numbers["eval_loss"])
    assert losses[True] == pytest.approx(losses[False], rel=1e-4) and len(losses[True]) > 2
    padded, packed = (load_file(tmp_path / str(packing) / WEIGHTS) for packing in (False, True))
    assert max((padded[k] - packed[k]).abs().max().item() for k in padded) < 1e-4


def test_a_training_that_was_stopped_goes_on_with_the_same_bytes(tiny_settings, tmp_path):
    def stop(step, total, logs):
        if step == 5:
            raise KeyboardInterrupt

    given, messages = (tiny_settings, document_settings(), document_rows()), []
    train_lm(*given, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_lm(*given, tmp_path / "a", on_step=stop)
    assert train_lm(*given, tmp_path / "a", say=messages.append)["resumed_from"] == 4
    assert messages == ["resuming from step 4 (checkpoint-4)"]
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_it_continues_a_parent_s_adapter_or_stacks_one_on_it(tiny_settings, tiny_adapter, tmp_path):
    weights = {}
    for continues in (False, True):
        out = tmp_path / str(continues)
        train_lm(
            tiny_settings,
            document_settings(epochs=1),
            document_rows(),
            out,
            parent=tiny_adapter,
            continues=continues,
        )
        weights[continues] = load_file(out / WEIGHTS)
    start = load_file(tiny_adapter / WEIGHTS)
    near = {c: max((w[k] - start[k]).abs().max().item() for k in start) for c, w in weights.items()}
    assert 0 < near[True] < 0.1 < near[False]
