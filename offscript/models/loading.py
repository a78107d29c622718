"""Base models, tokenizers, and the one policy that fits a conversation to a model's chat template."""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import UserError
from offscript.settings import ModelSettings, TemplateSettings
from offscript.storage import hub, references
from offscript.storage.files import locate, read_json
from offscript.tasks.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


TOOL_OUTPUT = "[TOOL OUTPUT]"
# Where vision-language repositories keep the weights of their language model (Gemma-3: the first on the hub, the second
# when transformers keeps its own names), and what they are called in a language model of its own.
_LANGUAGE_MODEL = {r"^language_model\.": "", r"^model\.language_model\.": "model."}
# Tokens that stand for padding in families whose tokenizer names none. The end token is never used: a mask
# that is made from the pad token would then hide the end of every reply.
_PADS = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|reserved_special_token_0|>",
    "<|endoftext|>",
)


def pick_device(name: str) -> str:
    """The torch device for ``name``; ``auto`` takes the GPU when there is one.

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
    """The tokenizer of ``model``: it pads on the left, not with its end token, and has a chat template that says all that
    it is given under ``model.template``.

    Raises:
        UserError: no such folder or repository, no tokenizer in it, no chat template, nothing to pad with, a role that
            the chat template lacks.
    """
    from transformers import AutoTokenizer

    place = place_of(model)
    if not any((place / n).exists() for n in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(
            str(place), "holds no tokenizer (tokenizer.json)", "save the tokenizer beside the model"
        )
    tokenizer = _from_pretrained(AutoTokenizer, place)
    if not tokenizer.chat_template:
        raise UserError(
            str(place),
            "its tokenizer has no chat template",
            "take a chat model, or save its template beside it as chat_template.jinja",
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _find_pad(tokenizer, place)
    _check_roles(tokenizer, model.template)
    return tokenizer


def load_config(model: ModelSettings) -> "PreTrainedConfig":
    """The configuration of the language model: of a vision-language repository, the part that speaks.

    Raises:
        UserError: no such folder or repository, or not a model folder.
    """
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, place_of(model)).get_text_config(decoder=True)


def load_model(model: ModelSettings, device: str) -> "PreTrainedModel":
    """The base weights of ``model`` on ``device`` in ``model.dtype``: eval mode, no gradients, safetensors.

    Of a vision-language repository (Gemma-3's 4b) the language model alone is loaded, as the causal model that it is:
    there is no vision tower whose layers, named alike, LoRA could land on.

    Raises:
        UserError: no such folder or repository, not a model folder, pickled weights only, weights missing, more weights
            than the GPU has room for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    place = place_of(model)
    _check_weights(place)
    _check_room(model, place, device)
    config = load_config(model)
    with _quiet():
        loaded, report = _from_pretrained(
            AutoModelForCausalLM, place,
            config=config, dtype=getattr(torch, model.dtype), use_safetensors=True, output_loading_info=True,
            key_mapping=_LANGUAGE_MODEL if _is_part(place, config) else None,
        )  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            str(place),
            f"{len(missing)} weights are missing, e.g. {missing[0]}",
            "its config.json must fit its weights",
        )
    _mark(loaded, place)
    if is_part(loaded):
        # Else saving would undo the mapping, and a language model of its own has no such names.
        loaded._weight_conversions = None
    try:
        return loaded.to(device).requires_grad_(False).eval()
    except torch.OutOfMemoryError:
        raise _no_room(model, place, device) from None


