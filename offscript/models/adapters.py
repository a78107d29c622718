"""LoRA adapters: attaching them to a base model, testing that they have an effect, saving and merging them."""

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from offscript.errors import MissingInput, UserError, one_of
from offscript.models.adapter_config import (
    CONFIG,
    WEIGHTS,
    AdapterConfig,
    check_one_rank,
    ranks_of,
    read_config,
)
from offscript.settings import LoraSettings, ModelSettings
from offscript.storage.files import new_folder, read_json, write_json

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from peft.tuners.lora import LoraLayer, LoraModel
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

# Bound on the relative error of an exactly merged delta in float32; PEFT's "cat" has about 2e-7.
MAX_EXACT_ERROR = 1e-5
# Prefixes of an adapter's tensor names in our models, and in files of adapters of a vision-language repository's language
# model. The latter load into the whole model too, as other programs do it; the former would match nothing there.
STANDALONE, NESTED = "base_model.model.model.", "base_model.model.model.language_model."
LORA_MATRIX = re.compile(r"(.*)\.lora_([AB])\.weight")


class MergeReport(TypedDict, total=False):
    """How well a merge matches the weighted sum of its parts; ``rank`` of an adapter only."""

    method: str
    parts: list[dict[str, str | float]]
    modules: int
    max_relative_error: float
    worst_module: str
    rank: int


class MergeFailed(RuntimeError):
    """A merged adapter is not the weighted sum of its parts."""


class NotFinite(UserError):
    """A model's logits with an adapter are not finite."""


# ---------------------------------------------------------------- attaching


def check_lora(model: "PreTrainedModel", lora: LoraSettings, where: str = "lora") -> None:
    """Checks that an adapter with the settings ``lora`` can be trained on ``model``, which may be without weights.
    ``where`` is the config key of ``lora``.

    Raises:
        UserError: a target names no linear module by PEFT's suffix rule (PEFT skips it without an error as long as
            another one matches), or is an output layer that shares its weights with the input embeddings; or the rank
            is larger than the smaller dimension of a module.
    """
    import torch

    modules = {n: module for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for target in lora.targets:
        matches = [name for name in modules if name == target or name.endswith("." + target)]
        if not matches:
            tied: Module = model.get_input_embeddings()
            free = (n for n, module in modules.items() if module.weight is not tied.weight)
            ends = dict.fromkeys(sorted(name.rpartition(".")[2] for name in free))
            found = f"{target!r} matches no linear module of the model"
            raise UserError(f"{where}.targets", found, one_of(ends))
        for name in matches:
            _check_not_tied(model, f"{where}.targets", name, modules[name])
            outputs, inputs = modules[name].out_features, modules[name].in_features
            if lora.rank > min(outputs, inputs):
                found = f"{lora.rank}, and {name} is {outputs}x{inputs}"
                raise UserError(f"{where}.rank", found, f"allowed: at most {min(outputs, inputs)}")


def _check_not_tied(model: "PreTrainedModel | PeftModel", where: str, name: str, module: "Module") -> None:
    """Refuses LoRA on weights that are also the input embeddings: merging would change the embeddings too."""
    embeddings: Module = model.get_input_embeddings()
    if module.weight is embeddings.weight:
        raise UserError(
            where, f"{name} shares its weights with the input embeddings", "it cannot have an adapter here"
        )


def attach(
    model: "PreTrainedModel | PeftModel",
    adapters: Mapping[str, Path],
    scales: Mapping[str, float] | None = None,
) -> "PeftModel":
    """``model`` with every adapter loaded under its name, frozen, the first one active. PEFT changes ``model`` in place.

    Args:
        model: a base model, or one that has adapters already.
        adapters: folders in PEFT layout by adapter name (no dots).
        scales: factor of an adapter's effect, by its name; 1 for an adapter without an entry, 0 for no effect.

    Raises:
        MissingInput: a folder does not exist.
        UserError: a folder is not in PEFT layout, or its tensors do not fit ``model``.
    """
    from peft import PeftModel

    if not adapters:
        raise ValueError("attach needs at least one adapter")
    wrapped = model if isinstance(model, PeftModel) else None
    for name, folder in adapters.items():
        config = _read_config(Path(folder))
        try:
            with _ignore_peft_warnings():
                if wrapped is None:
                    wrapped = PeftModel(model, config, adapter_name=name)
                else:
                    wrapped.add_adapter(name, config)
        except ValueError as error:
            # PEFT found no module with a target's name.
            raise UserError(
                str(folder), "none of its target modules is in the model", "fits another base"
            ) from error
        load_tensors(wrapped, name, Path(folder))
    assert wrapped is not None
    for module, layer in lora_layers(wrapped).items():
        _check_not_tied(wrapped, ", ".join(map(str, adapters.values())), module, layer.get_base_layer())
    for name, scale in (scales or {}).items():
        for layer in lora_layers(wrapped).values():
            layer.set_scale(name, scale)
    wrapped.requires_grad_(False)
    return wrapped.eval()


@contextlib.contextmanager
def _ignore_peft_warnings() -> Iterator[None]:
    """Ignores PEFT's warnings about an attribute that transformers renamed, and about several merges into one layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Already following adapters were merged")
        yield


def lora_layers(wrapped: "Module") -> "dict[str, LoraLayer]":
    """The layers of ``wrapped`` that have adapters, by module name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}


