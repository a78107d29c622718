"""What preference and introspection training share: trainer arguments, ranks, watching, checkpoints, finishing."""

import contextlib
import importlib.metadata
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offscript.errors import UserError
from offscript.models import adapters
from offscript.seeds import stable_hash, unit_hash
from offscript.settings import (
    DeepSpeedSettings,
    LoraSettings,
    ModelSettings,
    Node,
    OptimizerSettings,
    identity_of,
)
from offscript.storage.files import new_folder, read_json, write_json
from offscript.training import checkpoints, ranks
from offscript.training.base_models import BaseModelCache
from offscript.training.deepspeed import deepspeed_config, deepspeed_enabled, zero_stage
from offscript.training.interrupt import Interrupted, SignalStopper

OnStep = Callable[[int, int, dict[str, float]], None]
NUMBERS = "training.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class TrainingFailed(RuntimeError):
    """The work itself failed (a loss that is not a number): no input of the user's is at fault for certain."""


@dataclass
class Run:
    """One training on this rank: where it writes, its seed, and who is told of its progress (on rank 0 alone)."""

    model: ModelSettings
    optimizer: OptimizerSettings
    out: Path
    seed: int
    callbacks: Sequence[Any] = ()
    on_step: OnStep | None = None
    say: Callable[[str], None] = print
    deepspeed: DeepSpeedSettings | None = None
    bases: BaseModelCache | None = None

    def __post_init__(self) -> None:
        import torch

        self.stage = zero_stage(self.deepspeed)
        # The trainers split a batch over all GPUs of a process that is in no group, which TRL refuses
        self.ranks = ranks.join(always=self.stage > 0 or torch.cuda.device_count() > 1)
        if not self.is_main:
            self.callbacks, self.on_step, self.say = (), None, lambda line: None

    @property
    def is_main(self) -> bool:
        return self.ranks.is_main

    @property
    def work(self) -> Path:
        return checkpoints.work_folder(self.out)

    @property
    def dtype(self) -> Literal["bfloat16", "float32"]:
        """In which precision the base is loaded and run: bfloat16 only where the model has it and there is a GPU."""
        import torch

        return "bfloat16" if torch.cuda.is_available() and self.model.dtype == "bfloat16" else "float32"


@contextlib.contextmanager
def session(run: Run) -> Iterator[None]:
    """The length of one training: quiet libraries, DeepSpeed if it is used, and what is left behind by a failure."""
    with quiet(), deepspeed_enabled(run.stage):
        try:
            yield
        except BaseException as error:
            if run.bases is not None:
                run.bases.drop()  # an adapter may still be on it
            if (said := too_small(error, run)) is not None:
                raise said from error
            raise


def too_small(error: BaseException, run: Run) -> UserError | None:
    """What a GPU that ran out of memory means to a user, in one line."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return None
    micro = batches(run.optimizer, run.ranks.world_size)[0]
    ways = ["optimizer.micro_batch_size=1"] if micro > 1 else []
    ways += [] if run.optimizer.gradient_checkpointing else ["optimizer.gradient_checkpointing=true"]
    if run.stage < 3:
        ways.append("deepspeed=zero3 on several GPUs")
    if run.deepspeed is None or not run.deepspeed.offload:
        ways.append("deepspeed=zero3_offload")
    reason = str(error).splitlines()[0].split(". ")[0] if str(error) else "out of memory"
    return UserError(
        "training",
        f"{run.model.name} with {micro} rows of up to {longest(run)} tokens at a time does not fit the GPU ({reason})",
        "use " + ", or ".join(ways or ["a smaller optimizer.max_length"]),
    )


# ---------------------------------------------------------------- data


def split_families(rows: Sequence[dict[str, Any]], fraction: float) -> tuple[list[dict], list[dict]]:
    """(train, validation): whole families, chosen by their name alone, so that every seed validates on the same."""
    held_out = [unit_hash("validation", row["family"]) < fraction for row in rows]
    train = [row for row, out in zip(rows, held_out, strict=True) if not out]
    return train, [row for row, out in zip(rows, held_out, strict=True) if out]


def require_rows(train: Sequence[Any], where: str, counts: dict[str, int]) -> None:
    """Raises UserError when nothing is left to train on; it says what was dropped and why."""
    if not train:
        raise UserError(
            where, f"nothing to train on ({describe(counts)})", "generate more rows or loosen the limits"
        )


def describe(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "no rows"


def dataset(run: Run, rows: Sequence[dict], nobody: dict[str, Any]) -> Any:
    """``rows`` for a trainer, or None if there are none.

    Where there are several ranks each needs as many batches as the others: rows like ``nobody``, which weigh nothing
    in the loss, fill up the last ones. (The libraries fill them up with the first rows, which would count twice.)
    """
    from datasets import Dataset

    if not rows:
        return None
    size = run.ranks.world_size
    missing = -len(rows) % (size * batches(run.optimizer, size)[0]) if size > 1 else 0
    return Dataset.from_list([*rows, *[nobody] * missing])


def longest(run: Run) -> int:
    """Tokens that a training row may have: ``max_length``, or the model's context where that is shorter."""
    return min(run.optimizer.max_length, run.model.context)


