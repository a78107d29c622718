"""One training, whatever its method: trainer arguments, data sets, checkpoints, and writing the adapter."""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offscript.errors import UserError
from offscript.seeds import stable_hash, unit_hash
from offscript.settings import (
    DeepSpeedSettings,
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    TrainerSettings,
    identity_of,
)
from offscript.training import checkpoints, ranks
from offscript.training.base_models import BaseModelCache
from offscript.training.data.base import TrainingRow
from offscript.training.deepspeed import deepspeed_config, deepspeed_enabled, zero_stage
from offscript.training.episodes import LiveEpisodes

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, TrainerCallback

    from offscript.models.vision import ImageEncoder

OnStep = Callable[[int, int, dict[str, float]], None]


Metrics = dict[str, Any]
"""Numbers of a training, for its manifest."""


@dataclass
class Run:
    """One training on this rank.

    Args:
        model: the base model.
        settings: hyper-parameters of the training and of its method.
        out: folder of the adapter, written when training has finished.
        seed: seed of the weights and of the order of rows.
        parent: folder of the parent stage's adapter; None if the stage is trained on the base.
        callbacks: further trainer callbacks (rank 0 only, as are the next two).
        on_step: called as ``on_step(step, total, logs)`` after every optimizer step.
        say: prints a line.
        deepspeed: the ZeRO stage; None or 0: one process, or plain data parallel ones.
        bases: keeps the base model between trainings, so that it is not loaded for each.
        continues: whether a copy of the parent's adapter is trained. Otherwise it stays frozen below a new one.
        live: what a training that plays its own episodes needs; None for all others.
    """

    model: ModelSettings
    settings: TrainerSettings
    out: Path
    seed: int
    parent: Path | None = None
    callbacks: Sequence["TrainerCallback"] = ()
    on_step: OnStep | None = None
    say: Callable[[str], None] = print
    deepspeed: DeepSpeedSettings | None = None
    bases: BaseModelCache | None = None
    continues: bool = False
    live: LiveEpisodes | None = None

    def __post_init__(self) -> None:
        import torch

        self.zero_stage = zero_stage(self.deepspeed)
        # The trainers split a batch over all GPUs of a process that is in no group, which TRL refuses
        self.ranks = ranks.join(always=self.zero_stage > 0 or torch.cuda.device_count() > 1)
        if not self.is_main:
            self.callbacks, self.on_step, self.say = (), None, lambda line: None

    @property
    def optimizer(self) -> OptimizerSettings:
        return self.settings.optimizer

    @property
    def is_main(self) -> bool:
        return self.ranks.is_main

    @property
    def work(self) -> Path:
        return checkpoints.work_folder(self.out)

    @property
    def most_tokens(self) -> int:
        """Tokens of a micro-batch, padding included."""
        return self.optimizer.micro_batch_size * longest(self)

    @property
    def dtype(self) -> Literal["bfloat16", "float32"]:
        """In which precision the base is loaded and run: bfloat16 only where the model has it, and a GPU or the CPU's
        matrix units (AMX) are fast in it."""
        import torch

        fast = torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16", False)
        return "bfloat16" if fast and self.model.dtype == "bfloat16" else "float32"


@contextlib.contextmanager
def session(run: Run) -> Iterator[None]:
    """Context of one training: quiet libraries, DeepSpeed if it is used, and cleaning up after a failure.

    Raises:
        UserError: the GPU ran out of memory.
    """
    with quiet(), deepspeed_enabled(run.zero_stage), _head_of_scored_tokens():
        try:
            yield
        except BaseException as error:
            if run.bases is not None:
                # An adapter may still be attached to the shared base model.
                run.bases.drop()
            if (explained := _out_of_memory(error, run)) is not None:
                raise explained from error
            raise


@contextlib.contextmanager
def _head_of_scored_tokens() -> Iterator[None]:
    """Makes TRL apply the language-model head to scored tokens alone on a CPU too, as it does on a GPU. It applies the head
    to all others for devices that compile for one shape; on a CPU that is half of the time of a small model."""
    from trl.trainer import utils

    original = utils._use_triton
    utils._use_triton = lambda device: device.type == "cpu" or original(device)
    try:
        yield
    finally:
        utils._use_triton = original


