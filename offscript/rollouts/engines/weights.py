"""Which weights answer a batch: the base's, one adapter merged into them, or several side by side."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offscript.models.adapters import lora_layers

KEEP_BYTES = 2**30  # merged copies that are kept besides the one in use


class Weights:
    """One base model and its attached adapters, called with one adapter name per row (None: the base).

    A batch of one adapter runs on merged weights, so it costs what the base costs. Merging is a swap of
    tensors: base and merged copies lie side by side and the layer is pointed at one of them, so nothing is
    ever subtracted and the base weights stay bit for bit what was loaded. Below float32 nothing is merged:
    rounding (weight + delta) to 16 bits loses part of a small delta, and a text would depend on whether its
    batch had been merged.
    """

    def __init__(self, model: Any, adapters: Sequence[str], keep_bytes: int = KEEP_BYTES) -> None:
        self.model, self.adapters, self.keep_bytes = model, tuple(adapters), keep_bytes
        self.base = model.get_base_model() if self.adapters else model
        self.layers = list(lora_layers(model).values()) if self.adapters else []
        self.can_merge = all(_mergeable(layer) for layer in self.layers)
        self._base_weights = [layer.get_base_layer().weight.data for layer in self.layers]
        self._merged: OrderedDict[str, list[Tensor]] = OrderedDict()
        self._pointed: str | None = None
        self._side_by_side = True

    def way(self, names: Sequence[str | None]) -> str:
        """``base``, ``merged`` or ``mixed``: how rows of these adapters are answered together."""
        if any(n is not None and n not in self.adapters for n in names):
            raise KeyError(f"not given to the engine: {sorted({str(n) for n in names} - set(self.adapters))}")
        if set(names) == {None}:
            return "base"
        return "merged" if self.can_merge and len(set(names)) == 1 else "mixed"

    def forward(self, names: Sequence[str | None], **inputs: Any) -> Any:
        """The model's output for a batch whose row i speaks with the weights of ``names[i]``."""
        if self.way(names) == "mixed":
            self._point_at(None)
            self._stand(side_by_side=True)
            return self.model(adapter_names=[n or "__base__" for n in names], **inputs)
        self._point_at(names[0])
        self._stand(side_by_side=False)
        return self.base(**inputs)

    def _stand(self, side_by_side: bool) -> None:
        if self.adapters and side_by_side != self._side_by_side:
            tuner = self.model.base_model
            (tuner.enable_adapter_layers if side_by_side else tuner.disable_adapter_layers)()
            self._side_by_side = side_by_side

    def _point_at(self, name: str | None) -> None:
        if name == self._pointed:
            return
        tensors = self._base_weights if name is None else self._merge(name)
        for layer, tensor in zip(self.layers, tensors, strict=True):
            layer.get_base_layer().weight.data = tensor
        self._pointed = name

    def _merge(self, name: str) -> list[Tensor]:
        if name not in self._merged:
            self._make_room()
            self._merged[name] = [
                base + layer.get_delta_weight(name).to(base.dtype) if name in layer.lora_A else base
                for layer, base in zip(self.layers, self._base_weights, strict=True)
            ]
        self._merged.move_to_end(name)
        return self._merged[name]

    def _make_room(self) -> None:
        size = sum(t.numel() * t.element_size() for t in self._base_weights)
        while self._merged and (len(self._merged) + 1) * size > self.keep_bytes:
            self._merged.popitem(last=False)


def _mergeable(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    plain = type(layer) is Linear and not any(layer.use_dora.values()) and not any(layer.lora_bias.values())
    return plain and layer.get_base_layer().weight.dtype == torch.float32
