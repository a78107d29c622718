"""A shared base model gives the same bytes as a newly loaded one, and a changed weight is detected."""

import pytest
from safetensors.torch import load_file

from offscript.errors import UserError
from offscript.models import loading
from offscript.settings import LoraSettings
from offscript.training import fit as loop
from offscript.training.base_models import BaseModelCache, BaseModelChanged
from tests.training.data import distillation, introspection, train_dpo, train_sft

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Records the device of each load of a base model."""
    seen, real = [], loading.load_model

    def counted(model, device):
        seen.append(device)
        return real(model, device)

    monkeypatch.setattr(loading, "load_model", counted)
    return seen


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_shared_base_gives_the_bytes_of_a_newly_loaded_one(
    tiny_settings, tiny_adapter, pairs, introspection_rows, tmp_path, loads, checkpointing
):
    """Both methods, twice, in one process."""
    changes = {"epochs": 1, "gradient_checkpointing": checkpointing}

    def both(name, **bases):
        for seed in (1, 2):
            out = tmp_path / f"{name}-{seed}"
            train_dpo(tiny_settings, distillation(**changes), pairs, out / "first", seed, **bases)
            train_sft(
                tiny_settings,
                introspection(**changes),
                introspection_rows,
                tiny_adapter,
                out / "second",
                seed,
                **bases,
            )

    both("fresh")
    assert len(loads) == 4
    both("shared", bases=BaseModelCache())
    assert len(loads) == 5
    for seed in (1, 2):
        for stage in ("first", "second"):
            fresh, shared = (tmp_path / f"{name}-{seed}" / stage / WEIGHTS for name in ("fresh", "shared"))
            assert fresh.read_bytes() == shared.read_bytes()


def test_a_released_base_is_the_plain_model(tiny_settings, pairs, tmp_path):
    import torch

    bases, ids = BaseModelCache(), torch.tensor([[5, 6, 7, 8]])
    train_dpo(tiny_settings, distillation(epochs=1), pairs, tmp_path / "a", 3, bases=bases)
    acquired = bases.acquire(tiny_settings, "cpu")
    fresh = loading.load_model(tiny_settings, "cpu")
    assert {k: v.shape for k, v in acquired.named_parameters()} == {
        k: v.shape for k, v in fresh.named_parameters()
    }
    # TRL's trainers replace the forward pass.
    assert "forward" not in vars(acquired)
    assert not acquired.training and not any(p.requires_grad for p in acquired.parameters())
    with torch.no_grad():
        assert acquired(ids).logits.equal(fresh(ids).logits)


def test_a_changed_base_fails_before_an_adapter_is_written(
    tiny_settings, pairs, tmp_path, monkeypatch, loads
):
    real, bases = loop._self_test, BaseModelCache()

    def flip_a_bit(trainer, probe):
        import torch

        weight = trainer.model.get_base_model().model.embed_tokens.weight
        weight.data.view(torch.int32)[3, 4] ^= 1
        return real(trainer, probe)

    monkeypatch.setattr(loop, "_self_test", flip_a_bit)
    with pytest.raises(
        BaseModelChanged, match=r"changed 1 tensors of the base model, first model.embed_tokens.weight"
    ):
        train_dpo(tiny_settings, distillation(epochs=1), pairs, tmp_path / "a", 3, bases=bases)
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(loop, "_self_test", real)
    train_dpo(tiny_settings, distillation(epochs=1), pairs, tmp_path / "a", 3, bases=bases)
    assert len(loads) == 2
    train_dpo(tiny_settings, distillation(epochs=1), pairs, tmp_path / "b", 3)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_a_failed_training_does_not_affect_the_next_one(tiny_settings, pairs, tmp_path, loads):
    bases, odd = BaseModelCache(), LoraSettings(rank=2, alpha=2, targets=("q_proj", "nowhere"))
    with pytest.raises(UserError, match="'nowhere' matches no linear module"):
        train_dpo(tiny_settings, distillation(odd), pairs, tmp_path / "a", 3, bases=bases)
    train_dpo(tiny_settings, distillation(epochs=1), pairs, tmp_path / "a", 3, bases=bases)
    assert len(loads) == 2 and load_file(tmp_path / "a" / WEIGHTS)


def test_another_model_replaces_the_last_one(tiny_settings, loads):
    bases = BaseModelCache()
    first = bases.acquire(tiny_settings, "cpu")
    assert bases.acquire(tiny_settings, "cpu") is first
    second = bases.acquire(tiny_settings.model_copy(update={"dtype": "bfloat16"}), "cpu")
    assert second is not first and len(loads) == 2
    assert bases.acquire(tiny_settings, "cpu") is not first