def _out_of_memory(error: BaseException, run: Run) -> UserError | None:
    """The message for a GPU that ran out of memory; None for any other error."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return None
    micro = run.optimizer.micro_batch_size
    remedies = ["optimizer.micro_batch_size=1"] if micro > 1 else []
    remedies += [] if run.optimizer.gradient_checkpointing else ["optimizer.gradient_checkpointing=true"]
    if run.zero_stage < 3:
        remedies.append("deepspeed=zero3 on several GPUs")
    if run.deepspeed is None or not run.deepspeed.offload:
        remedies.append("deepspeed=zero3_offload")
    reason = str(error).splitlines()[0].split(". ")[0] if str(error) else "out of memory"
    return UserError(
        "training",
        f"{run.model.name} with {run.most_tokens} tokens at a time ({micro} rows of up to {longest(run)}) does not fit the GPU"
        f" ({reason})",
        "use " + ", or ".join(remedies or ["a smaller optimizer.max_length"]),
    )


# ---------------------------------------------------------------- data


def split_families(
    rows: Sequence[TrainingRow], fraction: float
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """(train, validation): whole families, chosen by their name alone, so that every seed validates on the same."""
    held_out = [unit_hash("validation", row["family"]) < fraction for row in rows]
    train = [row for row, out in zip(rows, held_out, strict=True) if not out]
    return train, [row for row, out in zip(rows, held_out, strict=True) if out]


def dataset(rows: Sequence[TrainingRow]) -> "Dataset | None":
    """``rows`` as a data set, which TRL's trainers ask for, without their images, which ``AdapterTrainer`` reads itself; None
    if there are none."""
    from datasets import Dataset

    plain = [{column: value for column, value in row.items() if column != "images"} for row in rows]
    return Dataset.from_list(plain) if plain else None


_NOT_TRAINED = {
    "template_unstable": "left out, since the chat template changes what was said",
    "other_tokens": "left out, since the prompt in role changes the tokens of what was said",
    "special_token": "left out, since a text spells out a special token of the tokenizer",
    "too_long": "left out, longer than optimizer.max_length or the model's context",
    "no_reply": "left out, without a reply",
    "turns_too_long": "turns left out, beyond optimizer.max_length or the model's context",
    "in_parts": "cut into several sequences, longer than optimizer.max_length or the model's context",
    "turn_by_turn": "trained turn by turn, since the chat template changes earlier turns",
}
"""What is said about rows that are trained in part, otherwise than as a whole, or not at all; by their count."""


def say_dropped(run: Run, counts: Mapping[str, int]) -> None:
    """Prints how many of the rows ``given`` are not trained as they are, with the reason; nothing if all are."""
    reasons = [f"{counts[name]} {text}" for name, text in _NOT_TRAINED.items() if counts.get(name)]
    if reasons:
        run.say(f"  of {counts['given']} rows: {'; '.join(reasons)}")


def longest(run: Run) -> int:
    """Maximum number of tokens of a training row: ``max_length``, or the model's context where that is shorter."""
    return longest_row(run.optimizer, run.model)


def longest_row(optimizer: OptimizerSettings, model: ModelSettings) -> int:
    """As ``longest``, before there is a ``Run``."""
    return min(optimizer.max_length, model.context)


# ---------------------------------------------------------------- trainers


