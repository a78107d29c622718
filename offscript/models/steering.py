"""Persona vectors: their file, and adding them to the residual stream of a model."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

FILE = "vector.safetensors"

USED = "used"
"""In the metadata of the file: the layer and the strength that are used, as JSON."""


@dataclass(frozen=True)
class SteeringVector:
    """What is added to the output of decoder layer ``layer`` (0 is the first) at every position: ``added`` (width,)."""

    layer: int
    added: "Tensor"


# ---------------------------------------------------------------- files


def save_vectors(folder: Path, vectors: "Tensor", layer: int, strength: float) -> None:
    """Writes the vectors of all layers (layers, width), and the layer and the strength that they are used with. Equal
    values give equal bytes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # One entry: several are written in an order that changes from one time to the next.
    metadata = {USED: json.dumps({"layer": layer, "strength": strength})}
    save_file({"vectors": vectors.float().cpu().contiguous()}, folder / FILE, metadata=metadata)


def load_vector(folder: Path, device: str = "cpu") -> SteeringVector:
    """What ``save_vectors`` wrote, as it is added to the activations.

    Raises:
        UserError: the file cannot be read, or is not such a file.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            used, vectors = json.loads((file.metadata() or {})[USED]), file.get_tensor("vectors")
        layer, strength = int(used["layer"]), float(used["strength"])
        return SteeringVector(layer, (vectors[layer] * strength).to(device))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        found = f"cannot be read as a persona vector ({type(error).__name__}: {error})"
        raise UserError(str(path), found, "delete the folder and make it again") from None


# ---------------------------------------------------------------- layers


def decoder_layers(model: "PreTrainedModel") -> "list[Module]":
    """The decoder layers of ``model``, first to last. The output of each is the residual stream.

    Raises:
        UserError: the model has no list of as many modules as its configuration has layers.
    """
    import torch

    wanted = getattr(model.config, "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    found = next((list(layers) for layers in lists if len(layers) == wanted), None)
    if not found:
        raise UserError(
            f"model {model.config.model_type}",
            "its decoder layers are not found, so nothing can be added to their outputs",
            "leave out stages with steering",
        )
    return found


def check_vectors(model: "PreTrainedModel", vectors: Mapping[str, SteeringVector]) -> None:
    """Checks that ``vectors`` fit the layers and the width of ``model``.

    Raises:
        UserError: one does not.
    """
    if not vectors:
        return
    layers, width = len(decoder_layers(model)), model.config.hidden_size
    for name, vector in vectors.items():
        if not 0 <= vector.layer < layers or tuple(vector.added.shape) != (width,):
            found = f"layer {vector.layer}, width {'x'.join(map(str, vector.added.shape))}"
            raise UserError(f"vector {name[:8]}", found, f"the model has {layers} layers of width {width}")


@contextlib.contextmanager
def steered(model: "PreTrainedModel", vectors: Sequence[SteeringVector | None]) -> Iterator[None]:
    """Within the block, ``vectors[i]`` is added to row i of every batch; rows with None are unchanged, bit for bit."""
    layers = sorted({vector.layer for vector in vectors if vector is not None})
    with contextlib.ExitStack() as stack:
        for layer in layers:
            change = _adder([v if v is not None and v.layer == layer else None for v in vectors])
            # Before the hooks of ``observed``, which is to see what the next layer sees.
            handle = decoder_layers(model)[layer].register_forward_hook(_on_output(change), prepend=True)
            stack.callback(handle.remove)
        yield


def _adder(vectors: Sequence[SteeringVector | None]) -> "Callable[[Tensor], Tensor]":
    """Adds ``vectors[i]`` to row i of (rows, positions, width)."""
    import torch

    rows = [i for i, vector in enumerate(vectors) if vector is not None]
    added = torch.stack([vector.added for vector in vectors if vector is not None])[:, None]

    def add(hidden: "Tensor") -> "Tensor":
        hidden = hidden.clone()
        hidden[rows] += added.to(hidden.dtype)
        return hidden

    return add


@contextlib.contextmanager
def observed(
    model: "PreTrainedModel", observe: "Callable[[int, Tensor], None]", layers: Collection[int] | None = None
) -> Iterator[None]:
    """Within the block, ``observe(layer, output)`` is called with the output (rows, positions, width) of every decoder
    layer, or of those of ``layers``. What ``steered`` adds to an output is in it."""
    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(model)):
            if layers is not None and number not in layers:
                continue

            def look(hidden: "Tensor", number: int = number) -> "Tensor":
                observe(number, hidden)
                return hidden

            stack.callback(layer.register_forward_hook(_on_output(look)).remove)
        yield


def mean_outputs(
    model: "PreTrainedModel",
    inside: "Tensor",
    forward: Callable[[], object],
    layers: Collection[int] | None = None,
) -> "dict[int, Tensor]":
    """The mean output of decoder layers over some positions of each row, in the forward pass that ``forward`` makes.

    Args:
        inside: (rows, positions), true at the positions that count; at least one in each row.
        layers: numbers of the layers; None: all.

    Returns:
        For each layer (rows, width), float32 on the CPU.
    """
    import torch

    counted = inside.float()
    weights = counted / counted.sum(dim=1, keepdim=True)
    means: dict[int, Tensor] = {}

    def observe(layer: int, hidden: "Tensor") -> None:
        means[layer] = torch.einsum("rp,rpw->rw", weights.to(hidden.device), hidden.float()).cpu()

    with torch.inference_mode(), observed(model, observe, layers):
        forward()
    return means


def _on_output(change: "Callable[[Tensor], Tensor]") -> Callable[..., Any]:
    """A forward hook that applies ``change`` to the residual stream. Some models return it in a tuple."""

    def hook(module: "Module", inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook
