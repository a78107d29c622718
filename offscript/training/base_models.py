"""Base models that the trainings of one process share: loaded once, and checked for changes after each training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from offscript.settings import ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class BaseModelChanged(RuntimeError):
    """A training changed weights of the base model."""


@dataclass
class _Loaded:
    key: tuple[str | None, ...]
    base: "PreTrainedModel"
    sums: dict[str, int]


class BaseModelCache:
    """Keeps the base model of the last training, for more adapters of the same model.

    One training at a time holds the base model: it acquires it, and releases it, or drops it when it fails.
    """

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None

    def acquire(self, model: ModelSettings, device: str) -> "PreTrainedModel":
        """Returns the base of ``model`` on ``device``, without adapters or gradients, in eval mode.

        Raises:
            UserError: as ``load_model``.
        """
        from offscript.models.loading import load_model

        key = (model.path, model.revision, model.dtype, str(device))
        if self._loaded is None or self._loaded.key != key:
            # Two models may not fit.
            self.drop()
            base = load_model(model, device)
            self._loaded = _Loaded(key, base, checksums(base))
        return self._loaded.base

    def check(self) -> None:
        """Raises BaseModelChanged if a weight has changed since the base model was loaded."""
        if self._loaded is None:
            return
        now = {name.replace(".base_layer.", "."): v for name, v in checksums(self._loaded.base).items()}
        changed = [name for name, before in self._loaded.sums.items() if now.get(name) != before]
        if changed:
            self.drop()
            raise BaseModelChanged(
                f"training changed {len(changed)} tensors of the base model, first {changed[0]}"
            )

    def release(self, wrapped: "PeftModel") -> None:
        """Removes from the base model the adapters and what the trainers added, and checks its weights.

        Raises:
            BaseModelChanged: a weight has changed.
        """
        if self._loaded is None:
            return
        base = wrapped.unload()
        assert base is self._loaded.base, "only the acquired base model can be released"
        # TRL replaces it by a forward pass that returns log-probabilities.
        base.__dict__.pop("forward", None)
        if base.is_gradient_checkpointing:
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()
        base.requires_grad_(False).eval()
        self.check()

    def drop(self) -> None:
        """Frees the base model; the next ``acquire`` loads it again."""
        self._loaded = None


def checksums(base: "PreTrainedModel") -> dict[str, int]:
    """Returns for each weight the sum of its bit patterns as integers (modulo 2^64), which changes with any single value.
    Weights of adapters are left out."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(
            tensor.detach().contiguous().view(integers[tensor.element_size()]).sum(dtype=torch.int64).item()
        )
        for name, tensor in base.named_parameters()
        if ".lora_" not in name
    }
