"""LoRA adapters: putting them on a base model, proving that they do something, writing and merging them."""

import contextlib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import MissingInput, UserError
from offscript.settings import ModelSettings
from offscript.storage.files import new_folder, read_json, write_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
EXACT = 1e-5  # largest relative error of a merged delta in fp32; "cat" gives about 2e-7
# Names of an adapter's tensors in our models, and for the same layers inside a vision-language model. Adapters of the
# language model of such a repository are written with the latter: loaded on the whole, as others do, the former would
# match nothing and do nothing, without an error.
ALONE, INSIDE = "base_model.model.model.", "base_model.model.model.language_model."
A_OR_B = re.compile(r"(.*)\.lora_([AB])\.weight")


class MergeFailed(RuntimeError):
    """A merged adapter is not the weighted sum of its parts."""


class NotFinite(UserError):
    """What a model says with an adapter is not a number."""


# ---------------------------------------------------------------- putting adapters on a model


def check_targets(model: Any, targets: Iterable[str]) -> None:
    """Checks that every LoRA target names at least one linear module of ``model``, by PEFT's suffix rule.

    Raises:
        UserError: a target matches nothing (PEFT itself skips it without a word as long as another one matches), or is
            the output layer of a model that shares its weights with the input embeddings.
    """
    import torch

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names})
            raise UserError(
                "lora.targets",
                f"{target!r} matches no linear module of the model",
                f"allowed: {', '.join(ends)}",
            )
        for name in names:
            if name == target or name.endswith("." + target):
                _check_own_weights(model, "lora.targets", name, model.get_submodule(name))


def _check_own_weights(model: Any, where: str, name: str, module: Any) -> None:
    """Refuses LoRA on weights that are the input embeddings as well: merged, it would change what the model reads."""
    if module.weight is model.get_input_embeddings().weight:
        raise UserError(
            where, f"{name} shares its weights with the input embeddings", "it cannot bear an adapter here"
        )


def attach(
    model: Any, adapters: Mapping[str, Path], scales: Mapping[str, float] | None = None
) -> "PeftModel":
    """``model`` with every adapter loaded under its name, frozen, the first one active.

    ``adapters`` maps names (no dots) to folders in PEFT layout; ``model`` itself is changed (PEFT wraps in place).
    ``scales`` multiplies the effect of an adapter (1 where it names none; at 0 the base speaks).

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
            with _hushed():
                if wrapped is None:
                    wrapped = PeftModel(model, config, adapter_name=name)
                else:
                    wrapped.add_adapter(name, config)
        except ValueError as error:  # PEFT: no module of the model bears a name that the adapter targets
            raise UserError(
                str(folder), "none of its target modules is in the model", "fits another base"
            ) from error
        load_tensors(wrapped, name, Path(folder))
    assert wrapped is not None
    for module, layer in lora_layers(wrapped).items():
        _check_own_weights(wrapped, ", ".join(map(str, adapters.values())), module, layer.get_base_layer())
    for name, scale in (scales or {}).items():
        for layer in lora_layers(wrapped).values():
            layer.set_scale(name, scale)
    wrapped.requires_grad_(False)
    return wrapped.eval()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without PEFT's warnings of an attribute that transformers renamed, and of several merges into one layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Already following adapters were merged")
        yield


def lora_layers(wrapped: Any) -> dict[str, Any]:
    """The layers of ``wrapped`` that bear adapters, by module name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}


def load_tensors(wrapped: "PeftModel", name: str, folder: Path) -> None:
    """Fills adapter ``name`` of ``wrapped`` with the tensors in ``folder``.

    Raises:
        UserError: a tensor is missing, has no place in the model or has another shape.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / WEIGHTS
    tensors = read_tensors(folder)
    wanted = {
        k: v.shape
        for k, v in get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False).items()
    }
    found = {k: v.shape for k, v in tensors.items()}
    odd = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if odd:
        raise UserError(
            str(path),
            f"does not fit the model: {len(odd)} of {len(found)} tensors, first {odd[0]}"
            f" (model {_shape(wanted.get(odd[0]))}, file {_shape(found.get(odd[0]))})",
            "use the base model that it was trained on",
        )
    set_peft_model_state_dict(wrapped, tensors, adapter_name=name)


def read_tensors(folder: Path) -> "dict[str, torch.Tensor]":
    """The tensors of an adapter folder, by the names that they have in our models.

    Raises:
        UserError: they cannot be read.
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
    return {re.sub(f"^{re.escape(INSIDE)}", ALONE, key): tensor for key, tensor in tensors.items()}


