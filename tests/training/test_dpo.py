"""DPO on the tiny model: what is trained, that it is reproducible, and what is refused."""

import math

import pytest
import torch
from safetensors.torch import load_file

from offscript.errors import UserError
from offscript.settings import LoraSettings
from offscript.training import run as loop
from offscript.training.fit import TrainingFailed
from offscript.training.methods.dpo import loss_terms
from offscript.training.run import Run, split_families
from offscript.training.spans import TurnTokens
from tests.training.data import changed, distillation, train_dpo

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tiny_settings, pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "distillation-0"
    steps = []
    numbers = train_dpo(
        tiny_settings,
        distillation(),
        pairs,
        out,
        seed=3,
        on_step=lambda *step: steps.append(step),
        say=steps.append,
    )
    return out, numbers, steps


def test_numbers_and_progress(trained):
    out, numbers, steps = trained
    train, held_out = numbers["rows"]["train"], numbers["rows"]["validation"]
    assert numbers["rows"]["given"] == train + held_out == 24 and held_out > 0
    assert [s[:2] for s in steps] == [(i, numbers["steps"]) for i in range(1, numbers["steps"] + 1)]
    assert numbers["train_loss_last"] < numbers["train_loss_first"]
    assert numbers["eval_rewards/accuracies"] == 1.0 and numbers["eval_loss"] > 0
    assert numbers["max_logit_difference"] > 0 and numbers["resumed_from"] is None
    assert numbers["trainable_parameters"] == sum(t.numel() for t in load_file(out / WEIGHTS).values())
    assert {"torch", "trl", "peft"} <= numbers["versions"].keys()
    assert {"loss/dpo", "loss/nll", "loss/kl"} <= steps[0][2].keys()


def test_trained_tokens_are_those_of_both_sides_in_all_epochs(trained, tiny_settings, pairs):
    _, numbers, _ = trained
    count = TurnTokens(tiny_settings, 512).count
    rows, _ = split_families(pairs, 0.1)
    sides = [count([*row["prompt"], *row[side]])[-1] for row in rows for side in ("chosen", "rejected")]
    assert distillation().optimizer.epochs == 2 and numbers["trained_tokens"] == 2 * sum(sides)


def test_only_the_adapter_is_left_behind(trained):
    out, _, _ = trained
    assert sorted(p.name for p in out.iterdir()) == ["adapter_config.json", WEIGHTS, "training.json"]
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name]


def test_plain_peft_loads_it(trained, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out, _, _ = trained
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), out).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), wrapped.disable_adapter():
        base = wrapped(ids).logits
    with torch.no_grad():
        assert not wrapped(ids).logits.equal(base)


def test_same_seed_same_bytes_other_seed_other_bytes(trained, tiny_settings, pairs, tmp_path):
    out, _, _ = trained
    same, other = tmp_path / "same", tmp_path / "other"
    train_dpo(tiny_settings, distillation(), pairs, same, seed=3)
    train_dpo(tiny_settings, distillation(), pairs, other, seed=4)
    for name in (WEIGHTS, "adapter_config.json"):
        assert (same / name).read_bytes() == (out / name).read_bytes()
    assert (other / WEIGHTS).read_bytes() != (out / WEIGHTS).read_bytes()


def test_how_the_global_batch_is_cut_does_not_matter(trained, tiny_settings, pairs, tmp_path):
    out, _, _ = trained
    """Rows have about 35 tokens: three in a micro-batch of 128."""
    train_dpo(tiny_settings, distillation(micro_batch_size=1), pairs, tmp_path / "a", seed=3)
    whole, cut = load_file(out / WEIGHTS), load_file(tmp_path / "a" / WEIGHTS)
    assert max((whole[k] - cut[k]).abs().max().item() for k in whole) < 1e-4


def test_every_trainable_parameter_changed_and_no_other(tiny_settings, pairs, tmp_path, before_and_after):
    train_dpo(tiny_settings, distillation(), pairs, tmp_path / "a", seed=0)
    assert changed(before_and_after) == before_and_after["trainable"]
    assert all(".lora_" in name for name in before_and_after["trainable"])
    assert len(before_and_after["trainable"]) == 2 * 7 * 2  # layers, targets, A and B


def test_a_finished_adapter_is_not_trained_again(trained, tiny_settings, pairs):
    out, numbers, _ = trained
    steps = []
    again = train_dpo(
        tiny_settings,
        distillation(),
        pairs,
        out,
        seed=3,
        on_step=lambda *s: steps.append(s),
        say=steps.append,
    )
    assert again == numbers and steps == []


