"""Import of published adapters and checkpoints into the layout of our own, which all other code reads."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from offscript.errors import UserError
from offscript.models.adapter_config import CONFIG, WEIGHTS, AdapterConfig, parse_config
from offscript.models.adapters import name_in_file, write_config
from offscript.models.pretrained import require_safetensors
from offscript.settings import ModelSettings
from offscript.storage import hub, references
from offscript.storage.files import link_or_copy, new_folder, read_json

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from torch.nn import Module

# Names of modules that may contain the language model; which of them occur depends on the program that saved the file.
WRAPPERS = {"base_model", "model", "language_model", "text_model"}
# Modules beside the language model of a vision-language model. They are not loaded.
OTHER_TOWERS = {"vision_tower", "vision_model", "visual", "multi_modal_projector", "audio_tower"}
LORA_MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")
# Initializations of LoRA that do not change the base weights. Others (PiSSA, OLoRA, CorDA, LoftQ) move a part of the base
# weights into the adapter, which is then wrong for the original base.
PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
# Settings of PEFT with which an adapter is more than pairs of matrices beside linear layers.
UNSUPPORTED = {
    "lora_bias": "it has biases",
    "modules_to_save": "it brings whole modules",
    "target_parameters": "it changes parameters that are no linear layer's",
    "trainable_token_indices": "it changes token embeddings",
    "layer_replication": "it repeats layers",
    "alora_invocation_tokens": "it is only active after certain tokens",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it changes the base weights",
    "monteclora_config": "it is drawn at random",
}


class ImportReport(TypedDict):
    """What was imported, and what was not: ``ignored`` holds the number of vision tower tensors, and the targets and
    patterns without tensors (of an adapter), or the files (of a checkpoint). ``note`` says that an adapter names another
    base model."""

    ignored: dict[str, int | list[str]]
    renamed: NotRequired[int]
    modules: NotRequired[int]
    rank: NotRequired[int]
    dtype: NotRequired[str]
    note: NotRequired[str | None]
    files: NotRequired[int]
    tokenizer: NotRequired[str]


@dataclass(frozen=True)
class _Pair:
    """The matrices A (rank, inputs) and B (outputs, rank) of one module: their keys in the file, the module's name in the
    file, their rank and their alpha (scaling = alpha / rank)."""

    a: str
    b: str
    path: str
    rank: int
    alpha: float


def import_adapter(model: ModelSettings, folder: Path, out: Path) -> ImportReport:
    """Writes the LoRA adapter in ``folder`` (PEFT layout, as published) into ``out``, as our own adapters are written.

    Tensors get the names that ours have. Vision tower matrices whose B is zero, listed targets without tensors, and rank
    and alpha patterns that match no tensor are dropped. Weights that need no change are linked.

    Raises:
        UserError: not an adapter, one that is more than LoRA matrices or changes nothing, or one that does not fit
            ``model``. Its files and the base's configuration decide this; the base's weights are not read.
    """
    from safetensors.torch import save_file

    from offscript.models.loading import load_without_weights

    folder = Path(folder)
    config, tensors = read_plain_config(folder), _read_weights(folder)
    base = load_without_weights(model)
    modules = linear_modules(base)
    dropped = _other_tower_keys(folder, tensors)
    pairs = _pairs(folder, config, {k: t for k, t in tensors.items() if k not in dropped}, modules)
    _check_targets(folder, config, pairs, modules)
    _check_values(folder, tensors)
    names = {
        getattr(p, m): name_in_file(f"base_model.model.{n}.lora_{m.upper()}.weight", base)
        for n, p in pairs.items()
        for m in "ab"
    }
    renamed = sum(key != name for key, name in names.items())
    ours = _config(pairs, modules)
    with new_folder(out) as scratch:
        if renamed or dropped:
            kept = {names[key]: tensors[key].contiguous() for key in sorted(names, key=names.__getitem__)}
            save_file(kept, scratch / WEIGHTS, metadata={"format": "pt"})
        else:
            link_or_copy(folder / WEIGHTS, scratch / WEIGHTS)
        write_config(ours, scratch, model.path, model.revision)
    return {
        "ignored": {
            "vision_tower": len(dropped),
            "targets": _unused_targets(config, tensors),
            "patterns": _unused_patterns(config, pairs),
        },
        "renamed": renamed,
        "modules": len(pairs),
        "rank": ours.r,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        "note": _note(config, model),
    }


def import_checkpoint(model: ModelSettings, folder: Path, out: Path) -> ImportReport:
    """Links the fine-tuned checkpoint in ``folder`` (Hugging Face layout) into ``out``. A checkpoint without a tokenizer
    that has a chat template gets the tokenizer of ``model``.

    Raises:
        UserError: not a checkpoint, pickled weights only, or another architecture than that of ``model``.
    """
    from offscript.models.loading import load_tokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        todo = "it is an adapter: kind=adapter" if (folder / CONFIG).exists() else "config.json is needed"
        raise UserError(str(folder), "is not a whole checkpoint", todo)
    _check_architecture(folder, model)
    own = _has_chat_template(folder)
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    taken = [p for p in files if _is_needed(p) and (own or "token" not in p.name)]
    require_safetensors(folder)
    with new_folder(out) as scratch:
        for path in taken:
            link_or_copy(path, scratch / path.name)
        if not own:
            load_tokenizer(model).save_pretrained(scratch)
    return {
        "ignored": {"files": [p.name for p in files if p not in taken]},
        "files": len(taken),
        "tokenizer": "its own" if own else f"that of {model.path}",
    }


# ---------------------------------------------------------------- files of an adapter


def read_plain_config(folder: Path) -> AdapterConfig:
    """The adapter_config.json in ``folder``, of an adapter that consists of LoRA matrices alone.

    Raises:
        UserError: there is none, it is not JSON, or it names something else that the adapter consists of.
    """
    if not (folder / CONFIG).is_file():
        whole = (folder / "config.json").exists()
        todo = "it is a whole checkpoint: kind=checkpoint" if whole else f"{CONFIG} is needed"
        raise UserError(str(folder), "is not an adapter", todo)
    config: dict[str, Any] = read_json(folder / CONFIG, "download it again, or save it again with PEFT")
    where = str(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise UserError(where, f"peft_type is {found!r}", "allowed: LORA")
    variants = {
        key: "it is a variant of LoRA" for key in config if key.startswith("use_") and key != "use_rslora"
    }
    for key, reason in (UNSUPPORTED | variants).items():
        if config.get(key):
            raise UserError(where, f"{key} is {config[key]!r}: {reason}", "allowed: plain LoRA")
    if config.get("bias", "none") != "none":
        raise UserError(where, f"bias is {config['bias']!r}", "allowed: none")
    if config.get("init_lora_weights", True) not in PLAIN_INITIALIZATIONS:
        found = f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base weights"
        raise UserError(
            where, found, "convert it to plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
        )
    return parse_config(config, folder)


def _read_weights(folder: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_safetensors(folder, name=Path(WEIGHTS).stem)
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "download it again") from None
    odd = [
        key
        for key, tensor in tensors.items()
        if not LORA_MATRIX.fullmatch(key) or tensor.ndim != 2 or not tensor.is_floating_point()
    ]
    if odd or not tensors:
        first = f"{odd[0]} ({tensors[odd[0]].dtype}, {list(tensors[odd[0]].shape)})" if odd else ""
        found = (
            f"{len(odd)} tensors are not LoRA matrices of a linear layer, first {first}" if odd else "empty"
        )
        raise UserError(
            str(path), found, "allowed: floating-point matrices ....lora_A.weight and ....lora_B.weight"
        )
    return tensors


def _check_values(folder: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Checks that all values are finite, and that not every matrix B is zero: rollouts refuse an adapter without effect."""
    path = str(folder / WEIGHTS)
    # torch cannot test 8-bit floats.
    odd = [key for key, tensor in sorted(tensors.items()) if not tensor.float().isfinite().all()]
    if odd:
        found = f"{len(odd)} of {len(tensors)} tensors hold NaN or infinite values, first {odd[0]}"
        raise UserError(path, found, "an adapter with finite values is needed")
    if not any(tensor.float().any() for key, tensor in tensors.items() if _split(key)[1] == "B"):
        found = "every matrix B is zero, so the adapter changes nothing"
        raise UserError(path, found, "a trained adapter is needed")