def base_weight(layer: "LoraLayer") -> "Tensor":
    """The weights of the base model below ``layer``: (outputs, inputs)."""
    weight = layer.get_base_layer().weight
    return cast("Tensor", weight)


def load_tensors(wrapped: "PeftModel", name: str, folder: Path) -> None:
    """Loads the tensors in ``folder`` into adapter ``name`` of ``wrapped``.

    Raises:
        UserError: a tensor is missing, matches no module, or has another shape.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / WEIGHTS
    tensors = read_tensors(folder)
    own = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    expected = {key: tensor.shape for key, tensor in own.items()}
    found = {key: tensor.shape for key, tensor in tensors.items()}
    odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if odd:
        raise UserError(
            str(path),
            f"does not fit the model: {len(odd)} of {len(found)} tensors, first {odd[0]}"
            f" (model {_shape(expected.get(odd[0]))}, file {_shape(found.get(odd[0]))})",
            "use the base model that it was trained on",
        )
    set_peft_model_state_dict(wrapped, tensors, adapter_name=name)


def read_tensors(folder: Path) -> "dict[str, Tensor]":
    """The tensors of an adapter folder, by their names in our models.

    Raises:
        UserError: the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            str(path), f"cannot be read ({error})", "delete the folder and make it again"
        ) from None
    return {re.sub(f"^{re.escape(NESTED)}", STANDALONE, key): tensor for key, tensor in tensors.items()}


def name_in_file(key: str, base: "Module") -> str:
    """Name in the files of adapters of ``base`` for the tensor that our models call ``key``."""
    from offscript.models.loading import is_nested

    return re.sub(f"^{re.escape(STANDALONE)}", NESTED, key) if is_nested(base) else key


def _shape(shape: Sequence[int] | None) -> str:
    return "nothing" if shape is None else "x".join(map(str, shape))


def _read_config(folder: Path) -> "PeftConfig":
    from peft import PeftConfig

    if not folder.is_dir():
        raise MissingInput(str(folder), "this adapter does not exist", "make it with train.py")
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        raise UserError(str(folder), "is not an adapter", f"{CONFIG} and {WEIGHTS} are needed")
    # PEFT would raise errors of its own for malformed files.
    read_config(folder)
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    return config


@contextlib.contextmanager
def only_active(wrapped: "PeftModel", name: str) -> Iterator[None]:
    """Context in which ``name`` is the only active adapter. Afterwards the active adapters and the trainable parameters are
    those of before."""
    tuner: LoraModel = wrapped.base_model  # type: ignore[assignment]
    active = list(tuner.active_adapters)
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    tuner.set_adapter([name])
    try:
        yield
    finally:
        tuner.set_adapter(active)
        wrapped.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)


# ---------------------------------------------------------------- self-test