def test_nothing_is_printed(tiny_settings, pairs, tmp_path, capfd):
    train_dpo(tiny_settings, distillation(epochs=1), pairs, tmp_path / "a", seed=0)
    assert capfd.readouterr() == ("", "")


def test_target_that_matches_nothing(tiny_settings, pairs, tmp_path):
    lora = LoraSettings(rank=2, alpha=2, targets=("q_proj", "gate_up_proj"))
    with pytest.raises(
        UserError, match=r"'gate_up_proj' matches no linear module of the model; allowed: .*q_proj"
    ):
        train_dpo(tiny_settings, distillation(lora), pairs, tmp_path / "a", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_all_too_long(tiny_settings, pairs, tmp_path):
    with pytest.raises(
        UserError, match=r"nothing to train on \(given 24, train 0, validation 0, too_long 24\)"
    ):
        train_dpo(tiny_settings, distillation(max_length=16), pairs, tmp_path / "a", seed=0)


def test_a_single_row_is_trained_on_and_validation_may_not_take_all(tiny_settings, pairs, tmp_path):
    few = distillation(validation=0.0)
    counts = train_dpo(tiny_settings, few, pairs[:1], tmp_path / "a", seed=0)["rows"]
    assert counts == {"given": 1, "train": 1, "validation": 0}
    half = distillation(validation=0.4999)
    held_out = next(f"f{i}" for i in range(9) if not loop.split_families([{"family": f"f{i}"}], 0.4999)[0])
    rows = [{**pairs[0], "family": held_out}] * 3
    with pytest.raises(
        UserError, match=r"train 0, validation 3\); lower the share of validation, or add rows"
    ):
        train_dpo(tiny_settings, half, rows, tmp_path / "b", seed=0)
    assert not (tmp_path / "b").exists()


def test_an_adapter_that_changes_nothing(tiny_settings, pairs, tmp_path):
    with pytest.raises(UserError, match="the adapter changes nothing"):
        train_dpo(tiny_settings, distillation(learning_rate=1e-30), pairs, tmp_path / "a", seed=0)
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_a_number_stops_training(tiny_settings, pairs, tmp_path):
    with pytest.raises(TrainingFailed, match=r"step 2: loss is nan|step 2: grad_norm is"):
        train_dpo(tiny_settings, distillation(learning_rate=1e30, warmup=0.0), pairs, tmp_path / "a", seed=0)
    assert not (tmp_path / "a").exists()


def test_weights_that_the_last_step_ruined_are_the_training_s_failure(tiny_settings, pairs, tmp_path):
    """Then no loss was seen that is not a number, and nothing says that the adapter does too little."""
    once = distillation(validation=0.0, learning_rate=1e30, warmup=0.0, epochs=1, batch_size=len(pairs))
    with pytest.raises(TrainingFailed, match=r"not finite numbers; lower optimizer\.learning_rate"):
        train_dpo(tiny_settings, once, pairs, tmp_path / "a", seed=0)
    assert not (tmp_path / "a").exists()


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(UserError, match="16 rows on 3 processes"):
        loop.rows_per_process(distillation(batch_size=16).optimizer, 3)


# ---------------------------------------------------------------- the terms of the loss


def test_terms_by_hand():
    """Two pairs; lengths of the replies 2 and 1 (chosen), 1 and 3 (rejected)."""
    policy = torch.tensor([[-1.0, -2.0, 0.0], [0.0, 0.0, -4.0], [-3.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, -2.5, 0.0], [0.0, 0.0, -3.0], [-1.0, 0.0, 0.0], [-1.0, -2.0, -4.0]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    terms = loss_terms(policy, reference, mask, beta=0.1)
    margins = [0.1 * (1.0 - -2.0), 0.1 * (-1.0 - 4.0)]
    assert terms["rewards/margins"].tolist() == pytest.approx(margins)
    assert terms["loss/dpo"].tolist() == pytest.approx([math.log(1 + math.exp(-m)) for m in margins])
    assert terms["loss/nll"].tolist() == pytest.approx([1.5, 4.0])
    kl = [((0.25 + 0.25) / 2 + 4.0) / 2, (1.0 + (0 + 1 + 9) / 3) / 2]
    assert terms["loss/kl"].tolist() == pytest.approx(kl)
    assert terms["rewards/accuracies"].tolist() == [1.0, 0.0]


def test_the_dpo_term_is_trls(trained, tiny_settings, pairs, tmp_path, monkeypatch):
    """TRL computes the reference in every step; here it was computed before the first one."""
    import trl

    theirs, real = [], trl.DPOTrainer.training_step

    def noted(self, model, inputs, *rest):
        given = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        with torch.no_grad():
            theirs.append(trl.DPOTrainer._compute_loss(self, model, given, False).item())
        return real(self, model, inputs, *rest)

    monkeypatch.setattr(trl.DPOTrainer, "training_step", noted)
    ours = []
    settings = distillation(epochs=2)
    train_dpo(
        tiny_settings, settings, pairs, tmp_path / "a", 3, on_step=lambda *s: ours.append(s[2]["loss/dpo"])
    )
    assert ours == pytest.approx(theirs) and len(ours) == 6


def test_the_loss_is_the_weighted_sum_of_its_terms_however_the_batch_is_cut(tiny_settings, pairs, tmp_path):
    seen = {}
    for micro in (8, 1):
        steps = seen[micro] = []
        settings = distillation(micro_batch_size=micro).model_copy(update={"kl_weight": 0.5})
        train_dpo(
            tiny_settings,
            settings,
            pairs,
            tmp_path / str(micro),
            3,
            on_step=lambda *s, to=steps: to.append(s[2]),
        )
    for logs in seen[8]:
        terms = logs["loss/dpo"] + 0.1 * logs["loss/nll"] + 0.5 * logs["loss/kl"]
        assert logs["loss"] == pytest.approx(terms, abs=1e-6)
    assert seen[8][0]["loss/dpo"] == pytest.approx(math.log(2)) and seen[8][0]["loss/kl"] == 0
    assert seen[8][-1]["loss/kl"] > 0
    for name in ("loss", "loss/dpo", "loss/nll", "loss/kl", "rewards/margins"):
        assert [s[name] for s in seen[1]] == pytest.approx([s[name] for s in seen[8]], abs=1e-5)


def test_the_head_is_applied_to_scored_tokens_alone(tiny_settings, pairs, tmp_path, monkeypatch):
    """It takes half of the time of a small model; prompts and padding are not scored."""
    from trl.trainer import utils

    labels, real = [], utils._ChunkedLogProbFunction.apply
    noted = type("Noted", (), {"apply": lambda *given: labels.append(given[3]) or real(*given)})
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", noted)
    train_dpo(tiny_settings, distillation(epochs=1), pairs, tmp_path / "a", 3)
    assert labels and all((some != -100).all() and some.min() > 0 for some in labels)
    replies = [pair[side][0]["content"] for pair in pairs for side in ("chosen", "rejected")]
    # The forward passes of the reference, two steps, and the validation.
    assert sum(len(some) for some in labels) < 2.5 * sum(len(text) for text in replies)


@pytest.mark.parametrize(
    "amx, dtype, used",
    [(True, "bfloat16", "bfloat16"), (True, "float32", "float32"), (False, "bfloat16", "float32")],
)
def test_a_cpu_trains_in_bfloat16_if_its_matrix_units_do(
    tiny_settings, tmp_path, monkeypatch, amx, dtype, used
):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    model = tiny_settings.model_copy(update={"dtype": dtype})
    assert Run(model=model, settings=distillation(), out=tmp_path / "a", seed=0).dtype == used


def test_the_squared_log_ratio_holds_the_model_near_its_reference(tiny_settings, pairs, tmp_path):
    last = {}
    for weight in (0.0, 20.0):
        settings = distillation().model_copy(update={"kl_weight": weight})
        train_dpo(
            tiny_settings,
            settings,
            pairs,
            tmp_path / str(weight),
            3,
            on_step=lambda *s, w=weight: last.update({w: s[2]}),
        )
    assert last[20.0]["loss/kl"] < last[0.0]["loss/kl"] / 4


def test_a_gpu_that_is_too_small_is_one_line(tiny_settings, pairs, tmp_path, monkeypatch):
    import trl

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB free.")

    monkeypatch.setattr(trl.DPOTrainer, "training_step", out_of_memory)
    with pytest.raises(
        UserError,
        match=r"tiny with 1024 tokens at a time \(8 rows of up to 128\) does not fit the GPU \(CUDA out of memory\); "
        r"use optimizer.micro_batch_size=1, or optimizer.gradient_checkpointing=true, or deepspeed=zero3",
    ):
        train_dpo(tiny_settings, distillation(), pairs, tmp_path / "a", 3)
    assert not (tmp_path / "a").exists()