def name_on_disk(key: str, base: Any) -> str:
    """What a tensor that is called ``key`` in our models is called in the files of an adapter of ``base``."""
    from offscript.models.loading import is_nested

    return re.sub(f"^{re.escape(ALONE)}", INSIDE, key) if is_nested(base) else key


def _shape(shape: Sequence[int] | None) -> str:
    return "nothing" if shape is None else "x".join(map(str, shape))


def _read_config(folder: Path) -> Any:
    from peft import PeftConfig

    if not folder.is_dir():
        raise MissingInput(str(folder), "this adapter does not exist", "make it with train.py")
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        raise UserError(str(folder), "is not an adapter", f"{CONFIG} and {WEIGHTS} are needed")
    read_json(folder / CONFIG)  # a broken file is the user's to mend: one line
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    return config


# ---------------------------------------------------------------- proving that an adapter does something


def self_test(wrapped: Any, name: str, input_ids: "torch.Tensor") -> float:
    """Largest absolute difference between the logits with adapter ``name`` alone, at scale 1, and those of the base.

    ``input_ids`` is (rows, tokens) on any device. Which adapters are active, at which scale, and what may be trained,
    is afterwards as it was.

    Raises:
        NotFinite: logits with the adapter are not finite numbers.
        UserError: the difference is 0 (an adapter that silently does nothing).
    """
    import torch

    input_ids = input_ids.to(next(wrapped.parameters()).device)
    active, training = list(wrapped.base_model.active_adapters), wrapped.training
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    layers = [layer for layer in lora_layers(wrapped).values() if name in layer.scaling]
    scalings = [layer.scaling[name] for layer in layers]
    wrapped.eval()
    try:
        for layer in layers:
            layer.set_scale(name, 1.0)
        with torch.no_grad():
            wrapped.base_model.set_adapter([name])
            with_adapter = wrapped(input_ids=input_ids).logits.float()
            with wrapped.disable_adapter():
                base = wrapped(input_ids=input_ids).logits.float()
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling[name] = scaling
        wrapped.base_model.set_adapter(active)
        wrapped.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        wrapped.train(training)
    difference = (with_adapter - base).abs().max().item()
    if not math.isfinite(difference):
        raise NotFinite(f"adapter {name}", "outputs with it are not finite numbers", "make it again")
    if difference == 0:
        raise UserError(
            f"adapter {name}", "its outputs differ from the base's by 0", "it must change something"
        )
    return difference


# ---------------------------------------------------------------- writing and merging


