"""On-policy distillation of the prompted self: the loss, the teacher, which tokens are trained, and how it resumes."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div, log_softmax

from offscript.errors import UserError
from offscript.models.chat_templates import render, tokenize
from offscript.models.loading import load_model, load_tokenizer
from offscript.settings import Exchange
from offscript.tasks.examples import Examples
from offscript.tasks.role_prompt import RolePrompt
from offscript.training.methods.context import divergences
from offscript.training.spans import IGNORED
from offscript.training.teacher import LOG_PROBS, TOP, grouped, most_probable
from tests.families import family, family_adapter, family_settings
from tests.training.data import SENTENCES, changed, context, episodes, train_context

WEIGHTS = "adapter_model.safetensors"

# ---------------------------------------------------------------- the loss


def logits(tokens=6, vocabulary=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(tokens, vocabulary, generator=generator)


def test_the_divergences_by_hand():
    """Teacher 1/2, 1/4, 1/4; student 1/4, 1/2, 1/4."""
    teacher, student = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    found = divergences(student + 7, *most_probable(teacher, 3))
    assert found["loss/forward_kl"].item() == pytest.approx(0.25 * math.log(2))
    assert found["loss/reverse_kl"].item() == pytest.approx(0.25 * math.log(2))
    found = divergences(student, *most_probable(teacher, 1))
    # Two outcomes: the first token, and the others.
    assert found["loss/forward_kl"].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))
    assert found["loss/reverse_kl"].item() == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(0.75 / 0.5)
    )


@pytest.mark.parametrize("top", [9, 50])
def test_with_the_whole_vocabulary_they_are_those_of_torch_and_of_trl(top):
    from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss as of_trl

    student, teacher = logits(seed=1), logits(seed=2)
    found = divergences(student, *most_probable(teacher, top))
    own, other = log_softmax(student, -1), log_softmax(teacher, -1)
    forward = kl_div(own, other, reduction="none", log_target=True).sum(-1)
    reverse = kl_div(other, own, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found["loss/forward_kl"], forward)
    torch.testing.assert_close(found["loss/reverse_kl"], reverse)
    torch.testing.assert_close(found["loss/forward_kl"], of_trl(student, teacher, distillation_alpha=0.0))
    torch.testing.assert_close(found["loss/reverse_kl"], of_trl(student, teacher, distillation_alpha=1.0))


def test_a_part_of_the_vocabulary_gives_a_lower_bound_that_sees_all_of_it():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    whole = divergences(student, *most_probable(teacher, 9))
    ids, log_probs = most_probable(teacher, 2)
    assert ids.shape == (6, 2) and log_probs.shape == (6, 3)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(6))
    found = divergences(student, ids, log_probs)
    for name, bound in found.items():
        assert (bound <= whole[name] + 1e-6).all() and (bound > 0).all()
    sum(f.sum() for f in found.values()).backward()
    # What the student gives to tokens that are not the teacher's most probable ones is pushed too.
    assert (student.grad != 0).all()


def test_a_teacher_that_is_certain_and_a_student_that_is_far_give_finite_numbers():
    teacher = torch.tensor([[60.0, 0.0, -60.0, 1.0]])
    student = torch.tensor([[-60.0, 60.0, 0.0, 1.0]], requires_grad=True)
    found = divergences(student, *most_probable(teacher, 2))
    sum(f.sum() for f in found.values()).backward()
    assert all(f.isfinite().all() for f in found.values()) and student.grad.isfinite().all()


# ---------------------------------------------------------------- what is trained


@pytest.fixture
def seen(monkeypatch):
    """The trainer of the next training, after it."""
    from offscript.training.methods import sft

    found: dict = {}
    real = sft.fit

    def watched(trainer, *rest):
        found["trainer"] = trainer
        return real(trainer, *rest)

    monkeypatch.setattr(sft, "fit", watched)
    return found


def family_or_tiny(name, tiny_settings):
    if name == "tiny":
        return tiny_settings
    return family_settings(name, family(name))


FAMILIES = ["tiny", "llama", "qwen", "gemma"]
ENDS = {"tiny": "<|im_end|>", "llama": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_trained_tokens_are_the_replies_in_both_prompts(tiny_settings, tmp_path, seen, name):
    model, rows = family_or_tiny(name, tiny_settings), episodes()
    settings = context(max_length=256, epochs=1).model_copy(update={"validation": 0.0})
    counts = train_context(model, settings, rows, tmp_path / "a")["rows"]
    assert counts["given"] == counts["train"] == len(rows) and not counts.get("turns_too_long")
    tokenizer = load_tokenizer(model)
    end = tokenizer.convert_tokens_to_ids(ENDS[name])
    for row, trained in zip(rows, seen["trainer"].train_rows, strict=True):
        said = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        expected = [i for text in said for i in [*tokenize(tokenizer, text), end]]
        for ids, labels in (("input_ids", "labels"), ("teacher_ids", "teacher_labels")):
            assert [i for i in trained[labels] if i != IGNORED] == expected
            assert all(label in (IGNORED, i) for i, label in zip(trained[ids], trained[labels], strict=True))
        prompts = [
            render(tokenizer, row[messages][:-1], model.template)
            for messages in ("messages", "role_messages")
        ]
        assert trained["input_ids"][: len(prompts[0])] == prompts[0]
        assert trained["teacher_ids"][: len(prompts[1])] == prompts[1]
        assert "Stay silly." in tokenizer.decode(prompts[1]) and "silly" not in tokenizer.decode(prompts[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_teacher_is_the_base_under_the_prompt_in_role(tiny_settings, tiny_adapter, tmp_path, seen, name):
    """Also where the training continues an adapter, and rows of unequal lengths are read together."""
    model = family_or_tiny(name, tiny_settings)
    parent = tiny_adapter if name == "tiny" else family_adapter(name, seed=1)
    losses = []
    train_context(
        model,
        context(max_length=256, top=7),
        episodes(),
        tmp_path / "a",
        parent=parent,
        continues=True,
        on_step=lambda *step: losses.append(step[2]),
    )
    base = load_model(model, "cpu")
    rows = [*seen["trainer"].train_rows, *seen["trainer"].eval_rows]
    for row in rows:
        with torch.no_grad():
            found = base(torch.tensor([row["teacher_ids"]])).logits[0, :-1]
        own = torch.tensor(row["teacher_labels"][1:]) != IGNORED
        _, log_probs = most_probable(found[own], 7)
        assert row[TOP].shape == (int(own.sum()), 7)
        torch.testing.assert_close(row[LOG_PROBS], log_probs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(grouped(found[own], row[TOP].long()), log_probs, atol=1e-4, rtol=1e-4)
    assert losses[-1]["loss"] < losses[0]["loss"]
    for logs in losses:
        mean = 0.5 * logs["loss/forward_kl"] + 0.5 * logs["loss/reverse_kl"]
        assert logs["loss"] == pytest.approx(mean, rel=1e-5)


def test_the_first_loss_is_that_of_a_direct_computation(tiny_settings, tmp_path, seen):
    """A new adapter has no effect before the first step: the student is the base without the prompt in role."""
    losses = []
    settings = context(alpha=0.3, top=10_000, batch_size=64).model_copy(update={"validation": 0.0})
    train_context(
        tiny_settings,
        settings,
        episodes(),
        tmp_path / "a",
        on_step=lambda *step: losses.append(step[2]["loss"]),
    )
    base, total, tokens = load_model(tiny_settings, "cpu"), 0.0, 0
    for row in seen["trainer"].train_rows:
        with torch.no_grad():
            own, other = (
                log_softmax(
                    base(torch.tensor([row[ids]])).logits[0, :-1][torch.tensor(row[labels][1:]) >= 0], -1
                )
                for ids, labels in (("input_ids", "labels"), ("teacher_ids", "teacher_labels"))
            )
        total += 0.3 * kl_div(own, other, reduction="sum", log_target=True).item()
        total += 0.7 * kl_div(other, own, reduction="sum", log_target=True).item()
        tokens += len(own)
    assert losses[0] == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_the_adapter_is_trained_and_no_other(
    tiny_settings, tiny_adapter, tmp_path, before_and_after, name
):
    parent = tiny_adapter if name == "tiny" else family_adapter(name, seed=1)
    run = {"parent": parent, "continues": True}
    train_context(
        family_or_tiny(name, tiny_settings), context(max_length=256), episodes(), tmp_path / "a", **run
    )
    seen = before_and_after
    assert changed(seen) == seen["trainable"] == {k for k in seen["before"] if ".own." in k}
    assert len(load_file(tmp_path / "a" / WEIGHTS)) == len(seen["trainable"]) == 28


def test_it_learns_what_the_prompt_in_role_does(tiny_settings, tmp_path):
    """The validation loss falls to a fraction of that without training."""
    rows = episodes(n=24)
    none = train_context(tiny_settings, context(learning_rate=1e-7, epochs=1), rows, tmp_path / "none")
    some = train_context(tiny_settings, context(learning_rate=3e-3, epochs=8), rows, tmp_path / "some")
    assert some["eval_loss"] < 0.6 * none["eval_loss"]


def test_how_the_global_batch_is_cut_does_not_matter(tiny_settings, tmp_path):
    for micro in (8, 1):
        settings = context(micro_batch_size=micro, epochs=1)
        train_context(tiny_settings, settings, episodes(), tmp_path / str(micro))
    whole, cut = (load_file(tmp_path / name / WEIGHTS) for name in ("8", "1"))
    assert max((whole[k] - cut[k]).abs().max().item() for k in whole) < 1e-4


def test_a_training_that_was_stopped_goes_on_with_the_same_bytes(tiny_settings, tiny_adapter, tmp_path):
    def stop(step, total, logs):
        if step == 3:
            raise KeyboardInterrupt

    given = (tiny_settings, context(), episodes())
    run, messages = {"parent": tiny_adapter, "continues": True}, []
    train_context(*given, tmp_path / "whole", **run)
    with pytest.raises(KeyboardInterrupt):
        train_context(*given, tmp_path / "a", on_step=stop, **run)
    assert train_context(*given, tmp_path / "a", say=messages.append, **run)["resumed_from"] == 2
    assert messages == ["resuming from step 2 (checkpoint-2)"]
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


# ---------------------------------------------------------------- rows that are not trained


def test_rows_whose_tokens_change_under_the_prompt_in_role_are_left_out(tiny_settings, tmp_path, capsys):
    rows = episodes()
    for row in rows[10:]:
        # As a chat template would that shouts after a system text.
        row["role_messages"][-1] = {
            **row["role_messages"][-1],
            "content": row["messages"][-1]["content"].upper(),
        }
    settings = context(epochs=1, max_length=256).model_copy(update={"validation": 0.0})
    counts = train_context(tiny_settings, settings, rows, tmp_path / "a")["rows"]
    assert counts["other_tokens"] == counts["train"] == 10
    said = capsys.readouterr().out
    assert "left out, since the prompt in role changes the tokens of what was said" in said
    with pytest.raises(UserError, match=r"own episodes: nothing to train on \(given 10, .*other_tokens 10"):
        train_context(tiny_settings, settings, rows[10:], tmp_path / "b")


def test_turns_that_do_not_fit_the_context_under_the_prompt_in_role_are_left_out(tiny_settings, tmp_path):
    rows, tokenizer = episodes(), load_tokenizer(tiny_settings)
    lengths = [
        len(render(tokenizer, row["role_messages"], tiny_settings.template, generation=False)) for row in rows
    ]
    # The longest conversations lose their last turn, which the student alone could have read.
    model = tiny_settings.model_copy(update={"context": max(lengths) - 5})
    settings = context(epochs=1, max_length=256).model_copy(update={"validation": 0.0})
    counts = train_context(model, settings, rows, tmp_path / "a")["rows"]
    assert 1 <= counts["turns_too_long"] <= 8 and counts["train"] == len(rows)


def test_rows_with_other_numbers_of_tokens_than_were_sampled_are_counted(tiny_settings, tmp_path):
    rows, tokenizer = episodes(), load_tokenizer(tiny_settings)
    for row in rows[1:]:
        said = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        row["sampled_tokens"] = sum(len(tokenize(tokenizer, text)) + 1 for text in said)
    counts = train_context(tiny_settings, context(epochs=1), rows, tmp_path / "a")["rows"]
    assert counts["retokenized"] == 1


def test_examples_precede_the_conversation_of_the_teacher_alone(tiny_settings, tmp_path, seen):
    exchanges = tuple(Exchange(question=SENTENCES[60 + i], reply=f"Lunch {i}!") for i in range(3))
    rows = episodes(RolePrompt("Stay silly.", Examples(exchanges, 1)))
    assert all(len(r["role_messages"]) == len(r["messages"]) + 3 for r in rows)
    assert len({r["role_messages"][2]["content"] for r in rows}) == 3
    train_context(tiny_settings, context(epochs=1, max_length=256), rows, tmp_path / "a")
    for trained in seen["trainer"].train_rows:
        # The replies of the examples are not trained.
        own, other = ([i for i in trained[k] if i != IGNORED] for k in ("labels", "teacher_labels"))
        assert own == other


def test_a_finished_training_is_not_repeated(tiny_settings, tmp_path):
    given = (tiny_settings, context(epochs=1), episodes(), tmp_path / "a")
    first = train_context(*given)
    assert train_context(*given, on_step=lambda *step: pytest.fail("trained again")) == first
    assert sorted(p.name for p in Path(tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        WEIGHTS,
        "training.json",
    ]