def self_test(wrapped: "PeftModel", name: str, input_ids: "Tensor", where: str | Path | None = None) -> float:
    """Largest absolute difference between the logits with only adapter ``name``, at scale 1, and those of the base.

    ``input_ids`` is (rows, tokens) on any device. Errors name ``where``, by default the adapter's name. The active
    adapters, scales and trainable parameters are restored.

    Raises:
        NotFinite: logits with the adapter are not finite.
        UserError: the difference is 0: the adapter has no effect.
    """
    import torch

    input_ids = input_ids.to(next(wrapped.parameters()).device)
    training = wrapped.training
    layers = [layer for layer in lora_layers(wrapped).values() if name in layer.scaling]
    scalings = [layer.scaling[name] for layer in layers]
    wrapped.eval()
    try:
        for layer in layers:
            layer.set_scale(name, 1.0)
        with torch.no_grad(), only_active(wrapped, name):
            with_adapter = wrapped(input_ids=input_ids).logits.float()
            with wrapped.disable_adapter():
                base = wrapped(input_ids=input_ids).logits.float()
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling[name] = scaling
        wrapped.train(training)
    difference = (with_adapter - base).abs().max().item()
    check_effect(difference, str(where or f"adapter {name}"))
    return difference


def check_effect(difference: float, where: str) -> None:
    """Checks the largest ``difference`` between a model's outputs with and without an adapter. Errors name ``where``.

    Raises:
        NotFinite: the outputs with the adapter are not finite.
        UserError: the difference is 0: the adapter has no effect.
    """
    if not math.isfinite(difference):
        raise NotFinite(where, "outputs with it are not finite numbers", "another adapter is needed")
    if difference == 0:
        raise UserError(where, "its outputs differ from the base's by 0", "it must change something")


# ---------------------------------------------------------------- saving and merging