def _unwrapped(path: str) -> str:
    """A module's name without the modules that contain the language model, e.g. layers.0.self_attn.q_proj."""
    parts = path.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def _other_tower_keys(folder: Path, tensors: "Mapping[str, Tensor]") -> list[str]:
    """Keys of the matrices beside the language model.

    Raises:
        UserError: one of them has an effect.
    """
    keys = [key for key in tensors if _unwrapped(key).split(".")[0] in OTHER_TOWERS]
    trained = [key for key in keys if _split(key)[1] == "B" and tensors[key].any()]
    if trained:
        raise UserError(
            str(folder / WEIGHTS),
            f"{len(trained)} matrices beside the language model are trained, first {trained[0]}",
            "only language models are loaded here: use an adapter of the language model alone",
        )
    return keys


def _split(key: str) -> tuple[str, str]:
    """The module's name in the file and ``A`` or ``B``, from the key of a LoRA matrix."""
    match = LORA_MATRIX.fullmatch(key)
    assert match is not None, key
    return match[1], match[2]


def _pairs(
    folder: Path,
    config: AdapterConfig,
    tensors: "Mapping[str, Tensor]",
    modules: Mapping[str, tuple[int, int]],
) -> dict[str, _Pair]:
    """The pairs in the file, by the base's names of their modules.

    Raises:
        UserError: a module that the base lacks or that occurs twice, an A without its B, or another shape.
    """
    names = {_unwrapped(name): name for name in modules}
    found: dict[str, dict[str, str]] = {}
    for key in sorted(tensors):
        path, matrix = _split(key)
        name = names.get(_unwrapped(path), "")
        if not name or matrix in found.setdefault(name, {}):
            reason = "occurs in it twice" if name else "is not a linear module of the base"
            raise _misfit(folder, config, f"{path} {reason}")
        found[name][matrix] = key
    pairs = {}
    for name, keys in found.items():
        if len(keys) < 2:
            raise _misfit(folder, config, f"{next(iter(keys.values()))} has no counterpart")
        a, b = (tuple(tensors[keys[m]].shape) for m in "AB")
        if (b[0], a[1]) != modules[name] or a[0] != b[1]:
            shape = "x".join(map(str, modules[name]))
            raise _misfit(folder, config, f"B {b} and A {a} for {name}, which is {shape}")
        path = _split(keys["A"])[0].removeprefix("base_model.model.")
        pairs[name] = _Pair(keys["A"], keys["B"], path, a[0], _alpha(folder, config, (path, name), a[0]))
    if not pairs:
        raise _misfit(folder, config, "nothing in it is for the language model")
    return pairs