def save(wrapped: "PeftModel", name: str, folder: Path, base: str, revision: str | None = None) -> None:
    """Writes adapter ``name`` into ``folder`` in PEFT layout: the same bytes for the same tensors.

    ``base`` is the model as the user names it, never where it lies on this machine.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # save_embedding_layers="auto" would ask the hub for the base's config
    tensors = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    base_model = wrapped.get_base_model()
    tensors = {name_on_disk(k, base_model): tensors[k].detach().cpu().contiguous() for k in sorted(tensors)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_config(wrapped.peft_config[name], folder, base, revision)


def write_config(config: Any, folder: Path, base: str, revision: str | None = None) -> None:
    """Writes a PEFT config into ``folder``: the same bytes for the same settings."""
    config.save_pretrained(str(folder))
    plain = read_json(folder / CONFIG)
    plain.update(base_model_name_or_path=base, revision=revision, inference_mode=True)
    for key, value in plain.items():
        if isinstance(value, list):  # PEFT keeps target_modules as a set, whose order changes from run to run
            plain[key] = sorted(value)
    write_json(folder / CONFIG, plain)


def merge(
    model: ModelSettings, parts: Sequence[tuple[Path, float]], out: Path, method: str = "exact"
) -> dict[str, Any]:
    """What ``parts`` (adapter folder, weight) are together, in ``out``.

    ``exact``: one adapter that lays the parts side by side (PEFT's ``cat``; the ranks add up), so there are no cross
    terms. ``published``: one adapter of the parts' rank whose A and B are the parts' added separately (PEFT's
    ``linear``), as the released adapters were made. ``fold``: a whole checkpoint, each delta in turn added to the base
    weights and rounded to their type, as the published evaluation did.

    The error is measured: per module, |made - wanted delta| / |wanted delta| in Frobenius norms, in float64. Of adapters
    it is that of the files that were read and written.

    Returns: ``{"method", "parts": [{"adapter", "weight"}], "modules", "max_relative_error", "worst_module"}`` and, of an
    adapter, ``"rank"``.

    Raises:
        MissingInput, UserError: a part is missing or does not fit the base, or ``published`` with unequal ranks.
        MergeFailed: ``exact``, and the error of a module is above 1e-5.
    """
    with new_folder(out) as scratch:
        errors = _fold(model, parts, scratch) if method == "fold" else _combine(model, parts, scratch, method)
        worst = max(errors, key=lambda module: errors[module])
        if method == "exact" and not errors[worst] <= EXACT:
            raise MergeFailed(
                f"{out}: merged delta is off by {errors[worst]:.2e} at {worst}; at most {EXACT:g}"
            )
    return {
        "method": method,
        "parts": [{"adapter": Path(folder).name, "weight": weight} for folder, weight in parts],
        "modules": len(errors),
        "max_relative_error": errors[worst],
        "worst_module": worst,
        **({} if method == "fold" else {"rank": read_json(out / CONFIG)["r"]}),
    }


def _combine(
    model: ModelSettings, parts: Sequence[tuple[Path, float]], folder: Path, method: str
) -> dict[str, float]:
    """One adapter of ``parts`` in ``folder``, and its error per module. No base weights are read: PEFT would make the
    adapter in their type, and lose with 16 bits what ``exact`` promises."""
    from offscript.models.loading import load_without_weights

    kinds = {"exact": "cat", "published": "linear"}
    names = [f"part{i}" for i in range(len(parts))]
    wrapped = attach(
        load_without_weights(model), {n: Path(part) for n, (part, _) in zip(names, parts, strict=True)}
    )
    ranks = [read_json(Path(part) / CONFIG)["r"] for part, _ in parts]
    if method == "published" and len(set(ranks)) > 1:
        raise UserError(
            "recipe.merge.method",
            f"published adds matrices of one rank, found ranks {', '.join(map(str, ranks))}",
            "use one lora.rank for both stages, or method=exact",
        )
    weights = [weight for _, weight in parts]
    with _hushed():
        wrapped.add_weighted_adapter(names, weights, adapter_name="merged", combination_type=kinds[method])
    save(wrapped, "merged", folder, model.path, model.revision)
    return relative_errors(parts, folder)


def _fold(model: ModelSettings, parts: Sequence[tuple[Path, float]], folder: Path) -> dict[str, float]:
    """A whole checkpoint with ``parts`` folded in, with its tokenizer, and its error per module."""
    from offscript.models.loading import load_model, load_tokenizer

    names = [f"part{i}" for i in range(len(parts))]
    wrapped = attach(
        load_model(model, "cpu"), {n: Path(part) for n, (part, _) in zip(names, parts, strict=True)}
    )
    factors = [(weight, _factors(Path(part))) for part, weight in parts]
    errors = {}
    for module, layer in lora_layers(wrapped).items():
        before = layer.get_base_layer().weight.data.double()
        for name, (_, weight) in zip(names, parts, strict=True):
            layer.set_scale(name, weight)
            with _hushed():
                layer.merge(adapter_names=[name])
        wanted = sum(weight * f[module][1] @ f[module][0] for weight, f in factors if module in f)
        got = layer.get_base_layer().weight.data.double() - before
        size = wanted.norm().item()
        errors[module] = (got - wanted).norm().item() / size if size else float(got.norm() > 0)
    wrapped.unload().save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return errors


def relative_errors(parts: Sequence[tuple[Path, float]], merged: Path) -> dict[str, float]:
    """Per module, |merged delta - weighted sum of the parts' deltas| / |weighted sum|, Frobenius norms in float64.

    Norms are taken from Gram matrices (|B A|^2 = tr(B'B AA')), so no delta is built. What cancels in them leaves a
    floor of about 1e-8.
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


def _norm(terms: list[tuple[float, Any, Any]]) -> float:
    """|sum of w B A| for terms (w, A, B) with A (rank, in) and B (out, rank)."""
    import torch

    if not terms:
        return 0.0
    a = torch.cat([a for _, a, _ in terms])
    b = torch.cat([weight * b for weight, _, b in terms], dim=1)
    return max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0) ** 0.5


def _factors(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Per module (A, B scaled by alpha / rank) of an adapter folder, in float64."""
    config = read_json(folder / CONFIG)
    pairs: dict[str, dict[str, Any]] = {}
    for key, tensor in read_tensors(folder).items():
        if match := A_OR_B.fullmatch(key):
            pairs.setdefault(match[1], {})[match[2]] = tensor.double()
    return {
        module: (p["A"], p["B"] * _scaling(config, module, p["A"].shape[0])) for module, p in pairs.items()
    }


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    patterns = config["alpha_pattern"]
    alpha = patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
