"""Folders of models and adapters in the form that vLLM loads. What has to be changed for it is copied, once, into the
user's cache folder, under a key of its content."""

from pathlib import Path
from typing import TYPE_CHECKING

from offscript.console import say
from offscript.models.adapter_config import CONFIG, WEIGHTS
from offscript.models.adapters import attach, read_tensors
from offscript.models.imported import read_plain_config
from offscript.models.loading import is_nested, load_model, load_without_weights, model_folder
from offscript.settings import ModelSettings
from offscript.storage.files import link_or_copy, new_folder, read_json, user_cache, write_json
from offscript.storage.hashing import fingerprint, key_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def served_model(model: ModelSettings) -> Path:
    """The folder of ``model``; of a vision-language repository, a folder with its language model alone. vLLM would load
    the whole, whose modules have other names than those in our adapters.

    Raises:
        UserError: no such folder or repository, not a model folder, or weights that cannot be loaded.
    """
    folder = model_folder(model)
    if not is_nested(load_without_weights(model)):
        return folder.absolute()
    key = key_of({"model": fingerprint(folder), "dtype": model.dtype, "part": "language model"})
    exported = user_cache() / "models" / key[:32]
    if not exported.is_dir():
        say(f"  {model.name}: writing its language model alone, once, into {exported}")
        with new_folder(exported, shared=True) as scratch:
            load_model(model, "cpu").save_pretrained(scratch)
    return exported


def served_adapter(model: ModelSettings, folder: Path, scale: float) -> Path:
    """The folder of an adapter, whose effect is multiplied by ``scale``: requests to vLLM have no scale.

    Raises:
        MissingInput, UserError: the folder holds no adapter, one that is more than LoRA matrices, or one that does not fit
            ``model``.
    """
    read_plain_config(folder)
    base: PreTrainedModel = load_without_weights(model)
    attach(base, {"checked": folder})
    if scale == 1 and not is_nested(base):
        return folder.absolute()
    parts = {"config": fingerprint(folder / CONFIG), "weights": fingerprint(folder / WEIGHTS)}
    copy = user_cache() / "adapters" / key_of({**parts, "scale": scale, "nested": is_nested(base)})[:32]
    if not copy.is_dir():
        with new_folder(copy, shared=True) as scratch:
            _write_scaled(folder, scale, scratch)
            _write_weights(folder, is_nested(base), scratch)
    return copy


def _write_scaled(folder: Path, scale: float, out: Path) -> None:
    config = read_json(folder / CONFIG)
    config["lora_alpha"] *= scale
    config["alpha_pattern"] = {k: alpha * scale for k, alpha in (config.get("alpha_pattern") or {}).items()}
    write_json(out / CONFIG, config)


def _write_weights(folder: Path, nested: bool, out: Path) -> None:
    from safetensors.torch import save_file

    if nested:
        # read_tensors gives them the names of a language model alone.
        save_file(read_tensors(folder), out / WEIGHTS, metadata={"format": "pt"})
    else:
        link_or_copy(folder / WEIGHTS, out / WEIGHTS)
