"""Fits the persona classifier: a ModernBERT with one label per persona, chosen by macro-F1 on held-out families."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import UserError, one_of
from offscript.evaluation.classifier import predict
from offscript.evaluation.metrics import f1
from offscript.models.loading import load_tokenizer
from offscript.seeds import unit_hash
from offscript.settings import ClassifierSettings, ModelSettings
from offscript.storage.files import ensure_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

Row = Mapping[str, str]
OnStep = Callable[[int, int, dict[str, float]], None]

REPORT = "held_out.json"
MAKE_ROWS = "make rows with: python rollout.py split=classifier format=chat"


def fit(
    settings: ClassifierSettings,
    model: ModelSettings,
    rows: Sequence[Row],
    labels: Sequence[str],
    out: Path,
    callbacks: Sequence[Any] = (),
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Fits on ``rows`` ({"text", "label", "family"}) and writes the classifier to the folder ``out``.

    With ``settings.path`` null it is a small ModernBERT from random weights, with the tokenizer of ``model`` (its
    habit words are whole tokens there); otherwise the checkpoint at ``settings.path``, a folder or a hub id, with its
    own tokenizer. Whole families, a share of ``settings.validation`` of them, are held out; the epoch with the best
    macro-F1 on them is kept, and ``settings.patience`` epochs without a better one end the fit. The loss weighs labels
    so that each counts alike. Weights, gradients and the optimizer's state are in ``settings.precision``, the loss is
    in float32; on one machine the result is a function of the rows, the labels and the settings.

    ``out`` gets the HF layout (config, safetensors, tokenizer; label names in ``id2label``, in the order of
    ``labels``) and ``held_out.json``, whose content is returned (see ``report``). Checkpoints lie in
    ``.<out.name>.work`` beside it until the end; a fit that was killed starts over.

    ``callbacks`` are the Trainer's; ``on_step(step, steps, logs)`` follows every optimizer step.

    Raises:
        UserError: rows or labels that nothing can be learned from (see ``check_rows``), a checkpoint that cannot be
            loaded, a loss that is not a number.
    """
    from transformers import set_seed
    from transformers.utils import logging

    check_rows(rows, labels)
    train, held_out = split(rows, settings.validation)
    _check_covered(train, labels)
    logging.disable_progress_bar()
    work = out.parent / f".{out.name}.work"
    shutil.rmtree(work, ignore_errors=True)
    set_seed(settings.seed)  # before the weights are drawn
    tokenizer = _tokenizer(settings, model)
    classifier = _classifier(settings, tokenizer, labels)
    _check_length(settings, classifier)
    trainer = _trainer(settings, classifier, tokenizer, train, held_out, labels, work, callbacks, on_step)
    try:
        trainer.train()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    epochs = _epochs(trainer.state.log_history)
    ensure_folder(out)
    classifier.save_pretrained(out)  # the Trainer put the best epoch's weights back into it
    tokenizer.save_pretrained(out)
    result = {**report(out, train, held_out, settings.predict_batch_size), "epochs": epochs}
    write_json(out / REPORT, result)
    return result


def report(folder: Path, train: Sequence[Row], held_out: Sequence[Row], batch_size: int) -> dict[str, Any]:
    """How the classifier in ``folder`` does on ``held_out``, read back from disk as every later job reads it.

    Keys: ``macro_f1`` (mean over the labels that have held-out rows), ``accuracy``, ``loss`` (mean -ln p of the true
    label, nats), ``f1`` and ``support`` by label (``f1`` null without rows), ``labels``, ``confusion`` (rows true,
    columns predicted, in the order of ``labels``), ``n``, ``n_train``, ``families``, ``n_seen`` (held-out texts that
    also stand among the training texts), ``parameters``. The epoch was chosen on these rows, so they flatter a little.
    """
    import numpy as np

    classifier = predict.load(folder)
    labels = classifier.labels
    column = {label: i for i, label in enumerate(labels)}
    true = np.array([column[row["label"]] for row in held_out])
    probs = classifier.probabilities([row["text"] for row in held_out], batch_size)
    counts = f1.confusion(true, probs.argmax(axis=1), len(labels))
    support = f1.emitted_support(counts)
    scores = f1.per_persona_f1(counts)
    seen = {row["text"] for row in train}
    return {
        "macro_f1": float(scores[support > 0].mean()),
        "accuracy": f1.accuracy(counts),
        "loss": float(-np.log(np.maximum(probs[np.arange(len(true)), true], 1e-300)).mean()),
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
        "parameters": sum(p.numel() for p in classifier.model.parameters()),
    }


# ---------------------------------------------------------------- rows


