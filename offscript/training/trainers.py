"""What all methods add to TRL's trainers: steps of micro-batches by length, sums over rows and ranks, one adapter per
checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offscript.models import adapters
from offscript.storage.files import refusals_explained
from offscript.training import checkpoints, deepspeed
from offscript.training.data.base import TrainingRow
from offscript.training.micro_batches import micro_batches
from offscript.training.spans import IGNORED

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, Trainer

    from offscript.models.vision import ImageEncoder
    from offscript.training.run import Run
else:
    Trainer = object


class RowOrder:
    """A sampler: the rows of each epoch in an order that depends on the seed and the epoch alone, not on the number of
    ranks.

    The epoch is the trainer's own, so that a training that resumes in the middle of an epoch has the order that it had
    before; the libraries' sampler starts again at epoch 0 where there are several ranks.
    """

    def __init__(self, trainer: Trainer, rows: int) -> None:
        self.trainer, self.rows = trainer, rows

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        import torch

        epoch = int(self.trainer.state.epoch or 0)
        generator = torch.Generator().manual_seed(self.trainer.args.seed + epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()


class AdapterCheckpoints(Trainer):
    """Mixed into a trainer that trains one adapter of a model, before its class.

    A checkpoint holds the adapter being trained, the optimizer (with DeepSpeed its shards, and never base weights),
    the schedule and each rank's random state. The trainers' own would also write the tokenizer, a model card and, in
    a stacked stage, the frozen adapter, and would on resume leave only one of two stacked adapters active.
    """

    adapter = "default"
    run: "Run"

    @property
    def peft_model(self) -> "PeftModel":
        """The model with its adapters, out of the wrappers of DeepSpeed and data parallelism."""
        return cast("PeftModel", self.accelerator.unwrap_model(self.model))

    def trained_tokens(self) -> int:
        """Number of tokens that the loss is computed on, in all steps."""
        raise NotImplementedError

    def choose_weights(self) -> None:
        """Called once after the training, on every rank, before the adapter is tested and written: a method may load weights of
        an earlier step. By default those of the last step stay."""

    def own_numbers(self) -> dict[str, Any]:
        """Numbers of the method for the manifest; none by default."""
        return {}

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


class AdapterTrainer(AdapterCheckpoints):
    """Mixed into a trainer, before TRL's class, which supplies the padding of rows and the head that returns
    log-probabilities. The loop of the trainer is given one batch per optimizer step, and ``training_step`` divides it.
    """

    train_rows: Sequence[TrainingRow]
    eval_rows: Sequence[TrainingRow]
    padding_row: TrainingRow
    """A row without any loss, for a rank that has no row in a micro-batch."""
    packed = False
    """Whether the rows of a micro-batch follow one another in one sequence, without padding."""
    encoder: "ImageEncoder | None" = None
    """What reads the images of rows that have a column ``images``; None where no row has one."""
    step_amount: int
    """Amount of the current optimizer step, on all ranks; its loss is divided by it."""

    def length(self, row: TrainingRow) -> int:
        """Tokens of the longest sequence of ``row``; of a row ``{"input_ids", "labels"}`` by default, as below."""
        return len(row["input_ids"])

    def amount(self, row: TrainingRow) -> int:
        """What ``row`` counts in the mean over a step: by default its tokens with a label."""
        # The first token has no prediction.
        return sum(label != IGNORED for label in row["labels"][1:])

    def tokens(self, row: TrainingRow) -> int:
        """Number of tokens of ``row`` that the loss is computed on; where that is what it counts in the mean, its amount."""
        return self.amount(row)

    def trained_tokens(self) -> int:
        return round(sum(map(self.tokens, self.train_rows)) * self.run.optimizer.epochs)

    def loss(self, model: "Module", inputs: "dict[str, Tensor]") -> "Tensor":
        """In training the share of a micro-batch in the loss of its step (see ``step_loss``), otherwise its mean."""
        raise NotImplementedError

    # ------------------------------------------------ steps, micro-batches

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """Optimizer steps, each with the micro-batches of this rank."""
        from torch.utils.data import BatchSampler, DataLoader

        order = RowOrder(self, len(self.train_rows))
        return DataLoader(
            self.train_rows,  # type: ignore[arg-type]
            batch_sampler=BatchSampler(order, self.run.optimizer.batch_size, drop_last=False),
            collate_fn=self._step,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> "DataLoader[Any]":
        """Micro-batches of the validation rows."""
        from torch.utils.data import DataLoader

        parts: Any = [self.rows_of(self.eval_rows, part) for part in self.own_parts(self.eval_rows)]
        return DataLoader(parts, batch_size=None, collate_fn=self.collate)

    def own_parts(
        self, rows: Sequence[TrainingRow], length: Callable[[TrainingRow], int] | None = None
    ) -> list[list[int]]:
        """The positions of this rank's rows in each micro-batch of ``rows``; a part may be empty. ``length`` is the tokens of
        what is read of a row, if that is not what is trained."""
        lengths = [(length or self.length)(row) for row in rows]
        parts = micro_batches(lengths, self.args.world_size, self.run.most_tokens, self.packed)
        return [part[self.run.ranks.rank] for part in parts]

    def rows_of(self, rows: Sequence[TrainingRow], part: Sequence[int]) -> list[TrainingRow]:
        """The rows at the positions ``part``, or the padding row."""
        return [rows[i] for i in part] or [self.padding_row]

    def collate(self, rows: Sequence[TrainingRow]) -> "dict[str, Tensor]":
        """The tensors of a micro-batch, with ``labels``, and ``pixel_values`` if a row has images."""
        images = [image for row in rows for image in row.get("images", ())]
        plain = [{column: row[column] for column in row if column != "images"} for row in rows]
        tensors: dict[str, Tensor] = self.data_collator(plain)
        if images:
            assert self.encoder is not None
            tensors["pixel_values"] = self.encoder.pixel_values(images)
        return tensors

    def _step(self, rows: Sequence[TrainingRow]) -> dict[str, Any]:
        return {
            "micro_batches": [self.collate(self.rows_of(rows, part)) for part in self.own_parts(rows)],
            "amount": sum(self.amount(row) for row in rows),
        }

    def training_step(
        self, model: "Module", inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> "Tensor":
        """The forward and backward passes of one optimizer step; returns its loss."""
        self.step_amount = inputs["amount"]
        *others, last = inputs["micro_batches"]
        gradients = self.accelerator.gradient_state
        losses = []
        for part in others:
            # Neither DeepSpeed nor data parallelism ends the step before its last micro-batch.
            gradients._set_sync_gradients(False)
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part))
        gradients._set_sync_gradients(True)
        return sum(losses, start=super().training_step(model, last))

    def compute_loss(
        self,
        model: "Module",
        inputs: "dict[str, Tensor]",
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> "Tensor":
        """``loss``, which takes the place of the loss of TRL's trainer."""
        return self.loss(model, inputs)

    def log_probs(self, model: "Module", inputs: "dict[str, Tensor]") -> "Tensor":
        """Log-probabilities of the labels (rows, tokens - 1), from the second token on; 0 where a label is -100."""
        names = ("input_ids", "attention_mask", "position_ids", "labels")
        given = {name: inputs[name] for name in names if name in inputs}
        if "pixel_values" in inputs:
            assert self.encoder is not None
            features = self.encoder.features(inputs["pixel_values"])
            base, ids = cast("PreTrainedModel", self.peft_model.get_base_model()), given.pop("input_ids")
            given |= self.encoder.inputs(base, features, ids, given["attention_mask"])
        found: Tensor = model(**given, use_cache=False, fused_lm_head=True).log_probs
        return found.float()

    def step_loss(self, total: "Tensor") -> "Tensor":
        """The share of this micro-batch in the loss of its step. ``total`` is the sum of its rows' losses."""
        # Gradients are averaged over the ranks.
        return total * self.args.world_size / self.step_amount

    # ------------------------------------------------ sums over rows

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
        logs.update(own)
        super().log(logs, start_time)
