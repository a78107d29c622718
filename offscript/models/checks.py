"""What a model's folder must be like, checked before its weights are used: each fault is one line that names the file."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import UserError
from offscript.storage import hub
from offscript.storage.files import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONFIG, GENERATION = "config.json", "generation_config.json"
INDEX = "model.safetensors.index.json"
SAVED = "a folder made by save_pretrained is needed"
_OBJECTS = (CONFIG, GENERATION, "tokenizer_config.json", INDEX)
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
_FLOATS = ("F64", "F32", "F16", "BF16")
# The other parts of a vision-language or audio repository, of which only the language model is loaded.
_OTHER_PARTS = re.compile(
    r"(model\.)?(vision|visual|audio|multi_modal_projector|embed_vision|embed_audio)\w*\."
)


# ---------------------------------------------------------------- files


def check_settings_files(folder: Path) -> None:
    """Checks the JSON files of a model folder: objects, positive sizes, end tokens by id, weights that are not quantized.

    Raises:
        UserError: one of them cannot be used.
    """
    found = {
        name: read_json_object(folder / name, remedy=SAVED) for name in _OBJECTS if (folder / name).is_file()
    }
    config, generation = found.get(CONFIG, {}), found.get(GENERATION, {})
    where = str(folder / CONFIG)
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for name in _SIZES:
            if isinstance(size := part.get(name), int) and size < 1:
                raise UserError(where, f"{name} is {size}", "allowed: 1 or more")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UserError(
            where,
            f"its weights are quantized ({method})",
            "use the checkpoint in bfloat16, float16 or float32",
        )
    for name, values in ((CONFIG, config), (GENERATION, generation)):
        ends = values.get("eos_token_id")
        listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in listed):
            raise UserError(
                str(folder / name), f"eos_token_id is {json.dumps(ends)}", "allowed: token ids (integers)"
            )


def check_weight_files(folder: Path) -> None:
    """Checks the safetensors files of ``folder`` by their index and headers. No weights are read.

    Raises:
        UserError: the index names a file that is not in the folder, a file is damaged, or its weights are not floating
            point numbers of 16 bits or more.
    """
    for name in _indexed_files(folder):
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                str(folder / INDEX),
                f"names {name!r}",
                "allowed: files that stand beside it; copy all of them",
            )
    for path in sorted(folder.glob("*.safetensors")):
        if any(path.match(pattern) for pattern in hub.UNWANTED):
            continue
        for key, dtype in _dtypes(path):
            if key.endswith(".weight") and dtype not in _FLOATS:
                raise UserError(str(path), f"{key} is stored as {dtype}", f"allowed: {', '.join(_FLOATS)}")


def _indexed_files(folder: Path) -> list[str]:
    """Files that the index of sharded weights names; none for weights in one file, whose index is not used."""
    if (folder / "model.safetensors").is_file() or not (folder / INDEX).is_file():
        return []
    weight_map = read_json_object(folder / INDEX, remedy=SAVED).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(str(folder / INDEX), "weight_map does not map weights to file names", SAVED)
    return sorted(set(weight_map.values()))


def _dtypes(path: Path) -> Iterator[tuple[str, str]]:
    """Name and dtype of every tensor in ``path``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_slice(key).get_dtype()
    except (OSError, SafetensorError) as error:
        with open(path, "rb") as start:
            pointer = start.read(64).startswith(b"version https://git-lfs")
        if pointer:
            raise UserError(str(path), "is a Git LFS pointer, not the weights", "git lfs pull") from None
        raise UserError(str(path), f"cannot be loaded ({error})", "copy or download it again") from None


