"""The model that a training starts from: the base under a new adapter, on top of the parent's adapter or as a copy of it."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from offscript.errors import MissingInput, UserError
from offscript.models import adapters
from offscript.models.adapter_config import WEIGHTS, read_config
from offscript.settings import LoraSettings
from offscript.training.run import Run, base_model, lora_config

if TYPE_CHECKING:
    from peft import PeftModel

PARENT, OWN = "parent", "own"
"""Names of the adapters in the model that is trained: the parent's, which stays frozen, and the one being trained."""

START = "start"
"""Name of a frozen copy of the adapter that a training continues, where the method needs it."""


def check_parent(run: Run) -> None:
    """Raises MissingInput if there is no folder at ``run.parent``."""
    if run.parent is not None and not run.parent.is_dir():
        raise MissingInput(
            str(run.parent), "the parent's adapter does not exist", "train the parent stage first"
        )


def parent_digest(run: Run) -> list[str]:
    """The part of a training's fingerprint that says which weights it starts from; empty without a parent."""
    if run.parent is None:
        return []
    digest = hashlib.sha256((run.parent / WEIGHTS).read_bytes()).hexdigest()
    return [digest, "continues"] if run.continues else [digest]


def adapted_base(run: Run) -> "PeftModel":
    """The base model with an adapter ``OWN``, the only one that is trainable.

    ``OWN`` is a new adapter without effect, under which the parent's adapter (if there is one) is active and frozen; with
    ``run.continues`` it is a copy of the parent's adapter.

    Raises:
        UserError: a LoRA target matches nothing, or the parent's adapter has other LoRA settings.
    """
    from peft import get_peft_model
    from transformers import set_seed

    base, lora = base_model(run), lora_config(run.settings.lora)
    adapters.check_lora(base, run.settings.lora)
    if run.parent is None or run.continues:
        # LoRA's A is drawn here.
        set_seed(run.seed)
        new = get_peft_model(base, lora, adapter_name=OWN)
        if run.continues:
            continue_parent(run, new, OWN)
        return new
    wrapped = adapters.attach(base, {PARENT: run.parent})
    set_seed(run.seed)
    wrapped.add_adapter(OWN, lora)
    wrapped.base_model.set_adapter([PARENT, OWN])  # type: ignore[operator]
    _train_only(wrapped, OWN)
    return wrapped


def continue_parent(run: Run, wrapped: "PeftModel", name: str) -> None:
    """Gives adapter ``name`` of ``wrapped`` the weights of the parent's adapter.

    Raises:
        UserError: the parent's adapter has other LoRA settings than ``run``.
    """
    assert run.parent is not None
    _check_lora_of(run.parent, run.settings.lora)
    adapters.load_tensors(wrapped, name, run.parent)


def keep_start(run: Run, wrapped: "PeftModel", name: str, start: str = START) -> None:
    """Adds an inactive, frozen copy ``start`` of the parent's adapter beside adapter ``name``, which is trained."""
    assert run.parent is not None
    adapters.attach(wrapped, {start: run.parent})
    wrapped.base_model.set_adapter([name])  # type: ignore[operator]
    _train_only(wrapped, name)
    weights = dict(wrapped.named_parameters())
    for key, weight in weights.items():
        if f".{start}." in key:
            # ZeRO stage 3 gathers parameters of one type only.
            weight.data = weight.data.to(weights[key.replace(f".{start}.", f".{name}.")].dtype)


def _train_only(wrapped: "PeftModel", name: str) -> None:
    for key, parameter in wrapped.named_parameters():
        parameter.requires_grad_(f".{name}." in key)


def _check_lora_of(folder: Path, lora: LoraSettings) -> None:
    """Checks that the adapter in ``folder`` has the settings ``lora``, except for dropout.

    Raises:
        UserError: it has others.
    """
    config = read_config(folder)
    targets = config.target_modules
    found = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": targets if isinstance(targets, str) else sorted(targets),
    }
    wanted = {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets)}
    for name, value in wanted.items():
        if found[name] != value:
            raise UserError(
                f"lora.{name}",
                f"{value}, but the adapter in {folder}, which is trained further, has {found[name]}",
                "the same value",
            )
    patterns = ("rank_pattern", "alpha_pattern", "use_rslora", "exclude_modules", "layers_to_transform")
    if special := [name for name in patterns if getattr(config, name)]:
        raise UserError(
            str(folder), f"cannot be trained further: it has {special[0]}", "an adapter without it"
        )