def _misfit(folder: Path, config: AdapterConfig, found: str) -> UserError:
    base = config.base_model_name_or_path
    return UserError(
        str(folder / WEIGHTS), f"does not fit the model: {found}", f"it says that it was trained on {base!r}"
    )


def _alpha(folder: Path, config: AdapterConfig, names: tuple[str, str], rank: int) -> float:
    """Alpha of plain LoRA (scaling = alpha / rank) of the module with these ``names`` in the file and in the base."""
    expected = _by_pattern(config.rank_pattern, names, config.r)
    if expected != rank:
        found = f"rank {expected} for {names[0]}, but its matrices have rank {rank}"
        raise UserError(str(folder / CONFIG), found, "the config that was saved with them is needed")
    alpha = _by_pattern(config.alpha_pattern, names, config.lora_alpha)
    return alpha * rank**0.5 if config.use_rslora else alpha


def _by_pattern(patterns: Mapping[str, float], names: Iterable[str], default: float) -> float:
    """The value of the first pattern that matches one of a module's names, by PEFT's rule."""
    from peft.utils.other import get_pattern_key

    keys = [get_pattern_key(list(patterns), name) for name in names]
    return next((patterns[key] for key in keys if key in patterns), default)


def _check_targets(
    folder: Path,
    config: AdapterConfig,
    pairs: Mapping[str, _Pair],
    modules: Mapping[str, tuple[int, int]],
) -> None:
    """Checks that the file has pairs for exactly the modules that the config names. PEFT would leave out other pairs, and
    leave a module without a pair as it is, and raise no error."""
    extra = [p.path for n, p in pairs.items() if not _is_target(config, p.path) and not _is_target(config, n)]
    if extra:
        raise _misfit(folder, config, f"{len(extra)} modules that its config does not name, first {extra[0]}")
    name, pair = next(iter(pairs.items()))
    # Of the modules that contain the language model in the file: its config may name them.
    prefix = pair.path.removesuffix(_unwrapped(name))
    lacking = [n for n in modules if n not in pairs and _is_target(config, prefix + _unwrapped(n))]
    if lacking:
        raise _misfit(folder, config, f"nothing for {len(lacking)} of its target modules, first {lacking[0]}")


