"""The weights that compute a batch: the base model's, those of one merged adapter, or several adapters unmerged.

A persona vector is added to the activations of its rows alone, whichever weights compute the batch.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from offscript.models.adapters import base_weight, lora_layers
from offscript.models.steering import SteeringVector, check_vectors, steered

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTuner
    from torch.nn import Module
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
        model: the PEFT model of the adapters, or the base model if there are none.
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
        self.model, self.adapters, self.keep_bytes = model, tuple(adapters), keep_bytes
        self.vectors = dict(vectors or {})
        # Without adapters PEFT is not imported.
        base = cast("PeftModel", model).get_base_model() if self.adapters else model
        self.base = cast("PreTrainedModel", base)
        check_vectors(self.base, self.vectors)
        self.layers: list[Linear] = list(lora_layers(model).values()) if self.adapters else []  # type: ignore[arg-type]
        self.can_add = all(_is_plain(layer) for layer in self.layers)
        self.can_merge = self.can_add and all(base_weight(la).dtype == torch.float32 for la in self.layers)
        self._base_weights: list[Tensor] = [base_weight(layer).data for layer in self.layers]
        self._merged: OrderedDict[str, list[Tensor]] = OrderedDict()
        self._active: str | None = None
        self._adapters_enabled = True
        self._added: _AddedAdapters | None = None
        self._stacked: tuple[tuple[str, ...], list[_Stacked | None]] = ((), [])
        self._hooks = [
            layer.get_base_layer().register_forward_hook(partial(self._add_adapters, number))
            for number, layer in enumerate(self.layers if self.can_add else [])
        ]

    def restore(self) -> None:
        """Leaves the model as it was given, with its base weights and enabled adapters. What was computed from the adapters is
        forgotten, so they may be trained before the next batch."""
        self._activate(None)
        self._enable_adapters(True)
        self._merged.clear()
        self._stacked = ((), [])

    def close(self) -> None:
        """Restores the model and removes the hooks from it."""
        self.restore()
        for hook in self._hooks:
            hook.remove()

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
            self._activate(adapters[0] if mode != "mixed" else None)
            if mode == "mixed" and not self.can_add:
                output = self._forward_of_peft(adapters, inputs)
            else:
                self._enable_adapters(False)
                self._added = self._adapters_to_add(adapters) if mode == "mixed" else None
                try:
                    output = self.base(**inputs)
                finally:
                    # Whoever calls the base model itself gets the base model.
                    self._added = None
        return output

    def _forward_of_peft(
        self, adapters: Sequence[str | None], inputs: dict[str, Any]
    ) -> "CausalLMOutputWithPast":
        """PEFT's way for adapters of other kinds than plain LoRA."""
        self._enable_adapters(True)
        output: CausalLMOutputWithPast
        try:
            output = self.model(adapter_names=[a or "__base__" for a in adapters], **inputs)
        except BaseException:
            # PEFT 0.21 leaves its hooks where a pass fails; the next batch would have the adapters of this one.
            for layer in self.layers:
                layer._forward_pre_hooks.clear()
                layer._forward_pre_hooks_with_kwargs.clear()
            raise
        return output

    def _adapters_to_add(self, adapters: Sequence[str | None]) -> "_AddedAdapters":
        names = tuple(sorted({name for name in adapters if name is not None}))
        if names != self._stacked[0]:
            self._stacked = ((), [])
            self._stacked = names, [_stack(layer, names) for layer in self.layers]
        number = {name: i for i, name in enumerate(names)}
        rows = [number.get(name or "", -1) for name in adapters]
        return _AddedAdapters(self._stacked[1], torch.tensor(rows, device=self.base.device))

    def _add_adapters(self, number: int, module: "Module", inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of base layer ``number``."""
        return output if self._added is None else self._added.add(number, inputs[0], output)

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


@dataclass(frozen=True)
class _Stacked:
    """The matrices of several adapters of one layer, side by side: ``a`` (ranks, inputs), ``b`` (outputs, ranks).
    ``scaling`` (ranks,); ``owner`` (ranks,): the number of the adapter that a rank belongs to."""

    a: Tensor
    b: Tensor
    scaling: Tensor
    owner: Tensor


class _AddedAdapters:
    """What adapters add to the outputs of layers, for a batch whose row i has adapter ``rows[i]``, or -1.

    Every row is multiplied with all adapters, and the ranks of others are set to zero. That is two matrix products per
    layer, where a product per adapter would be many small ones.
    """

    def __init__(self, layers: Sequence[_Stacked | None], rows: Tensor) -> None:
        self.layers, self.rows = layers, rows

    def add(self, number: int, inputs: Tensor, output: Tensor) -> Tensor:
        """``output`` (rows, ..., outputs) of a layer for ``inputs`` (rows, ..., inputs), with the adapters."""
        stacked = self.layers[number]
        if stacked is None:
            return output
        own = torch.where(self.rows[:, None] == stacked.owner, stacked.scaling, 0)
        own = own.view(len(own), *[1] * (inputs.dim() - 2), -1)
        inside = linear(inputs.to(stacked.a.dtype), stacked.a) * own
        return (output + linear(inside, stacked.b)).to(output.dtype)


def _stack(layer: "Linear", names: Sequence[str]) -> _Stacked | None:
    """The adapters ``names`` of ``layer``; None if it has none of them."""
    own = [(i, name) for i, name in enumerate(names) if name in layer.lora_A]
    if not own:
        return None
    a, b = ([cast(Tensor, part[name].weight) for _, name in own] for part in (layer.lora_A, layer.lora_B))
    ranks = torch.tensor([len(matrix) for matrix in a], device=a[0].device)
    scaling = torch.tensor([layer.scaling[name] for _, name in own], dtype=a[0].dtype, device=a[0].device)
    owner = torch.tensor([i for i, _ in own], device=a[0].device)
    return _Stacked(
        torch.cat(a), torch.cat(b, dim=1), scaling.repeat_interleave(ranks), owner.repeat_interleave(ranks)
    )


def _is_plain(layer: "Linear") -> bool:
    """Whether ``layer`` has LoRA adapters without additions, so that their effect is that of two matrices."""
    from peft.tuners.lora import Linear

    return type(layer) is Linear and not any(layer.use_dora.values()) and not any(layer.lora_bias.values())