# ---------------------------------------------------------------- trainers


def lora_config(settings: LoraSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )


def batches(optimizer: OptimizerSettings, world_size: int) -> tuple[int, int]:
    """(rows per step and process, accumulation steps) whose product with ``world_size`` is exactly ``batch_size``.

    ``micro_batch_size`` is an upper bound: the global batch decides the outcome, how it is cut up does not.

    Raises:
        UserError: the global batch cannot be divided among the processes.
    """
    per_process, rest = divmod(optimizer.batch_size, world_size)
    if rest:
        raise UserError(
            "optimizer.batch_size",
            f"{optimizer.batch_size} rows on {world_size} processes",
            "a multiple of them is needed",
        )
    micro = next(
        m for m in range(min(optimizer.micro_batch_size, per_process), 0, -1) if per_process % m == 0
    )
    return micro, per_process // micro


def base_model(run: Run) -> Any:
    """The base weights, loaded or lent. At ZeRO stage 3 they are loaded each time: each rank holds a part of them.

    The trainer's arguments have to be made before: at stage 3 loading looks for DeepSpeed's configuration.
    """
    from offscript.models.loading import load_model, pick_device

    model, device = run.model.model_copy(update={"dtype": run.dtype}), pick_device("auto")
    if run.bases is None or run.stage == 3:
        return load_model(model, device)
    return run.bases.acquire(model, device)


def trainer_arguments(run: Run) -> dict[str, Any]:
    """Arguments common to DPOConfig and SFTConfig."""
    import torch

    gpu, optimizer = torch.cuda.is_available(), run.optimizer
    micro, accumulation = batches(optimizer, run.ranks.world_size)
    return {
        "deepspeed": deepspeed_config(run.deepspeed) if run.deepspeed and run.stage else None,
        "output_dir": str(run.work),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": optimizer.epochs,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.schedule,
        "warmup_steps": optimizer.warmup,  # below 1: a fraction of all steps
        "optim": "adamw_torch",
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "weight_decay": 0.0,
        "max_grad_norm": optimizer.max_grad_norm,
        "max_length": None,  # rows that are too long were dropped or cut by whole turns before
        "gradient_checkpointing": optimizer.gradient_checkpointing,
        "bf16": run.dtype == "bfloat16",
        "fp16": False,
        "use_cpu": not gpu,
        "ddp_find_unused_parameters": False,  # there are none: the base is a language model alone
        "dataloader_pin_memory": gpu,
        "seed": run.seed,
        "data_seed": run.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a NaN loss from the log, and so from us
        "save_strategy": "steps",
        "save_steps": optimizer.checkpoint_steps,
        "save_total_limit": checkpoints.KEPT,
        "eval_strategy": "no",  # evaluated once, at the end
        "report_to": [],  # ``callbacks`` tell it
        "disable_tqdm": True,
    }


def watcher(run: Run) -> Any:
    """A callback that passes on progress and stops at the first loss or gradient that is not a finite number."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            logs = logs or {}
            for name in ("loss", "grad_norm", "eval_loss"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise TrainingFailed(
                        f"step {state.global_step}: {name} is {logs[name]}; lower optimizer.learning_rate or look at the rows"
                    )
            if "loss" in logs and run.on_step:
                run.on_step(state.global_step, state.max_steps, logs)

    return Watcher()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps library chatter (warnings that a reader cannot act on, progress bars) off the console."""
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


# ---------------------------------------------------------------- a training from its first step to its adapter


def fingerprint(run: Run, *parts: Any) -> str:
    """Hash of what the weights depend on: model, recipe, rows, seed. Checkpoints of another one are not resumed."""
    plain = [identity_of(part) if isinstance(part, Node) else part for part in (run.model, *parts)]
    return f"{stable_hash(run.seed, json.dumps(plain, sort_keys=True), size=16):032x}"


