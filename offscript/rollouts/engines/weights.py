"""The weights that compute a batch: the base model's, those of one merged adapter, or several adapters unmerged.

A persona vector is added to the activations of its rows alone, whichever weights compute the batch.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from offscript.models.adapters import base_weight, lora_layers
from offscript.models.steering import SteeringVector, check_vectors, steered

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTuner
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

Mode = Literal["base", "merged", "mixed"]

KEEP_BYTES = 2**30
"""Memory for merged copies besides the one in use."""


class Weights:
    """One base model, its adapters and its vectors, called with one name per row (None: the base model alone).

    A vector is added to what the base weights compute; a row has an adapter or a vector, not both.

    A batch of one adapter uses merged weights, so it costs as much as the base model. The base weights and the merged
    copies are separate tensors, and merging points the layers to one set of them: nothing is ever subtracted, and the
    base weights stay bit for bit what was loaded. Below float32 nothing is merged: rounding (weight + delta) to 16 bits
    loses part of a small delta, and a text would depend on whether its batch was merged.

    Args:
        model: the base model, or the PEFT model of the adapters.
        adapters: their names.
        vectors: persona vectors by name.
        keep_bytes: bound on the memory of merged copies besides the one in use.

    Raises:
        UserError: a vector does not fit the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        adapters: Sequence[str],
        vectors: Mapping[str, SteeringVector] | None = None,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        from peft import PeftModel

        self.model, self.adapters, self.keep_bytes = model, tuple(adapters), keep_bytes
        self.vectors = dict(vectors or {})
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.base = cast("PreTrainedModel", base)
        check_vectors(self.base, self.vectors)
        self.layers: list[Linear] = list(lora_layers(model).values()) if self.adapters else []  # type: ignore[arg-type]
        self.can_merge = all(_is_mergeable(layer) for layer in self.layers)
        self._base_weights: list[Tensor] = [base_weight(layer).data for layer in self.layers]
        self._merged: OrderedDict[str, list[Tensor]] = OrderedDict()
        self._active: str | None = None
        self._adapters_enabled = True

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that computes the rows of ``name``; None for the base weights, which vectors are added to.

        Raises:
            KeyError: the engine has no such adapter or vector.
        """
        if name is None or name in self.vectors:
            return None
        if name not in self.adapters:
            raise KeyError(f"not given to the engine: {name}")
        return name

    def mode(self, names: Sequence[str | None]) -> Mode:
        """How a batch with rows of these adapters and vectors is computed.

        Raises:
            KeyError: the engine has no such adapter or vector.
        """
        adapters = {self.adapter_of(name) for name in names}
        if adapters == {None}:
            return "base"
        return "merged" if self.can_merge and len(adapters) == 1 else "mixed"

    def forward(self, names: Sequence[str | None], **inputs: Any) -> "CausalLMOutputWithPast":
        """The model's output for a batch whose row i uses the adapter or vector ``names[i]``."""
        output: CausalLMOutputWithPast
        mode, adapters = self.mode(names), [self.adapter_of(name) for name in names]
        with steered(self.base, [self.vectors.get(name or "") for name in names]):
            if mode == "mixed":
                self._activate(None)
                self._enable_adapters(True)
                output = self.model(adapter_names=[a or "__base__" for a in adapters], **inputs)
            else:
                self._activate(adapters[0])
                self._enable_adapters(False)
                output = self.base(**inputs)
        return output

    def _enable_adapters(self, enabled: bool) -> None:
        if self.adapters and enabled != self._adapters_enabled:
            tuner: BaseTuner = self.model.base_model  # type: ignore[assignment]
            (tuner.enable_adapter_layers if enabled else tuner.disable_adapter_layers)()
            self._adapters_enabled = enabled

    def _activate(self, name: str | None) -> None:
        """Points every layer to the merged weights of an adapter, or to the base weights (None)."""
        if name == self._active:
            return
        tensors = self._base_weights if name is None else self._merge(name)
        for layer, tensor in zip(self.layers, tensors, strict=True):
            base_weight(layer).data = tensor
        self._active = name

    def _merge(self, name: str) -> list[Tensor]:
        if name not in self._merged:
            self._evict()
            self._merged[name] = [
                base + layer.get_delta_weight(name).to(base.dtype) if name in layer.lora_A else base
                for layer, base in zip(self.layers, self._base_weights, strict=True)
            ]
        self._merged.move_to_end(name)
        return self._merged[name]

    def _evict(self) -> None:
        """Drops the copies that were used least recently, so that another one fits ``keep_bytes``."""
        size = sum(t.numel() * t.element_size() for t in self._base_weights)
        while self._merged and (len(self._merged) + 1) * size > self.keep_bytes:
            self._merged.popitem(last=False)


def _is_mergeable(layer: "Linear") -> bool:
    from peft.tuners.lora import Linear

    plain = type(layer) is Linear and not any(layer.use_dora.values()) and not any(layer.lora_bias.values())
    return plain and base_weight(layer).dtype == torch.float32
