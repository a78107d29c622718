"""Weights that were made elsewhere, laid out as our own, so that everything after this is one code path."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import UserError
from offscript.models.adapters import CONFIG, WEIGHTS, name_on_disk, write_config
from offscript.models.pretrained import require_safetensors
from offscript.settings import ModelSettings
from offscript.storage import hub, references
from offscript.storage.files import link_or_copy, new_folder, read_json

if TYPE_CHECKING:
    from torch import Tensor

# Names under which one and the same layer is found, depending on what it was wrapped in when it was saved.
WRAPPERS = {"base_model", "model", "language_model", "text_model"}
# What stands beside the language model in a vision-language model, and is not loaded.
OTHER_TOWERS = {"vision_tower", "vision_model", "visual", "multi_modal_projector", "audio_tower"}
MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")
# Ways of starting LoRA that leave the base weights as they are. Others (PiSSA, OLoRA, CorDA, LoftQ) move a part of them
# into the adapter, which then means nothing on the plain base.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Settings of PEFT under which an adapter is more than pairs of matrices beside linear layers.
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


@dataclass(frozen=True)
class _Pair:
    """The A (rank, inputs) and B (outputs, rank) of one module: their keys in the file, what the file calls the module,
    and their rank and scaling alpha."""

    a: str
    b: str
    path: str
    rank: int
    alpha: float


def import_adapter(model: ModelSettings, folder: Path, out: Path) -> dict[str, Any]:
    """The LoRA adapter in ``folder`` (PEFT layout, as published), written into ``out`` as our own are.

    Tensors get the names that ours have, whatever they were wrapped in. Left aside are
    matrices of a vision tower whose B is zero, and listed targets of which there is nothing. The weights are linked
    where nothing has to change.

    Returns: ``{"ignored": {"vision_tower": tensors, "targets": [...]}, "renamed": tensors, "modules", "rank", "dtype",
    "note": text or None}``; the note says that the adapter names another base than ``model`` or its aliases.

    Raises:
        UserError: no adapter, one that is more than LoRA matrices, or one that does not fit ``model``. All of that is
            seen in its files and in the base's configuration; the base's weights are not read.
    """
    from safetensors.torch import save_file

    from offscript.models.loading import load_without_weights

    folder = Path(folder)
    config, tensors = _read_config(folder), _read_weights(folder)
    base = load_without_weights(model)
    modules = linear_modules(base)
    beside = _beside(folder, tensors)
    pairs = _pairs(folder, config, {k: t for k, t in tensors.items() if k not in beside}, modules)
    _check_complete(folder, config, pairs, modules)
    names = {
        getattr(p, m): name_on_disk(f"base_model.model.{n}.lora_{m.upper()}.weight", base)
        for n, p in pairs.items()
        for m in "ab"
    }
    renamed = sum(key != name for key, name in names.items())
    ours = _config(pairs, modules)
    with new_folder(out) as scratch:
        if renamed or beside:
            kept = {names[key]: tensors[key].contiguous() for key in sorted(names, key=names.__getitem__)}
            save_file(kept, scratch / WEIGHTS, metadata={"format": "pt"})
        else:
            link_or_copy(folder / WEIGHTS, scratch / WEIGHTS)
        write_config(ours, scratch, model.path, model.revision)
    return {
        "ignored": {"vision_tower": len(beside), "targets": _idle(config, tensors)},
        "renamed": renamed,
        "modules": len(pairs),
        "rank": ours.r,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        "note": _note(config, model),
    }


def import_checkpoint(model: ModelSettings, folder: Path, out: Path) -> dict[str, Any]:
    """The whole fine-tuned checkpoint in ``folder`` (Hugging Face layout), linked into ``out``; with the tokenizer of
    ``model`` where it brings none that has a chat template.

    Returns: ``{"ignored": {"files": [...]}, "files": number of those that were taken, "tokenizer": whose}``.

    Raises:
        UserError: no checkpoint, pickled weights only, or one of another architecture than ``model``.
    """
    from offscript.models.loading import load_tokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        todo = "it is an adapter: kind=adapter" if (folder / CONFIG).exists() else "config.json is needed"
        raise UserError(str(folder), "is not a whole checkpoint", todo)
    _check_architecture(folder, model)
    own = _speaks(folder)
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    taken = [p for p in files if _needed(p) and (own or "token" not in p.name)]
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


# ---------------------------------------------------------------- adapters: what is in the files


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        whole = (folder / "config.json").exists()
        todo = "it is a whole checkpoint: kind=checkpoint" if whole else f"{CONFIG} is needed"
        raise UserError(str(folder), "is not an adapter", todo)
    config = read_json(folder / CONFIG)
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
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        found = f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base weights"
        raise UserError(
            where, found, "convert it to plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
        )
    if not all(isinstance(config.get(key), int) and config[key] > 0 for key in ("r", "lora_alpha")):
        found = f"r {config.get('r')!r} and lora_alpha {config.get('lora_alpha')!r}"
        raise UserError(where, found, "allowed: whole numbers above 0")
    return config


def _read_weights(folder: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_safetensors(folder, name=Path(WEIGHTS).stem)
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "fetch it again") from None
    odd = [key for key in tensors if not MATRIX.fullmatch(key)]
    if odd or not tensors:
        found = (
            f"{len(odd)} tensors are no LoRA matrices of a linear layer, first {odd[0]}" if odd else "empty"
        )
        raise UserError(str(path), found, "allowed: ....lora_A.weight and ....lora_B.weight")
    return tensors


def _bare(path: str) -> str:
    """A module's name without what it is wrapped in: layers.0.self_attn.q_proj."""
    parts = path.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def _beside(folder: Path, tensors: "Mapping[str, Tensor]") -> list[str]:
    """Keys of matrices beside the language model.

    Raises:
        UserError: one of them does something.
    """
    beside = [key for key in tensors if _bare(key).split(".")[0] in OTHER_TOWERS]
    trained = [key for key in beside if MATRIX.fullmatch(key)[2] == "B" and tensors[key].any()]  # type: ignore[index]
    if trained:
        raise UserError(
            str(folder / WEIGHTS),
            f"{len(trained)} matrices beside the language model are trained, first {trained[0]}",
            "only language models are loaded here: take an adapter of the language model alone",
        )
    return beside