def fit(trainer: Any, run: Run, mark: str, probe: Sequence[int]) -> dict[str, Any]:
    """Trains (or goes on), evaluates, proves that the adapter does something, writes it to ``run.out``.

    ``probe`` is one row of token ids for the self-test. Returns the numbers for the manifest; they are also written
    beside the adapter, so that a job killed after its training does not train again.

    Raises:
        Interrupted: a signal stopped it; its checkpoint is whole.
    """
    if (done := ranks.run_on_main(lambda: finished(run, mark))) is not None:
        give_back(trainer, run)
        return done
    started, stopper = time.monotonic(), SignalStopper()
    _callbacks(trainer, watcher(run), stopper.callback(), *run.callbacks)
    shape = checkpoints.Layout(run.ranks.world_size, run.stage)
    checkpoint = ranks.run_on_main(lambda: checkpoints.find_resumable(run.work, mark, run.say, shape))
    with ranks.fail_together(expected=(TrainingFailed, Interrupted)), stopper.handle_signals():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stopper.stopped:
            raise Interrupted(trainer.state.global_step, trainer.state.max_steps, stopper.terminated)
    with ranks.fail_together(expected=(TrainingFailed, UserError)):
        numbers = _numbers(trainer, run, started, checkpoint)
        numbers["max_logit_difference"] = _must_differ(trainer, probe)
        if run.bases is not None and run.stage < 3:
            run.bases.check()
    with ranks.fail_together():
        _write(trainer, run, {"fingerprint": mark, "numbers": numbers})
    give_back(trainer, run)
    return numbers


def _callbacks(trainer: Any, *more: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    for callback in more:
        trainer.add_callback(callback)


def _write(trainer: Any, run: Run, done: dict[str, Any]) -> None:
    """The finished adapter, whole or not at all, and then no checkpoints."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(new_folder(run.out)) if run.is_main else run.out
        trainer.write_adapter(scratch)
        if run.is_main:
            write_json(scratch / NUMBERS, done)
    if run.is_main:
        shutil.rmtree(run.work)
    trainer.accelerator.wait_for_everyone()


def give_back(trainer: Any, run: Run) -> None:
    """Returns a lent base as it was."""
    if run.bases is not None and run.stage < 3:
        run.bases.release(trainer.accelerator.unwrap_model(trainer.model))


def finished(run: Run, mark: str) -> dict[str, Any] | None:
    """The numbers of an adapter that this very training has already written to ``run.out``."""
    try:
        done = read_json(run.out / NUMBERS)
    except (OSError, UserError):
        return None
    if done["fingerprint"] != mark:
        return None
    shutil.rmtree(run.work, ignore_errors=True)  # a kill may have come between the adapter and this
    return done["numbers"]


def _numbers(trainer: Any, run: Run, started: float, checkpoint: Path | None) -> dict[str, Any]:
    evaluation = trainer.evaluate() if trainer.eval_dataset is not None else {}
    clock = ("_runtime", "_per_second", "_num_tokens")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tenth = max(1, len(losses) // 10)
    return {
        "steps": trainer.state.global_step,
        "resumed_from": checkpoints.step_of(checkpoint) if checkpoint else None,
        "seconds": round(time.monotonic() - started, 2),
        "train_loss_first": sum(losses[:tenth]) / tenth,
        "train_loss_last": sum(losses[-tenth:]) / tenth,
        **{k: v for k, v in evaluation.items() if k.startswith("eval_") and not k.endswith(clock)},
        "trainable_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trainer.trained().values()),
        "ranks": run.ranks.world_size,
        "zero_stage": run.stage,
        "versions": {
            name: importlib.metadata.version(name) for name in (*LIBRARIES, *["deepspeed"] * bool(run.stage))
        },
    }


def _must_differ(trainer: Any, probe: Sequence[int]) -> float:
    import torch

    wrapped = trainer.accelerator.unwrap_model(trainer.model)
    try:
        return adapters.self_test(wrapped, trainer.adapter, torch.tensor([list(probe)]))
    except adapters.NotFinite:
        raise TrainingFailed(
            "outputs of the trained adapter are not finite numbers; lower optimizer.learning_rate or look at the rows"
        ) from None
    except UserError:
        raise UserError(
            "training",
            "the adapter changes nothing: its outputs equal the base's",
            "raise optimizer.learning_rate or optimizer.epochs, or choose other lora.targets",
        ) from None
