"""What all methods add to TRL's trainers: one adapter per checkpoint, sums over rows and ranks, one order of the rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offscript.models import adapters
from offscript.storage.files import refusals_explained
from offscript.training import checkpoints, deepspeed

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import Trainer

    from offscript.training.run import Run
else:
    Trainer = object


class RowOrder:
    """A sampler: the rows of each epoch in an order that depends on the seed and the epoch alone, not on the number of
    ranks; then the padding rows (see ``run.dataset``).

    The epoch is the trainer's own, so that a training that resumes in the middle of an epoch has the order that it had
    before; the libraries' sampler starts again at epoch 0 where there are several ranks.
    """

    def __init__(self, trainer: Trainer, rows: int, total: int) -> None:
        self.trainer, self.rows, self.total = trainer, rows, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        import torch

        epoch = int(self.trainer.state.epoch or 0)
        generator = torch.Generator().manual_seed(self.trainer.args.seed + epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from range(self.rows, self.total)


class AdapterTrainer(Trainer):
    """Mixed into a trainer, before TRL's class.

    A checkpoint holds the adapter being trained, the optimizer (with DeepSpeed its shards, and never base weights),
    the schedule and each rank's random state. The trainers' own would also write the tokenizer, a model card and, in
    a stacked stage, the frozen adapter, and would on resume leave only one of two stacked adapters active.
    """

    adapter = "default"
    run: "Run"
    rows = 0
    """Number of rows to train on; the data set may hold padding rows after them."""

    @property
    def peft_model(self) -> "PeftModel":
        """The model with its adapters, out of the wrappers of DeepSpeed and data parallelism."""
        return cast("PeftModel", self.accelerator.unwrap_model(self.model))

    # ------------------------------------------------ order of rows, sums over rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return RowOrder(self, self.rows, len(train_dataset or self.train_dataset))  # type: ignore[arg-type]

    def tally(self, mode: str, count: "Tensor", totals: "dict[str, Tensor]") -> None:
        """Adds totals over ``count`` rows (or tokens), to be logged as their mean over all microbatches and ranks."""
        sums = self.__dict__.setdefault("_sums", {}).setdefault(mode, {})
        for name, total in {"": count, **totals}.items():
            sums[name] = sums.get(name, 0.0) + total.double()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        import torch

        assert self.model is not None
        mode = "train" if self.model.training else "eval"
        own = {}
        if sums := self.__dict__.get("_sums", {}).pop(mode, None):
            total = self.accelerator.reduce(torch.stack(list(sums.values())), "sum").tolist()
            prefix = "" if mode == "train" else "eval_"
            own = {prefix + k: v / max(total[0], 1) for k, v in zip(list(sums)[1:], total[1:], strict=True)}
            # TRL's values of the same names are means over this rank's microbatches.
            for name in own:
                self._metrics[mode].pop(name.removeprefix("eval_"), None)  # type: ignore[attr-defined]
        logs.update(own)
        super().log(logs, start_time)

    # ------------------------------------------------ checkpoints

    def trained(self) -> "dict[str, Parameter]":
        """The parameters of the adapter being trained, by name."""
        assert self.model is not None
        return {k: p for k, p in self.model.named_parameters() if f".{self.adapter}." in k}

    def write_adapter(self, folder: Path) -> None:
        """Writes the adapter's float32 weights, on rank 0; every rank has to call it."""
        with deepspeed.gathered_float32(list(self.trained().values()), self.run.zero_stage):
            if self.run.is_main:
                model = self.run.model
                adapters.save(self.peft_model, self.adapter, folder, model.path, model.revision)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.write_adapter(Path(str(output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with refusals_explained(self.run.work):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with checkpoints.loading(Path(resume_from_checkpoint)):
            adapters.load_tensors(cast("PeftModel", self.model), self.adapter, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.loading(Path(str(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.loading(Path(str(checkpoint))):
            super()._load_rng_state(checkpoint)

    def create_model_card(self, *_: object, **__: object) -> None:
        """No model card is written: the manifest has its facts."""