def _pairs(
    folder: Path,
    config: Mapping[str, Any],
    tensors: "Mapping[str, Tensor]",
    modules: Mapping[str, tuple[int, int]],
) -> dict[str, _Pair]:
    """The pairs in the file, by the name that the base has for their module.

    Raises:
        UserError: a module that the base lacks or that is named twice, an A without its B, another shape.
    """
    named = {_bare(name): name for name in modules}
    found: dict[str, dict[str, str]] = {}
    for key in sorted(tensors):
        match = MATRIX.fullmatch(key)
        assert match is not None
        name = named.get(_bare(match[1]), "")
        if not name or match[2] in found.setdefault(name, {}):
            reason = "stands in it twice" if name else "is no linear module of the base"
            raise _misfit(folder, config, f"{match[1]} {reason}")
        found[name][match[2]] = key
    pairs = {}
    for name, keys in found.items():
        if len(keys) < 2:
            raise _misfit(folder, config, f"{next(iter(keys.values()))} has no counterpart")
        a, b = (tuple(tensors[keys[m]].shape) for m in "AB")
        if (b[0], a[1]) != modules[name] or a[0] != b[1]:
            shape = "x".join(map(str, modules[name]))
            raise _misfit(folder, config, f"B {b} and A {a} for {name}, which is {shape}")
        path = MATRIX.fullmatch(keys["A"])[1].removeprefix("base_model.model.")  # type: ignore[index]
        pairs[name] = _Pair(keys["A"], keys["B"], path, a[0], _alpha(folder, config, path, a[0]))
    if not pairs:
        raise _misfit(folder, config, "nothing in it is the language model's")
    return pairs


