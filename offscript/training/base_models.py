"""Base weights that several trainings of one process share: loaded once, and proved unchanged after each."""

from dataclasses import dataclass
from typing import Any

from offscript.settings import ModelSettings


class BaseModelChanged(RuntimeError):
    """A training changed weights that are none of its own."""


@dataclass
class _Held:
    key: tuple[Any, ...]
    base: Any
    sums: dict[str, int]


class BaseModelCache:
    """Keeps the base of the last model that was lent, for adapters of the same model to be trained one after another.

    It is lent to one training at a time, which gives it back, or drops it when it fails.
    """

    def __init__(self) -> None:
        self._held: _Held | None = None

    def acquire(self, model: ModelSettings, device: str) -> Any:
        """The base of ``model`` on ``device``: no adapter on it, no gradients, eval mode.

        Raises:
            UserError: as ``load_model``.
        """
        from offscript.models.loading import load_model

        key = (model.path, model.revision, model.dtype, str(device))
        if self._held is None or self._held.key != key:
            self.drop()  # two models may not fit
            base = load_model(model, device)
            self._held = _Held(key, base, checksums(base))
        return self._held.base

    def check(self) -> None:
        """Raises BaseModelChanged if a weight of the base that is lent is not what it was when it was loaded."""
        if self._held is None:
            return
        now = {name.replace(".base_layer.", "."): v for name, v in checksums(self._held.base).items()}
        changed = [name for name, before in self._held.sums.items() if now.get(name) != before]
        if changed:
            self.drop()
            raise BaseModelChanged(
                f"training changed {len(changed)} tensors of the base model, first {changed[0]}"
            )

    def release(self, wrapped: Any) -> None:
        """Takes the adapters off the base again, and what the trainers put on it; ``wrapped`` is the PeftModel."""
        if self._held is None:
            return
        base = wrapped.unload()
        assert base is self._held.base, "another model was given back than was lent"
        base.__dict__.pop("forward", None)  # TRL's head, which gives log-probabilities
        if base.is_gradient_checkpointing:
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()
        base.requires_grad_(False).eval()
        self.check()

    def drop(self) -> None:
        """Lets the base go; it is loaded again when it is next needed."""
        self._held = None


def checksums(base: Any) -> dict[str, int]:
    """Per weight of the model, the sum of its bit patterns (as integers, modulo 2^64): a change of a single one shows.
    Adapters' own weights are left out."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: tensor.detach().contiguous().view(integers[tensor.element_size()]).sum(dtype=torch.int64).item()
        for name, tensor in base.named_parameters()
        if ".lora_" not in name
    }