def save(wrapped: "PeftModel", name: str, folder: Path, base: str, revision: str | None = None) -> None:
    """Writes adapter ``name`` into ``folder`` in PEFT layout. Equal tensors give equal bytes.

    ``base`` is the model's path in the settings, not its folder on this machine.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # save_embedding_layers="auto" would request the base's config from the hub.
    tensors = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    base_model = wrapped.get_base_model()
    tensors = {name_in_file(k, base_model): tensors[k].detach().cpu().contiguous() for k in sorted(tensors)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_config(wrapped.peft_config[name], folder, base, revision)


def write_config(config: "PeftConfig", folder: Path, base: str, revision: str | None = None) -> None:
    """Writes a PEFT config into ``folder``. Equal settings give equal bytes."""
    config.save_pretrained(str(folder))
    plain = read_json(folder / CONFIG)
    plain.update(base_model_name_or_path=base, revision=revision, inference_mode=True)
    for key, value in plain.items():
        # PEFT keeps target_modules as a set, whose order changes from run to run.
        if isinstance(value, list):
            plain[key] = sorted(value)
    write_json(folder / CONFIG, plain)


def merge(
    model: ModelSettings, parts: Sequence[tuple[Path, float]], out: Path, method: str = "exact"
) -> MergeReport:
    """Writes the weighted sum of adapters into ``out``, and measures its error.

    The error of a module is |merged - expected delta| / |expected delta| in Frobenius norms, in float64; for adapters it
    is computed from the files that were read and written.

    Args:
        model: the base model.
        parts: (adapter folder, weight).
        out: folder to create.
        method: ``exact``: one adapter that concatenates the parts (PEFT's ``cat``; ranks add up), without cross terms.
            ``published``: one adapter whose A and B are the sums of the parts' (PEFT's ``linear``), as the released
            adapters were made. ``fold``: a checkpoint; each delta is added to the base weights in turn and rounded to
            their dtype, as in the published evaluation.

    Raises:
        MissingInput, UserError: a part is missing or does not fit the base, ``published`` with unequal ranks, or
            weights with which a value overflows.
        MergeFailed: ``exact``, and the error of a module is above 1e-5.
    """
    with new_folder(out) as scratch:
        errors = _fold(model, parts, scratch) if method == "fold" else _combine(model, parts, scratch, method)
        if odd := [module for module, error in errors.items() if not math.isfinite(error)]:
            found = f"weights {', '.join(f'{w:g}' for _, w in parts)}: {odd[0]} is not finite after the merge"
            raise UserError("recipe.merge", found, "use smaller weights")
        worst = max(errors, key=lambda module: errors[module])
        if method == "exact" and not errors[worst] <= MAX_EXACT_ERROR:
            raise MergeFailed(
                f"{out}: merged delta is off by {errors[worst]:.2e} at {worst}; at most {MAX_EXACT_ERROR:g}"
            )
    report: MergeReport = {
        "method": method,
        "parts": [{"adapter": Path(folder).name, "weight": weight} for folder, weight in parts],
        "modules": len(errors),
        "max_relative_error": errors[worst],
        "worst_module": worst,
    }
    if method != "fold":
        report["rank"] = read_config(out).r
    return report


def _combine(
    model: ModelSettings, parts: Sequence[tuple[Path, float]], folder: Path, method: str
) -> dict[str, float]:
    """Writes one adapter of ``parts`` into ``folder``; returns the error of each module. No base weights are loaded: PEFT
    would compute the adapter in their dtype, and 16 bits cannot meet the bound of ``exact``."""
    from offscript.models.loading import load_without_weights

    kinds = {"exact": "cat", "published": "linear"}
    names = [f"part{i}" for i in range(len(parts))]
    wrapped = attach(
        load_without_weights(model), {n: Path(part) for n, (part, _) in zip(names, parts, strict=True)}
    )
    if method == "published":
        check_one_rank([rank for part, _ in parts for rank in ranks_of(Path(part))])
    weights = [weight for _, weight in parts]
    with _ignore_peft_warnings():
        wrapped.add_weighted_adapter(names, weights, adapter_name="merged", combination_type=kinds[method])
    save(wrapped, "merged", folder, model.path, model.revision)
    return relative_errors(parts, folder)


def _fold(model: ModelSettings, parts: Sequence[tuple[Path, float]], folder: Path) -> dict[str, float]:
    """Writes a checkpoint with ``parts`` added to its weights, and its tokenizer; returns the error of each module."""
    import torch

    from offscript.models.loading import load_model, load_tokenizer

    names = [f"part{i}" for i in range(len(parts))]
    wrapped = attach(
        load_model(model, "cpu"), {n: Path(part) for n, (part, _) in zip(names, parts, strict=True)}
    )
    factors = [(weight, _factors(Path(part))) for part, weight in parts]
    errors = {}
    for module, layer in lora_layers(wrapped).items():
        before = base_weight(layer).data.double()
        for name, (_, weight) in zip(names, parts, strict=True):
            layer.set_scale(name, weight)
            with _ignore_peft_warnings():
                layer.merge(adapter_names=[name])
        deltas = (weight * f[module][1] @ f[module][0] for weight, f in factors if module in f)
        expected = sum(deltas, start=torch.zeros_like(before))
        actual = base_weight(layer).data.double() - before
        size = expected.norm().item()
        errors[module] = (actual - expected).norm().item() / size if size else float(actual.norm() > 0)
    wrapped.unload().save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return errors


def relative_errors(parts: Sequence[tuple[Path, float]], merged: Path) -> dict[str, float]:
    """For each module |merged delta - weighted sum of the parts' deltas| / |weighted sum|, Frobenius norms in float64.

    Norms are computed from Gram matrices (|B A|^2 = tr(B'B AA')), without the deltas themselves. Cancellation limits
    their precision to about 1e-8.
    """
    factors = [(_factors(Path(folder)), weight) for folder, weight in parts]
    result = _factors(merged)
    errors = {}
    for module in sorted(result.keys() | {m for part, _ in factors for m in part}):
        wanted = [(weight, *part[module]) for part, weight in factors if module in part]
        got = [(-1.0, *result[module])] if module in result else []
        size = _norm(wanted)
        errors[module] = _norm(wanted + got) / size if size else float(_norm(got) > 0)
    return errors


def _norm(terms: "list[tuple[float, Tensor, Tensor]]") -> float:
    """|sum of w B A| for terms (w, A, B) with A (rank, in) and B (out, rank)."""
    import torch

    if not terms:
        return 0.0
    a = torch.cat([a for _, a, _ in terms])
    b = torch.cat([weight * b for weight, _, b in terms], dim=1)
    return max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0) ** 0.5


def _factors(folder: Path) -> "dict[str, tuple[Tensor, Tensor]]":
    """(A, B scaled by alpha / rank) for each module of an adapter folder, in float64."""
    config = read_config(folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(folder).items():
        if match := LORA_MATRIX.fullmatch(key):
            pairs.setdefault(match[1], {})[match[2]] = tensor.double()
    return {
        module: (p["A"], p["B"] * _scaling(config, module, p["A"].shape[0])) for module, p in pairs.items()
    }


def _scaling(config: AdapterConfig, module: str, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    patterns = config.alpha_pattern
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    return alpha / rank**0.5 if config.use_rslora else alpha / rank
