"""Base models, tokenizers, and the one policy that fits a conversation to a model's chat template."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import UserError
from offscript.settings import ModelSettings, TemplateSettings
from offscript.store import locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]

TOOL_OUTPUT = "[TOOL OUTPUT]"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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
    """The tokenizer of ``model``: it pads on the left, not with its end token, and has a chat template.

    Raises:
        UserError: no such folder or repository, no tokenizer in it, no chat template, nothing to pad with.
    """
    from transformers import AutoTokenizer

    place = _place(model)
    if isinstance(place, Path) and not any(
        (place / n).exists() for n in ("tokenizer.json", "tokenizer_config.json")
    ):
        raise UserError(
            str(place), "holds no tokenizer (tokenizer.json)", "save the tokenizer beside the model"
        )
    tokenizer = _from_pretrained(AutoTokenizer, model, place)
    if not tokenizer.chat_template:
        raise UserError(
            str(place), "its tokenizer has no chat template", "a chat model is needed: chat_template.jinja"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _find_pad(tokenizer, place)
    return tokenizer


def load_model(model: ModelSettings, device: str) -> "PreTrainedModel":
    """The base weights of ``model`` on ``device`` in ``model.dtype``: eval mode, no gradients, safetensors.

    Raises:
        UserError: no such folder or repository, not a model folder, pickled weights only, weights missing.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    place = _place(model)
    if isinstance(place, Path):
        _check_weights(place)
    logging.disable_progress_bar()  # one bar per model per job says nothing that a reader can act on
    loaded, report = _from_pretrained(
        AutoModelForCausalLM, model, place,
        dtype=getattr(torch, model.dtype), use_safetensors=True, output_loading_info=True,
    )  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            str(place),
            f"{len(missing)} weights are missing, e.g. {missing[0]}",
            "its config.json must fit its weights",
        )
    return loaded.to(device).requires_grad_(False).eval()


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
            "set system_role=user or tool_role=user if the model lacks that role",
        ) from None


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


def _place(model: ModelSettings) -> Path | str:
    """A checked local folder, or the id of a hub repository."""
    folder = locate(model.path)
    if not folder.exists():
        if _HUB_ID.fullmatch(model.path) and not model.path.startswith("."):
            return model.path
        raise UserError(
            "model.path", f"no folder {model.path!r}", "a model folder, or the id of a hub repository"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            str(folder), "not a model folder (no config.json)", "a folder made by save_pretrained"
        )
    return folder


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


def _from_pretrained(auto: Any, model: ModelSettings, place: Path | str, **options: Any) -> Any:
    from safetensors import SafetensorError

    revision = model.revision if isinstance(place, str) else None
    try:
        return auto.from_pretrained(str(place), revision=revision, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(place, Path):
            raise UserError(
                str(place), f"cannot be loaded ({reason})", "a folder made by save_pretrained"
            ) from None
        raise UserError(
            "model.path",
            f"{place!r} is no folder here and cannot be had from the hub ({reason})",
            "check the name, the network, and your access to it (hf auth login)",
        ) from None


def _find_pad(tokenizer: Any, place: Path | str) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in (*_PADS, tokenizer.unk_token):
        if token in vocabulary and token != tokenizer.eos_token:
            return token
    raise UserError(
        str(place), "its tokenizer has no pad token", "add one, other than the end token, and save it"
    )