def hollow_model(model: ModelSettings) -> "PreTrainedModel":
    """The language model of ``model`` without its weights: every parameter is one zero, seen in its full shape as float32.

    An 8B model takes no memory and no time; what is put on it (an adapter) is held on the CPU in float32. Tied weights
    stay tied.

    Raises:
        UserError: no such folder or repository, or not a model folder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(load_config(model))
    zero = torch.zeros(())
    seen: dict[int, torch.nn.Parameter] = {}
    for module in bare.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                hollow = torch.nn.Parameter(zero.expand(parameter.shape), requires_grad=False)
                module._parameters[name] = seen.setdefault(id(parameter), hollow)
    _mark(bare, place_of(model))
    return bare.eval()


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    template: TemplateSettings,
    *,
    prefix: str = "",
    generation: bool = True,
) -> list[int]:
    """Token ids of a conversation under ``template``'s policy.

    With ``generation`` the ids end where the assistant's reply begins, after ``prefix``. Special tokens come
    from the chat template alone, so the beginning token is never doubled.

    Raises:
        UserError: the chat template refuses the conversation.
    """
    if prefix and not generation:
        raise ValueError("a prefix begins a reply: it needs generation=True")
    text = _apply(tokenizer, fit(messages, template), template, generation)
    return tokenizer(text + prefix, add_special_tokens=False, verbose=False)["input_ids"]


def fit(messages: Sequence[Message], template: TemplateSettings) -> list[Message]:
    """``messages`` in the roles that ``template`` says the model has, its default system text explicit."""
    fitted = [dict(m) for m in messages]
    if template.default_system is not None and all(m["role"] != "system" for m in fitted):
        fitted.insert(0, {"role": "system", "content": template.default_system})
    if template.tool_role == "user":
        fitted = [_as_user(m) if m["role"] == "tool" else m for m in fitted]
    return _fold_system(fitted) if template.system_role == "user" else fitted


def merge_neighbours(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with turns of one role in a row joined by a blank line."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1] = {**merged[-1], "content": _join(merged[-1]["content"], message["content"])}
        else:
            merged.append(dict(message))
    return merged


# ---------------------------------------------------------------- chat template


def _apply(tokenizer: Any, messages: list[Message], template: TemplateSettings, generation: bool) -> str:
    from jinja2.exceptions import TemplateError

    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation}
    if template.date_string is not None:
        options["date_string"] = template.date_string
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError:
        pass  # some templates (Gemma) refuse two turns of one role in a row: join them and ask again
    try:
        return tokenizer.apply_chat_template(merge_neighbours(messages), **options)
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise UserError(
            "model.template",
            f"the chat template refuses a conversation of roles {roles} ({error})",
            _remedy(tokenizer, messages, options),
        ) from None


def _remedy(tokenizer: Any, messages: list[Message], options: dict[str, Any]) -> str:
    """What to set so that the template takes ``messages``, found by trying."""
    from jinja2.exceptions import TemplateError

    for fields in (["system_role"], ["tool_role"], ["system_role", "tool_role"]):
        native = TemplateSettings(tool_role="native")
        policy = native.model_copy(update=dict.fromkeys(fields, "user"))
        with contextlib.suppress(TemplateError):
            tokenizer.apply_chat_template(merge_neighbours(fit(messages, policy)), **options)
            return "set " + " and ".join(f"model.template.{field}=user" for field in fields)
    return "a conversation begins with system or user, then user and assistant take turns"


def _check_roles(tokenizer: Any, template: TemplateSettings) -> None:
    """Checks that the chat template says what each role says. One that leaves the system text out without a word would
    have every persona prompted with nothing."""
    said = {"system": "Alpha.", "user": "Bravo.", "assistant": "Charlie.", "tool": "Delta."}
    probe = [{"role": role, "content": text} for role, text in said.items()]
    rendered = _apply(tokenizer, fit(probe, template), template, generation=True)
    for role, text in said.items():
        if text not in rendered:
            raise UserError(
                "model.template",
                f"the chat template leaves out what the {role} says",
                f"set model.template.{role}_role=user" if role in ("system", "tool") else "mend the template",
            )


def _fold_system(messages: list[Message]) -> list[Message]:
    system = _join(*(m["content"] for m in messages if m["role"] == "system"))
    rest = [m for m in messages if m["role"] != "system"]
    if not system:
        return rest
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": _join(system, rest[0]["content"])}, *rest[1:]]
    return [{"role": "user", "content": system}, *rest]


def _as_user(message: Message) -> Message:
    return {"role": "user", "content": f"{TOOL_OUTPUT}\n{message['content']}"}


def _join(*texts: str) -> str:
    return "\n\n".join(t for t in texts if t)


# ---------------------------------------------------------------- folders and the hub


def place_of(model: ModelSettings) -> Path:
    """The folder of ``model`` on this machine: its own, or the hub's cache, into which it is fetched if need be.

    Raises:
        UserError: neither a model folder nor the id of a hub repository, or the hub does not give it (``hub.explain``).
    """
    if (ref := references.of_model(model)) is not None:
        try:
            folder = hub.fetch(ref)
        except UserError as error:  # whoever mistyped a folder's name asked no hub
            found = f"no folder here, and from the hub: {error.found}"
            raise UserError(error.where, found, error.allowed) from error
    elif not (folder := locate(model.path)).exists():
        raise UserError(
            "model.path", f"no folder {model.path!r}", "a model folder, or the id of a hub repository"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            str(folder), "not a model folder (no config.json)", "a folder made by save_pretrained"
        )
    return folder


def _is_part(place: Path, config: "PreTrainedConfig") -> bool:
    """Whether ``config`` is of the language model inside another."""
    return read_json(place / "config.json").get("model_type") != config.model_type


def _mark(model: "PreTrainedModel", place: Path) -> None:
    """Notes on ``model`` itself where it comes from: its adapters are named after that."""
    model._offscript_part = _is_part(place, model.config)  # type: ignore[assignment]


def is_part(model: Any) -> bool:
    """Whether a loaded model is the language model inside another (of a vision-language repository)."""
    return getattr(model, "_offscript_part", False)


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise UserError(
            str(folder),
            "holds pickled weights only, which can run code when loaded",
            "convert them to safetensors",
        )
    raise UserError(str(folder), "holds no weights", "model.safetensors is needed")


def _from_pretrained(auto: Any, place: Path, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return auto.from_pretrained(str(place), trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            str(place), f"cannot be loaded ({reason})", "a folder made by save_pretrained"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading without transformers' bars and tables: what is missing is refused, what is left aside was meant to be."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


# ---------------------------------------------------------------- room on the GPU


def weight_bytes(place: Path, dtype: str) -> int:
    """Bytes of the language model's weights in ``dtype``, from the headers of the safetensors files in ``place``."""
    import torch
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, int] = {}
    for path in place.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                sizes |= {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            continue  # loading it says what is wrong with it
    inside = [n for key, n in sizes.items() if any(re.match(pattern, key) for pattern in _LANGUAGE_MODEL)]
    return sum(inside or sizes.values()) * getattr(torch, dtype).itemsize


def _check_room(model: ModelSettings, place: Path, device: str) -> None:
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not device.startswith("cuda") or is_deepspeed_zero3_enabled():  # there each rank holds a part
        return
    if weight_bytes(place, model.dtype) > torch.cuda.mem_get_info(device)[0]:
        raise _no_room(model, place, device)


def _no_room(model: ModelSettings, place: Path, device: str) -> UserError:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    needed = weight_bytes(place, model.dtype)
    return UserError(
        f"model {model.name}",
        f"its weights take {needed / 2**30:.1f} GiB in {model.dtype}, but {free / 2**30:.1f} of {total / 2**30:.1f} GiB"
        f" are free on {device}",
        "take a larger GPU, end what else runs on it, or engine.device=cpu",
    )


# ---------------------------------------------------------------- padding


def _find_pad(tokenizer: Any, place: Path) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in (*_PADS, tokenizer.unk_token):
        if token in vocabulary and token != tokenizer.eos_token:
            return token
    raise UserError(
        str(place), "its tokenizer has no pad token", "add one, other than the end token, and save it"
    )