def lora_config(settings: LoraSettings) -> "LoraConfig":
    """``settings`` as PEFT's configuration."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )


def rows_per_process(optimizer: OptimizerSettings, world_size: int, where: str = "optimizer") -> int:
    """Rows of each process in an optimizer step. ``where`` is the config key of ``optimizer``.

    Raises:
        UserError: the global batch cannot be divided among the processes.
    """
    per_process, rest = divmod(optimizer.batch_size, world_size)
    if rest:
        raise UserError(
            f"{where}.batch_size",
            f"{optimizer.batch_size} rows on {world_size} processes",
            "a multiple of them is needed",
        )
    return per_process


def base_model(run: Run) -> "PreTrainedModel":
    """The base model, loaded or taken from ``run.bases``. At ZeRO stage 3 it is always loaded: each rank holds a part.

    Call it after the trainer's arguments were made: at stage 3 loading looks for DeepSpeed's configuration.
    """
    from offscript.models.loading import load_model, pick_device

    model, device = run.model.model_copy(update={"dtype": run.dtype}), pick_device("auto")
    if run.bases is None or run.zero_stage == 3:
        return load_model(model, device)
    return run.bases.acquire(model, device)


def check_not_sharded(stage: int | str, what: str) -> None:
    """Checks that prompts with images can be trained on at a ZeRO stage. At stage 3 all ranks have to use the same parameters
    in the same order, which rows with and without images do not.

    Raises:
        UserError: it is 3; ``what`` has the images.
    """
    if stage == 3:
        raise UserError(
            "deepspeed.stage",
            f"3, and {what} is trained on images",
            "allowed: deepspeed=off, zero2 or zero2_offload",
        )


def image_encoder(run: Run) -> "ImageEncoder":
    """The vision tower of the model, frozen, in the precision of the base.

    Raises:
        UserError: the model has none, or its weights are sharded.
    """
    check_not_sharded(run.zero_stage, "the stage")
    from offscript.models.loading import pick_device
    from offscript.models.vision import load_image_encoder

    return load_image_encoder(run.model.model_copy(update={"dtype": run.dtype}), pick_device("auto"))


def trainer_arguments(run: Run) -> dict[str, Any]:
    """Arguments common to DPOConfig and SFTConfig."""
    import torch

    gpu, optimizer = torch.cuda.is_available(), run.optimizer
    per_process = rows_per_process(optimizer, run.ranks.world_size)
    return {
        "deepspeed": deepspeed_config(run.deepspeed) if run.deepspeed and run.zero_stage else None,
        "output_dir": str(run.work),
        # ``AdapterTrainer`` divides the batch of a step.
        "per_device_train_batch_size": per_process,
        "per_device_eval_batch_size": per_process,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": optimizer.epochs,
        "learning_rate": optimizer.learning_rate,
        **_schedule(optimizer),
        # Below 1 it is a fraction of all steps.
        "warmup_steps": optimizer.warmup,
        "optim": "adamw_torch",
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "weight_decay": 0.0,
        "max_grad_norm": optimizer.max_grad_norm,
        # Rows that are too long were dropped, or cut by whole turns, before.
        "max_length": None,
        "gradient_checkpointing": optimizer.gradient_checkpointing,
        "bf16": run.dtype == "bfloat16",
        "fp16": False,
        "use_cpu": not gpu,
        # The base is a language model alone, in which every parameter is used.
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": gpu,
        "seed": run.seed,
        "data_seed": run.seed,
        "logging_steps": 1,
        # The filter would hide a NaN loss from the log, and so from the watcher.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": optimizer.checkpoint_steps,
        "save_total_limit": checkpoints.KEPT,
        # Evaluated once, at the end.
        "eval_strategy": "no",
        # ``run.callbacks`` report.
        "report_to": [],
        "disable_tqdm": True,
    }


def _schedule(optimizer: OptimizerSettings) -> dict[str, Any]:
    """The learning-rate schedule, as arguments of a trainer."""
    if optimizer.final_rate is None:
        return {"lr_scheduler_type": optimizer.schedule}
    return {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": optimizer.final_rate},
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings and progress bars of the libraries, on which a reader cannot act."""
    import datasets

    level, bars = logging.root.manager.disable, datasets.are_progress_bars_disabled()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if not bars:
            datasets.enable_progress_bars()


def fingerprint(run: Run, rows: Sequence[TrainingRow], *more: str) -> str:
    """Hash of what the weights depend on: model, hyper-parameters, rows, seed, and ``more``. Training does not resume
    from checkpoints with another fingerprint."""
    plain = [identity_of(run.model), identity_of(run.settings), rows, *more]
    return f"{stable_hash(run.seed, json.dumps(plain, sort_keys=True), size=16):032x}"
