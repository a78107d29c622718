"""Fits a persona classifier with one label per persona: a ModernBERT, or one of n-grams. The best epoch, or the best
penalty, on held-out families is kept."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from offscript.errors import UserError, command_line, one_of
from offscript.evaluation.classifier import predict, tfidf
from offscript.evaluation.classifier.fits import Classifier, fit_folder
from offscript.evaluation.metrics import f1
from offscript.models.converted import model_files
from offscript.models.loading import load_tokenizer
from offscript.seeds import unit_hash
from offscript.settings import SEEDS, ClassifierSettings, ModelSettings, TfidfSettings
from offscript.storage import references
from offscript.storage.files import ensure_folder, read_record, refusals_explained, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import (
        EvalPrediction,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from transformers.modeling_outputs import SequenceClassifierOutput

Row = Mapping[str, str]
OnStep = Callable[[int, int, dict[str, float]], None]

REPORT = "held_out.json"
HELD_OUT_BATCH = 64
"""Rows of a batch when an epoch is scored."""
MAKE_ROWS = "make rows with: " + command_line("rollout", "split=classifier", "format=chat")


class Families(TypedDict):
    """Numbers of families."""

    train: int
    held_out: int


class Epoch(TypedDict):
    """Held-out scores after an epoch; ``loss`` is the weighted training loss."""

    epoch: float
    macro_f1: float
    loss: float


class Penalty(TypedDict):
    """Held-out scores of a classifier of n-grams with the inverse penalty ``c``; None if nothing is held out."""

    c: float
    macro_f1: float | None
    loss: float | None


class Report(TypedDict):
    """Held-out scores of a classifier. Without held-out rows, ``macro_f1``, ``accuracy`` and ``loss`` are None.

    Args:
        macro_f1: mean F1 of the labels that have held-out rows.
        loss: mean -ln p of the true label, in nats.
        f1: by label, None without held-out rows.
        support: held-out rows by label.
        confusion: ``[labels][labels]``; rows are true labels, columns predicted ones, in the order of ``labels``.
        n: held-out rows.
        n_train: training rows.
        n_seen: held-out texts that are also training texts.
        n_too_long: rows of more than ``row_tokens``, which are left out.
        parameters: their number.
        epochs: scores during the fit of a network.
        fits: the report of each fit, if there are several. The other scores are then those of their average.
        penalties: scores of each value of ``tfidf.c``.
    """

    macro_f1: float | None
    accuracy: float | None
    loss: float | None
    f1: dict[str, float | None]
    support: dict[str, int]
    labels: list[str]
    confusion: list[list[int]]
    n: int
    n_train: int
    families: Families
    n_seen: int
    parameters: int
    n_too_long: NotRequired[int]
    fits: NotRequired[list["Report"]]
    epochs: NotRequired[list[Epoch]]
    penalties: NotRequired[list[Penalty]]


class EncodedRow(TypedDict):
    """A row as the trainer takes it."""

    input_ids: list[int]
    labels: int


def fit(
    settings: ClassifierSettings,
    model: ModelSettings,
    rows: Sequence[Row],
    labels: Sequence[str],
    out: Path,
    callbacks: Sequence["TrainerCallback"] = (),
    on_step: OnStep | None = None,
) -> Report:
    """Fits a classifier on ``rows`` ({"text", "label", "family"}), of the kind of ``settings``, and writes it to the folder
    ``out``, with ``held_out.json``, whose content is returned.

    A share of ``settings.validation`` of the families is held out. With ``settings.class_weights`` all labels have equal
    total weight. On one machine the result is a function of the rows, the labels and the settings.

    Args:
        callbacks: further callbacks of the Trainer of a network.
        on_step: called with (step, steps, logs) after every optimizer step of a network.

    Raises:
        UserError: invalid rows or labels (see ``check_rows``), a checkpoint that cannot be loaded, a loss that is NaN or
            infinite, or texts without n-grams.
    """
    check_rows(rows, labels, settings.validation)
    if settings.tfidf is not None:
        result = _fit_tfidf(settings.tfidf, settings, rows, labels, out)
    else:
        tokenizer = _tokenizer(settings, model)
        data = _tokenize(settings, tokenizer, rows, labels)
        if settings.fits == 1:
            result = _fit_network(settings, tokenizer, data, labels, out, callbacks, on_step)
        else:
            result = _fit_networks(settings, tokenizer, data, labels, out, callbacks, on_step)
    write_json(out / REPORT, result)
    return result


@dataclass(frozen=True)
class Tokenized:
    """The rows of a fit with the token ids of their texts, which all fits and epochs share. ``n_too_long``: rows that were
    left out."""

    train: list[Row]
    held_out: list[Row]
    train_ids: list[list[int]]
    held_out_ids: list[list[int]]
    n_too_long: int


def _fit_networks(
    settings: ClassifierSettings,
    tokenizer: "PreTrainedTokenizerBase",
    data: Tokenized,
    labels: Sequence[str],
    out: Path,
    callbacks: Sequence["TrainerCallback"],
    on_step: OnStep | None,
) -> Report:
    """Writes ``settings.fits`` networks, which differ in their seed. Those that an interrupted call has finished are kept."""
    reports = []
    for number in range(settings.fits):
        folder = fit_folder(out, number)
        if not (folder / REPORT).exists():
            shutil.rmtree(folder, ignore_errors=True)
            seed = (settings.seed + number) % SEEDS
            of_fit = settings.model_copy(update={"seed": seed, "fits": 1})
            in_all = _in_all(on_step, number, settings.fits)
            report = _fit_network(of_fit, tokenizer, data, labels, folder, callbacks, in_all)
            write_json(folder / REPORT, report)
        reports.append(read_record(folder / REPORT, Report))
    averaged = predict.load(out, batch_tokens=settings.predict_batch_tokens)
    result = _report(averaged, data.train, data.held_out)
    result["fits"] = reports
    return result


def _in_all(on_step: OnStep | None, number: int, fits: int) -> OnStep | None:
    """``on_step`` for the steps of one fit, as steps of all fits."""
    if on_step is None:
        return None
    return lambda step, steps, logs: on_step(number * steps + step, fits * steps, logs)


def _fit_tfidf(
    choice: TfidfSettings,
    settings: ClassifierSettings,
    rows: Sequence[Row],
    labels: Sequence[str],
    out: Path,
) -> Report:
    """Writes the classifier of n-grams whose ``c`` has the best macro-F1 on held-out families; of equal ones, the least
    loss."""
    train, held_out = split(rows, settings.validation)
    _check_covered(train, labels)
    texts, true = [row["text"] for row in train], [row["label"] for row in train]
    fitted = tfidf.fit_each(choice, choice.c, texts, true, labels, settings.class_weights)
    # They have the same n-grams, and so the same features of a text.
    features = fitted[0].features([row["text"] for row in held_out]) if held_out else None
    reports = [
        _report(one, train, held_out, None if features is None else one.of_features(features))
        for one in fitted
    ]
    best = max(range(len(fitted)), key=lambda i: (reports[i]["macro_f1"] or 0, -(reports[i]["loss"] or 0)))
    fitted[best].save(out)
    result = _report(predict.load(out), train, held_out)
    result["penalties"] = [
        {"c": c, "macro_f1": one["macro_f1"], "loss": one["loss"]}
        for c, one in zip(choice.c, reports, strict=True)
    ]
    return result


def _fit_network(
    settings: ClassifierSettings,
    tokenizer: "PreTrainedTokenizerBase",
    data: Tokenized,
    labels: Sequence[str],
    out: Path,
    callbacks: Sequence["TrainerCallback"],
    on_step: OnStep | None,
) -> Report:
    """Writes a fitted ModernBERT.

    With ``settings.path`` null the network is a small ModernBERT with random weights; otherwise it is the checkpoint at
    ``settings.path``, a folder or a hub id. The epoch with the
    best held-out macro-F1 is kept; after ``settings.patience`` epochs without improvement the fit stops. If none is held
    out, the last epoch is kept. Weights, gradients and optimizer state are in ``settings.precision``, the loss is in
    float32.

    ``out`` gets the Hugging Face layout (config, safetensors, tokenizer; ``id2label`` in the order of ``labels``).
    Checkpoints are in ``.<out.name>.work`` beside it until the end; an interrupted fit starts again from the beginning.
    """
    from transformers import set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()
    work = out.parent / f".{out.name}.work"
    shutil.rmtree(work, ignore_errors=True)
    # The seed is set before the weights are initialized.
    set_seed(settings.seed)
    classifier = _classifier(settings, tokenizer, labels)
    _check_length(settings, classifier)
    trainer = _trainer(settings, classifier, tokenizer, data, labels, work, callbacks, on_step)
    try:
        trainer.train()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    ensure_folder(out)
    # With held-out rows, the Trainer has loaded the weights of the best epoch (load_best_model_at_end).
    with refusals_explained(out):
        classifier.save_pretrained(out)
        tokenizer.save_pretrained(out)
    # As every later job loads it, also without held-out rows: that checks its files.
    loaded = predict.load_network_classifier(out, batch_tokens=settings.predict_batch_tokens)
    result = _report(loaded, data.train, data.held_out, loaded.of_tokens(data.held_out_ids))
    result["epochs"] = _epochs(trainer.state.log_history)
    if settings.row_tokens is not None:
        result["n_too_long"] = data.n_too_long
    return result


def _report(
    classifier: Classifier,
    train: Sequence[Row],
    held_out: Sequence[Row],
    probs: "NDArray[np.float64] | None" = None,
) -> Report:
    """Scores of ``classifier`` on ``held_out``; ``probs`` are its probabilities, None: they are computed here.

    They are slightly optimistic, because the best epoch was chosen on the same rows.
    """
    import numpy as np

    labels = classifier.labels
    column = {label: i for i, label in enumerate(labels)}
    true = np.array([column[row["label"]] for row in held_out], dtype=int)
    if probs is None:
        probs = classifier.probabilities([row["text"] for row in held_out])
    p_true = np.maximum(probs[np.arange(len(true)), true], 1e-300)
    counts = f1.confusion(true, probs.argmax(axis=1), len(labels))
    support = f1.emitted_support(counts)
    scores = f1.per_persona_f1(counts)
    seen = {row["text"] for row in train}
    return {
        "macro_f1": float(scores[support > 0].mean()) if held_out else None,
        "accuracy": f1.accuracy(counts),
        "loss": float(-np.log(p_true).mean()) if held_out else None,
        "f1": {label: float(scores[i]) if support[i] else None for i, label in enumerate(labels)},
        "support": {label: int(support[i]) for i, label in enumerate(labels)},
        "labels": labels,
        "confusion": counts[:, : len(labels)].tolist(),
        "n": len(held_out),
        "n_train": len(train),
        "families": {
            "train": len({r["family"] for r in train}),
            "held_out": len({r["family"] for r in held_out}),
        },
        "n_seen": sum(row["text"] in seen for row in held_out),
        "parameters": classifier.parameters,
    }


# ---------------------------------------------------------------- rows


def check_rows(rows: Sequence[Row], labels: Sequence[str], validation: float) -> None:
    """Checks that a classifier can be fitted, with a share ``validation`` of the families held out.

    Raises:
        UserError: fewer than two labels, a label given twice, an empty text, a label that is not in ``labels``, a
            label without rows, or fewer than two families of which one has to be held out.
    """
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise UserError(
            "classifier labels", f"{', '.join(labels) or 'none'}", "allowed: at least two, each named once"
        )
    for number, row in enumerate(rows, start=1):
        where = f"classifier row {number} (family {row['family']})"
        if not (row["text"] or "").strip():
            raise UserError(where, "its text is empty", "leave out episodes without text")
        if row["label"] not in labels:
            raise UserError(where, f"unknown label {row['label']!r}", one_of(labels))
    if bare := [label for label in labels if label not in {row["label"] for row in rows}]:
        raise UserError("classifier rows", f"none of label {', '.join(bare)}", MAKE_ROWS)
    if validation and len(families := {row["family"] for row in rows}) < 2:
        raise UserError(
            "classifier rows",
            f"all of one family ({families.pop()})",
            "at least two: one to fit, one held out",
        )


def split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """``rows`` as (training, held-out). The ``share`` of families with the lowest hashes, at least one unless it is 0, is
    held out."""
    if not share:
        return list(rows), []
    ranked = sorted({row["family"] for row in rows}, key=lambda family: unit_hash("held out", family))
    held = set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
    return [r for r in rows if r["family"] not in held], [r for r in rows if r["family"] in held]


def _check_covered(train: Sequence[Row], labels: Sequence[str]) -> None:
    if bare := [label for label in labels if label not in {row["label"] for row in train}]:
        raise UserError(
            "classifier rows",
            f"all rows of label {', '.join(bare)} are in the families held out",
            "more families per label, or a smaller classifier.validation",
        )


def _tokenize(
    settings: ClassifierSettings,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    labels: Sequence[str],
) -> Tokenized:
    """``rows`` with their tokens, as training and held-out rows.

    Rows of more than ``settings.row_tokens`` tokens, those of begin and end included, are left out.
    """
    kept = _short_rows(rows, tokenizer, settings.row_tokens)
    train, held_out = split(kept, settings.validation)
    _check_covered(train, labels)
    train_ids, held_out_ids = (
        tokenizer([row["text"] for row in part], truncation=True)["input_ids"] if part else []
        for part in (train, held_out)
    )
    return Tokenized(train, held_out, train_ids, held_out_ids, len(rows) - len(kept))


def _short_rows(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", limit: int | None) -> list[Row]:
    """The rows whose texts have at most ``limit`` tokens, those of begin and end included."""
    if limit is None:
        return list(rows)
    lengths = (len(ids) for ids in tokenizer([row["text"] for row in rows], truncation=False)["input_ids"])
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if not kept:
        raise UserError("classifier.row_tokens", f"{limit}, and every text has more", "a larger one, or null")
    return kept


def label_weights(rows: Sequence[Row], labels: Sequence[str]) -> list[float]:
    """Loss weight of each label, n / (labels * n_label): labels have equal total weight, and the mean over rows is 1."""
    counts = Counter(row["label"] for row in rows)
    return [len(rows) / (len(labels) * counts[label]) for label in labels]


# ---------------------------------------------------------------- the network


def _tokenizer(settings: ClassifierSettings, model: ModelSettings) -> "PreTrainedTokenizerBase":
    """The tokenizer of the classifier; its ``model_max_length``, which is saved, is ``settings.max_length``."""
    if settings.path is None:
        tokenizer = _as_encoder(load_tokenizer(model))
    else:
        tokenizer = predict.load_tokenizer(*_checkpoint(settings), "classifier.path")
    tokenizer.model_max_length = settings.max_length
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _checkpoint(settings: ClassifierSettings) -> tuple[str, str | None]:
    """Path and revision of the checkpoint that fitting starts from: a folder on this machine, or a hub id."""
    assert settings.path is not None
    path = references.local_path(settings)
    return (settings.path, settings.revision) if path is None else (str(model_files(path)), None)


def _as_encoder(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The tokenizer of a chat model as that of an encoder: a text becomes ``[cls] text [sep]``, with the model's begin and
    end tokens as cls and sep.

    It is of the generic class, because the class of a chat model may restore its own begin token when it is loaded.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if not tokenizer.is_fast:
        raise UserError(
            "model.path", "its tokenizer has no tokenizer.json", "classifier.path: a checkpoint to fit"
        )
    cls, sep = tokenizer.bos_token or "[CLS]", tokenizer.eos_token or "[SEP]"
    encoder = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token or "[PAD]",
        cls_token=cls,
        sep_token=sep,
        model_input_names=["input_ids", "attention_mask"],
    )
    encoder.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, encoder.cls_token_id), (sep, encoder.sep_token_id)]
    )
    return encoder


def _classifier(
    settings: ClassifierSettings, tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]
) -> "PreTrainedModel":
    import torch
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    id2label = dict(enumerate(labels))
    label2id = {label: i for i, label in enumerate(labels)}
    if settings.path is not None:
        return predict.load_network(
            *_checkpoint(settings),
            "classifier.path",
            new_head=True,
            precision=settings.precision,
            **_pooling(settings),
            id2label=id2label,
            label2id=label2id,
        )
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        # The ratio of ModernBERT-base: 1152 / 768.
        intermediate_size=settings.hidden_size * 3 // 2,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        classifier_pooling=settings.pooling,
        embedding_dropout=settings.dropout,
        mlp_dropout=settings.dropout,
        classifier_dropout=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        bos_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        eos_token_id=tokenizer.sep_token_id,
        id2label=id2label,
        label2id=label2id,
    )
    return ModernBertForSequenceClassification(config).to(getattr(torch, settings.precision))


def _pooling(settings: ClassifierSettings) -> dict[str, Any]:
    """``settings.pooling`` as an entry of the checkpoint's config.

    Raises:
        UserError: the architecture of the checkpoint pools in its own way, by its first token.
    """
    config = predict.load_config(*_checkpoint(settings), "classifier.path")
    if hasattr(config, "classifier_pooling"):
        return {"classifier_pooling": settings.pooling}
    if settings.pooling != "cls":
        raise UserError(
            "classifier.pooling",
            f"found {settings.pooling}, and a {config.model_type} is pooled by its first token",
            "allowed: cls",
        )
    return {}


def _check_length(settings: ClassifierSettings, classifier: "PreTrainedModel") -> None:
    """Checks that the network accepts texts of ``settings.max_length`` tokens."""
    limit = getattr(classifier.config, "max_position_embeddings", settings.max_length)
    if settings.max_length > limit:
        raise UserError(
            "classifier.max_length",
            f"{settings.max_length} tokens, but {settings.path} reads {limit}",
            f"allowed: up to {limit}",
        )


# ---------------------------------------------------------------- the trainer


def _trainer(
    settings: ClassifierSettings,
    classifier: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: Tokenized,
    labels: Sequence[str],
    work: Path,
    callbacks: Sequence["TrainerCallback"],
    on_step: OnStep | None,
) -> "Trainer":
    from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PrinterCallback, Trainer

    weights = label_weights(data.train, labels) if settings.class_weights else [1.0] * len(labels)
    trainer = Trainer(
        model=classifier,
        args=_arguments(settings, work),
        train_dataset=_encoded(data.train, data.train_ids, labels),
        eval_dataset=_encoded(data.held_out, data.held_out_ids, labels) if data.held_out else None,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=_balanced_loss(weights),
        compute_metrics=lambda found: _macro_f1(found, len(labels)),
    )
    # The Trainer adds it if disable_tqdm is set.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_step_callback(on_step))
    if settings.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def _arguments(settings: ClassifierSettings, work: Path) -> "TrainingArguments":
    import torch
    from transformers import TrainingArguments

    micro = settings.micro_batch_size or settings.batch_size
    choose_epoch = settings.validation > 0
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        # A number below 1 is a share of all steps.
        warmup_steps=settings.warmup,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        per_device_eval_batch_size=HELD_OUT_BATCH,
        eval_strategy="epoch" if choose_epoch else "no",
        save_strategy="epoch" if choose_epoch else "no",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=choose_epoch,
        metric_for_best_model="macro_f1" if choose_epoch else None,
        greater_is_better=True if choose_epoch else None,
        # Batches of rows of similar length, of which little is padding.
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        seed=settings.seed,
        data_seed=settings.seed,
        # bf16=True would be autocast; here the weights themselves are in settings.precision.
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )


def _encoded(rows: Sequence[Row], ids: Sequence[list[int]], labels: Sequence[str]) -> list[EncodedRow]:
    return [{"input_ids": i, "labels": labels.index(row["label"])} for i, row in zip(ids, rows, strict=True)]


def _balanced_loss(weights: Sequence[float]) -> Callable[..., "Tensor"]:
    """Cross-entropy with a weight per label, divided by the number of rows, whatever the labels in the batch.

    ``num_items_in_batch`` are the rows of all micro batches of a step, whose losses are added.
    """
    import torch

    def loss(
        outputs: "SequenceClassifierOutput",
        labels: "Tensor",
        num_items_in_batch: "Tensor | int | None" = None,
    ) -> "Tensor":
        assert outputs.logits is not None
        logits = outputs.logits.float()
        weight = torch.tensor(weights, dtype=logits.dtype, device=logits.device)
        total = torch.nn.functional.cross_entropy(logits, labels, weight=weight, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _macro_f1(found: "EvalPrediction", n_labels: int) -> dict[str, float]:
    import numpy as np

    counts = f1.confusion(np.asarray(found.label_ids), np.asarray(found.predictions).argmax(axis=1), n_labels)
    return {"macro_f1": float(f1.per_persona_f1(counts)[f1.emitted_support(counts) > 0].mean())}


def _step_callback(on_step: OnStep | None) -> "TrainerCallback":
    """Calls ``on_step``, and raises a UserError as soon as a logged loss is NaN or infinite."""
    from transformers import TrainerCallback

    class StepCallback(TrainerCallback):
        logs: Mapping[str, float] = {}

        def on_log(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
        ) -> None:
            self.logs = kwargs["logs"]
            if not all(math.isfinite(self.logs[name]) for name in ("loss", "eval_loss") if name in self.logs):
                raise UserError(
                    "classifier.learning_rate",
                    f"the loss is not a number any more at step {state.global_step}",
                    "use a smaller one, or classifier.precision=float32",
                )

        def on_step_end(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
        ) -> None:
            if on_step:
                on_step(state.global_step, state.max_steps, dict(self.logs))

    return StepCallback()


def _epochs(history: Sequence[Mapping[str, float]]) -> list[Epoch]:
    """Held-out scores after each epoch."""
    return [
        {"epoch": round(entry["epoch"], 2), "macro_f1": entry["eval_macro_f1"], "loss": entry["eval_loss"]}
        for entry in history
        if "eval_macro_f1" in entry
    ]