def _misfit(folder: Path, config: Mapping[str, Any], found: str) -> UserError:
    base = config.get("base_model_name_or_path")
    return UserError(
        str(folder / WEIGHTS), f"does not fit the model: {found}", f"it says that it was trained on {base!r}"
    )


def _alpha(folder: Path, config: Mapping[str, Any], path: str, rank: int) -> float:
    """Alpha of plain LoRA (scaling alpha / rank) for the module that the file calls ``path``."""
    from peft.utils.other import get_pattern_key

    def said(patterns: str, default: str) -> Any:
        choices = config.get(patterns) or {}
        return choices.get(get_pattern_key(list(choices), path), config[default])

    if said("rank_pattern", "r") != rank:
        raise UserError(str(folder / CONFIG), f"rank {said('rank_pattern', 'r')} for {path}", f"found {rank}")
    alpha = said("alpha_pattern", "lora_alpha")
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _check_complete(
    folder: Path, config: Mapping[str, Any], pairs: Mapping[str, _Pair], modules: Mapping[str, Any]
) -> None:
    """Checks that no module of a listed target is without its pair: PEFT would let it do nothing, without a word."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return
    lacking = [n for n in modules if n not in pairs and any(n == t or n.endswith(f".{t}") for t in targets)]
    if lacking:
        raise _misfit(folder, config, f"nothing for {len(lacking)} of its target modules, first {lacking[0]}")


def _config(pairs: Mapping[str, _Pair], modules: Mapping[str, Any]) -> Any:
    """A PEFT config that names exactly the modules of ``pairs``, by their last names where that is enough."""
    from peft import LoraConfig

    bare = {_bare(name): pair for name, pair in sorted(pairs.items())}  # true inside a larger model too
    ends = {name.rpartition(".")[2] for name in pairs}
    covered = {name for name in modules if name.rpartition(".")[2] in ends}
    rank = Counter(p.rank for p in pairs.values()).most_common(1)[0][0]
    alpha = Counter(p.alpha for p in pairs.values()).most_common(1)[0][0]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # need not be whole: rank-stabilized LoRA is written as plain
        rank_pattern={re.escape(n): p.rank for n, p in bare.items() if p.rank != rank},
        alpha_pattern={re.escape(n): p.alpha for n, p in bare.items() if p.alpha != alpha},
        target_modules=sorted(ends if covered == set(pairs) else bare),
        task_type="CAUSAL_LM",
    )


def _idle(config: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Listed targets of which nothing is in the file."""
    targets = config.get("target_modules")
    paths = [match[1] for key in tensors if (match := MATRIX.fullmatch(key))]
    listed = targets if isinstance(targets, list) else []
    return sorted(t for t in listed if not any(p == t or p.endswith(f".{t}") for p in paths))


def _note(config: Mapping[str, Any], model: ModelSettings) -> str | None:
    base = config.get("base_model_name_or_path")
    return None if base in (model.path, *model.aliases) else f"names {base!r} as its base, not {model.path!r}"


# ---------------------------------------------------------------- checkpoints: what is in the files


def _check_architecture(folder: Path, model: ModelSettings) -> None:
    """Compares the configurations of checkpoint and base, where the base is at hand."""
    from offscript.models.loading import load_config

    ref = references.of_model(model)
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


def _speaks(folder: Path) -> bool:
    """Whether there is a tokenizer with a chat template."""
    if not (folder / "tokenizer.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        return False
    apart = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    return apart or bool(read_json(folder / "tokenizer_config.json").get("chat_template"))


def _needed(path: Path) -> bool:
    return any(path.match(n) for n in hub.NEEDED) and not any(path.match(n) for n in hub.UNWANTED)


# ---------------------------------------------------------------- the base, and files


def linear_modules(base: Any) -> dict[str, tuple[int, int]]:
    """Names of the linear modules of ``base`` and their (outputs, inputs)."""
    import torch

    return {
        name: (module.out_features, module.in_features)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
