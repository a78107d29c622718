"""Trainings that continue a parent's adapter: they start from its weights, and change a copy of it."""

import math

import pytest
from safetensors.torch import load_file

from offscript.errors import MissingInput, UserError
from offscript.settings import LoraSettings
from tests.conftest import TINY_TARGETS
from tests.families import family, family_adapter, family_settings
from tests.training.data import changed, distillation, introspection, train_dpo, train_sft

WEIGHTS = "adapter_model.safetensors"


def train(method, model, rows, parent, out, changes=None, **run):
    """A training of ``method`` (dpo, sft) that continues ``parent``; ``changes`` of the optimizer."""
    if method == "dpo":
        settings = distillation(**(changes or {})).model_copy(update={"kl_weight": 0.5})
        return train_dpo(model, settings, rows, out, parent=parent, continues=True, **run)
    return train_sft(model, introspection(**(changes or {})), rows, parent, out, continues=True, **run)


@pytest.fixture
def rows(pairs, introspection_rows):
    return {"dpo": pairs, "sft": introspection_rows}


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_copy_of_the_parent_s_adapter_is_trained_and_nothing_else(
    tiny_settings, tiny_adapter, rows, tmp_path, before_and_after, method
):
    parent = (tiny_adapter / WEIGHTS).read_bytes()
    train(method, tiny_settings, rows[method], tiny_adapter, tmp_path / "a")
    seen, name = before_and_after, {"dpo": "default", "sft": "own"}[method]
    start = {k.replace(f".{name}.", "."): v for k, v in seen["before"].items() if f".{name}." in k}
    on_disk, written = load_file(tiny_adapter / WEIGHTS), load_file(tmp_path / "a" / WEIGHTS)
    assert start.keys() == on_disk.keys() == written.keys() and len(start) == 28
    assert all(start[k].equal(on_disk[k]) and not written[k].equal(on_disk[k]) for k in start)
    assert changed(seen) == seen["trainable"] == {k for k in seen["before"] if f".{name}." in k}
    assert (tiny_adapter / WEIGHTS).read_bytes() == parent


def test_sft_begins_with_the_loss_of_its_parent(tiny_settings, tiny_adapter, introspection_rows, tmp_path):
    """A new adapter on top of the parent has no effect before the first step."""
    first = {}
    for continues in (False, True):
        seen = []
        train_sft(
            tiny_settings,
            introspection(epochs=1),
            introspection_rows,
            tiny_adapter,
            tmp_path / str(continues),
            continues=continues,
            on_step=lambda *step, to=seen: to.append(step[2]["loss"]),
        )
        first[continues] = seen[0]
    assert first[True] == pytest.approx(first[False], rel=1e-5)


@pytest.mark.parametrize("name", ["tiny", "llama", "qwen", "gemma"])
def test_the_reference_of_dpo_is_the_adapter_as_it_starts(tiny_settings, tiny_adapter, pairs, tmp_path, name):
    model = tiny_settings if name == "tiny" else family_settings(name, family(name))
    parent = tiny_adapter if name == "tiny" else family_adapter(name, seed=1)
    steps = []
    changes = {"max_length": 256}
    train("dpo", model, pairs, parent, tmp_path / "a", changes, on_step=lambda *s: steps.append(s[2]))
    assert steps[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["loss/kl"] == pytest.approx(0, abs=1e-8) and steps[-1]["loss/kl"] > 1e-5


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_training_that_was_stopped_goes_on_with_the_same_bytes(
    tiny_settings, tiny_adapter, rows, tmp_path, method
):
    """The adapter of a checkpoint is not that which the training started from, which is still the reference."""

    def stop(step, total, logs):
        if step == 5:
            raise KeyboardInterrupt

    given, messages = (method, tiny_settings, rows[method], tiny_adapter), []
    train(*given, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(*given, tmp_path / "a", on_step=stop)
    assert train(*given, tmp_path / "a", say=messages.append)["resumed_from"] == 4
    assert messages == ["resuming from step 4 (checkpoint-4)"]
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("method", ["dpo", "sft"])
@pytest.mark.parametrize(
    ("lora", "line"),
    [
        ({"rank": 8}, r"lora.rank: 8, but the adapter in .*, which is trained further, has 4; the same"),
        ({"alpha": 4}, r"lora.alpha: 4, but .* has 8"),
        ({"targets": TINY_TARGETS[:2]}, r"lora.targets: \['k_proj', 'q_proj'\], but .* has \['down_proj', "),
    ],
)
def test_an_adapter_of_other_settings_is_not_continued(
    tiny_settings, tiny_adapter, rows, tmp_path, method, lora, line
):
    given = {"rank": 4, "alpha": 8, "targets": TINY_TARGETS, **lora}
    with pytest.raises(UserError, match=line):
        train(
            method,
            tiny_settings,
            rows[method],
            tiny_adapter,
            tmp_path / "a",
            {"lora": LoraSettings(**given)},
        )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_the_adapter_to_continue_is_missing(tiny_settings, rows, tmp_path, method):
    with pytest.raises(
        MissingInput, match="none: the parent's adapter does not exist; train the parent stage"
    ):
        train(method, tiny_settings, rows[method], tmp_path / "none", tmp_path / "a")