def _is_target(config: AdapterConfig, path: str) -> bool:
    """Whether ``config`` names the linear module ``path``, by PEFT's rule."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules == "all-linear":
        # PEFT leaves out the output layer.
        return path.rpartition(".")[2] != "lm_head"
    return bool(check_target_module_exists(config, path))


def _config(pairs: Mapping[str, _Pair], modules: Mapping[str, tuple[int, int]]) -> "LoraConfig":
    """A PEFT config with exactly the modules of ``pairs`` as targets, by the last part of their names if that suffices."""
    from peft import LoraConfig

    # These names also match inside a vision-language model.
    unwrapped = {_unwrapped(name): pair for name, pair in sorted(pairs.items())}
    ends = {name.rpartition(".")[2] for name in pairs}
    covered = {name for name in modules if name.rpartition(".")[2] in ends}
    rank = Counter(p.rank for p in pairs.values()).most_common(1)[0][0]
    alpha = Counter(p.alpha for p in pairs.values()).most_common(1)[0][0]
    return LoraConfig(
        r=rank,
        # Not an integer for rank-stabilized LoRA, which is written as plain LoRA.
        lora_alpha=alpha,  # type: ignore[arg-type]
        rank_pattern={re.escape(n): p.rank for n, p in unwrapped.items() if p.rank != rank},
        alpha_pattern={re.escape(n): p.alpha for n, p in unwrapped.items() if p.alpha != alpha},
        target_modules=sorted(ends if covered == set(pairs) else unwrapped),
        task_type="CAUSAL_LM",
    )


def _unused_targets(config: AdapterConfig, tensors: Iterable[str]) -> list[str]:
    """Listed targets without a tensor in the file."""
    targets = config.target_modules
    paths = [_split(key)[0] for key in tensors]
    listed = targets if isinstance(targets, list) else []
    return sorted(t for t in listed if not any(p == t or p.endswith(f".{t}") for p in paths))


def _unused_patterns(config: AdapterConfig, pairs: Mapping[str, _Pair]) -> list[str]:
    """Keys of the rank and alpha patterns that match no module of the file."""
    from peft.utils.other import get_pattern_key

    names = [name for base_name, pair in pairs.items() for name in (pair.path, base_name)]
    keys = {*config.rank_pattern, *config.alpha_pattern}
    return sorted(key for key in keys if not any(get_pattern_key([key], n) == key for n in names))


def _note(config: AdapterConfig, model: ModelSettings) -> str | None:
    base = config.base_model_name_or_path
    return None if base in (model.path, *model.aliases) else f"names {base!r} as its base, not {model.path!r}"


# ---------------------------------------------------------------- files of a checkpoint


def _check_architecture(folder: Path, model: ModelSettings) -> None:
    """Compares the configurations of checkpoint and base, if the base is available without a network.

    Raises:
        UserError: they differ.
    """
    from offscript.models.loading import load_config

    ref = references.model_reference(model)
    if ref is not None and hub.cached(ref) is None:
        return
    found = load_config(model.model_copy(update={"path": str(folder.resolve()), "revision": None}))
    wanted = load_config(model)
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        if getattr(found, key) != getattr(wanted, key):
            raise UserError(
                str(folder / "config.json"),
                f"{key} is {getattr(found, key)}, that of {model.path} {getattr(wanted, key)}",
                "a fine-tuned checkpoint of that model is needed",
            )


def _has_chat_template(folder: Path) -> bool:
    """Whether ``folder`` holds a tokenizer with a chat template."""
    if not (folder / "tokenizer.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        return False
    separate = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    tokenizer = read_json(folder / "tokenizer_config.json", "save the tokenizer again")
    return separate or (isinstance(tokenizer, dict) and bool(tokenizer.get("chat_template")))


def _is_needed(path: Path) -> bool:
    return any(path.match(n) for n in hub.NEEDED) and not any(path.match(n) for n in hub.UNWANTED)


# ---------------------------------------------------------------- the base, and files


def linear_modules(base: "Module") -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear module of ``base``, by name."""
    import torch

    return {
        name: (module.out_features, module.in_features)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