def check_rows(rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Refuses what nothing can be learned from.

    Raises:
        UserError: fewer than two labels, a label given twice, an empty text, a label that is not in ``labels``, a
            label without rows, fewer than two families.
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
    if len(families := {row["family"] for row in rows}) < 2:
        raise UserError(
            "classifier rows",
            f"all of one family ({families.pop()})",
            "at least two: one to fit, one held out",
        )


def split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """``rows`` as (training, held out), family by family: the ``share`` of families (at least one) that hash lowest."""
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


def label_weights(rows: Sequence[Row], labels: Sequence[str]) -> list[float]:
    """Loss weight of each label, n / (labels * n_label): its rows weigh as much as any other label's; mean 1 over rows."""
    counts = Counter(row["label"] for row in rows)
    return [len(rows) / (len(labels) * counts[label]) for label in labels]


# ---------------------------------------------------------------- the network


def _tokenizer(settings: ClassifierSettings, model: ModelSettings) -> "PreTrainedTokenizerBase":
    """What turns a text into ids with one plain call, truncation at ``settings.max_length`` included when saved."""
    if settings.path is None:
        tokenizer = _as_encoder(load_tokenizer(model))
    else:
        tokenizer = predict.load_tokenizer(settings.path, settings.revision, "classifier.path")
    tokenizer.model_max_length = settings.max_length
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _as_encoder(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A chat model's tokenizer that wraps a text as ``[cls] text [sep]``, its begin and end tokens taking those parts.

    Rewrapped in the generic class: the class of a chat model may set its own begin token again when it is loaded.
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
        unk_token=tokenizer.unk_token, pad_token=tokenizer.pad_token or "[PAD]", cls_token=cls, sep_token=sep,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    encoder.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, encoder.cls_token_id), (sep, encoder.sep_token_id)]
    )
    return encoder


def _classifier(
    settings: ClassifierSettings, tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]
) -> "PreTrainedModel":
    import torch
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if settings.path is not None:
        return predict.load_network(
            settings.path, settings.revision, "classifier.path", new_head=True, precision=settings.precision,
            classifier_pooling=settings.pooling, **names,
        )  # fmt: skip
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 3 // 2,  # ModernBERT-base: 1152 of 768
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        classifier_pooling=settings.pooling,
        embedding_dropout=settings.dropout,
        mlp_dropout=settings.dropout,
        classifier_dropout=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id, bos_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id, eos_token_id=tokenizer.sep_token_id,
        **names,
    )  # fmt: skip
    return ModernBertForSequenceClassification(config).to(getattr(torch, settings.precision))


def _check_length(settings: ClassifierSettings, classifier: Any) -> None:
    """What a checkpoint cannot read when it scores is nothing to fit it on."""
    limit = getattr(classifier.config, "max_position_embeddings", settings.max_length)
    if settings.max_length > limit:
        raise UserError(
            "classifier.max_length", f"{settings.max_length} tokens, but {settings.path} reads {limit}",
            f"allowed: up to {limit}",
        )  # fmt: skip


# ---------------------------------------------------------------- the trainer


def _trainer(
    settings: ClassifierSettings,
    classifier: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[Row],
    held_out: Sequence[Row],
    labels: Sequence[str],
    work: Path,
    callbacks: Sequence[Any],
    on_step: OnStep | None,
) -> "Trainer":
    from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PrinterCallback, Trainer

    trainer = Trainer(
        model=classifier,
        args=_arguments(settings, work),
        train_dataset=_encode(train, tokenizer, labels),
        eval_dataset=_encode(held_out, tokenizer, labels),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=_balanced_loss(label_weights(train, labels)),
        compute_metrics=lambda found: _macro_f1(found, len(labels)),
    )
    trainer.remove_callback(PrinterCallback)  # what disable_tqdm puts in place of a progress bar
    trainer.add_callback(_stop_at_nan())
    if settings.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    if on_step:
        trainer.add_callback(_steps_to(on_step))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def _arguments(settings: ClassifierSettings, work: Path) -> Any:
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,  # below 1 it is a share of all steps
        lr_scheduler_type="linear",
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.predict_batch_size,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=False,  # that would be autocast; the weights themselves are in settings.precision
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )


def _encode(
    rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]
) -> list[dict[str, Any]]:
    ids = tokenizer([row["text"] for row in rows], truncation=True)["input_ids"]
    return [{"input_ids": i, "labels": labels.index(row["label"])} for i, row in zip(ids, rows, strict=True)]


def _balanced_loss(weights: Sequence[float]) -> Callable[..., "Tensor"]:
    """Cross-entropy with a weight per label, over the number of rows: a batch's share of labels does not rescale it."""
    import torch

    def loss(outputs: Any, labels: "Tensor", num_items_in_batch: Any = None) -> "Tensor":
        logits = outputs.logits.float()
        weight = torch.tensor(weights, dtype=logits.dtype, device=logits.device)
        return torch.nn.functional.cross_entropy(logits, labels, weight=weight, reduction="sum") / len(labels)

    return loss


def _macro_f1(found: Any, n_labels: int) -> dict[str, float]:
    counts = f1.confusion(found.label_ids, found.predictions.argmax(axis=1), n_labels)
    return {"macro_f1": float(f1.per_persona_f1(counts)[f1.emitted_support(counts) > 0].mean())}


def _steps_to(on_step: OnStep) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def __init__(self) -> None:
            self.logs: dict[str, float] = {}

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.logs = dict(kwargs["logs"])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            on_step(state.global_step, state.max_steps, self.logs)

    return Steps()


def _stop_at_nan() -> Any:
    """Ends a fit whose loss is lost as soon as it shows."""
    from transformers import TrainerCallback

    class StopAtNaN(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs["logs"]
            if not all(math.isfinite(logs[name]) for name in ("loss", "eval_loss") if name in logs):
                raise UserError(
                    "classifier.learning_rate", f"the loss is not a number any more at step {state.global_step}",
                    "use a smaller one, or classifier.precision=float32",
                )  # fmt: skip

    return StopAtNaN()


def _epochs(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Held-out scores after each epoch (the loss is the balanced one)."""
    return [
        {"epoch": round(entry["epoch"], 2), "macro_f1": entry["eval_macro_f1"], "loss": entry["eval_loss"]}
        for entry in history
        if "eval_macro_f1" in entry
    ]