# ---------------------------------------------------------------- what was loaded


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", folder: Path) -> None:
    """Checks that the embedding of the model has a row for every token of ``tokenizer``. More rows are usual.

    Raises:
        UserError: a token has no row; a text with it would fail in the middle of a batch.
    """
    rows = getattr(config, "vocab_size", None)
    # The whole vocabulary (get_vocab) would take 0.1 s.
    last = max([len(tokenizer) - 1, *tokenizer.added_tokens_decoder])
    if isinstance(rows, int) and last >= rows:
        token = tokenizer.convert_ids_to_tokens(last)
        raise UserError(
            str(folder),
            f"its tokenizer has token {token!r} with id {last}, but the embedding has {rows} rows (config.json)",
            "resize the model's embeddings, or use the tokenizer that it was trained with",
        )


def check_round_trip(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Checks that ``tokenizer`` gives equal tokens for equal texts, and their text for tokens.

    Raises:
        UserError: it draws merges at random (BPE dropout), or a sentence comes back as another one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if dropout := getattr(getattr(backend, "model", None), "dropout", None):
        raise UserError(
            str(folder / "tokenizer.json"),
            f"its merges are dropped at random ({dropout:g})",
            "set dropout to null",
        )
    text = "Hello, how are you today?"
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    known = tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    if known and _letters(back) != _letters(text):
        raise UserError(
            str(folder / "tokenizer.json"), f"turns {text!r} into {back[:60]!r}", "copy or download it again"
        )


def _letters(text: str) -> str:
    """``text`` in lower case without spaces, which tokenizers may change."""
    return "".join(text.casefold().split())


def check_forward(model: "PreTrainedModel", folder: Path) -> None:
    """Checks that the model can compute finite outputs, by three tokens.

    Raises:
        UserError: it cannot; a value of config.json is wrong that is only used then.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        # Each rank has a part of the weights.
        return
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[0, 1, 2]], device=model.device)).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            str(folder / CONFIG), f"the model cannot compute ({type(error).__name__}: {reason})", SAVED
        ) from None
    if not logits.isfinite().all():
        raise UserError(str(folder), "the model's outputs are not finite numbers", SAVED)


def check_report(
    report: Mapping[str, Any], where: str, ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Checks that the weights of a folder are those of the model that its config.json describes. transformers would draw
    missing ones at random, and leave out those that the model has not.

    Args:
        report: the loading info of transformers' ``from_pretrained`` with ``ignore_mismatched_sizes``.
        where: folder or setting that the error names.
        ignored: whether a weight of this name may be missing, unused, or of another shape.

    Raises:
        UserError: weights are missing, of another shape, or not part of the model.
    """
    shapes = {
        name: f" ({_shape(stored)}, the model's is {_shape(wanted)})"
        for name, stored, wanted in report["mismatched_keys"]
    }
    for weights, fault in (
        (report["missing_keys"], "are missing"),
        (shapes, "have another shape"),
        (report["unexpected_keys"], "are not used by the model"),
        (report["error_msgs"], "cannot be loaded"),
    ):
        if names := sorted(name for name in weights if not ignored(name)):
            raise UserError(
                where,
                f"{len(names)} weights {fault}, e.g. {names[0]}{shapes.get(names[0], '')}",
                "its config.json must match its weights",
            )


def is_other_part(name: str) -> bool:
    """Whether a weight of a vision-language repository belongs to another part than the language model."""
    return _OTHER_PARTS.match(name) is not None


def check_finite(model: "PreTrainedModel", folder: Path) -> None:
    """Checks that all weights are finite numbers, by the smallest and the largest of each tensor (NaN is both).

    Raises:
        UserError: a weight is NaN or infinite.
    """
    import torch

    # A partitioned model (ZeRO-3) has empty tensors.
    weights = {name: weight for name, weight in model.named_parameters() if weight.numel()}
    with torch.no_grad():
        extremes = [torch.stack(torch.aminmax(weight)).float() for weight in weights.values()]
        finite = [] if not extremes else torch.stack(extremes).isfinite().all(dim=1).tolist()
    for (name, weight), good in zip(weights.items(), finite, strict=True):
        if not good:
            dtype = str(weight.dtype).removeprefix("torch.")
            raise UserError(
                str(folder), f"{name} has NaN or infinite values in {dtype}", "the weights are damaged"
            )


def _shape(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
