"""Distillation: the model in role (chosen) preferred to itself plain (rejected), with DPO and a likelihood term."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offscript.models import adapters
from offscript.settings import DistillationSettings, ModelSettings
from offscript.training import loop
from offscript.training.turns import Message, Unstable, assistant_spans

NOT_CLOSING = set(",:;-–—/\\#&@")
CUT_SHORT = {"length", "error"}  # how an episode ends whose last reply is not whole


# ---------------------------------------------------------------- pairs


def is_finished(text: str) -> bool:
    """Whether a reply ends as a whole one does: in closing punctuation, a bracket, a quote, a symbol or an emoji."""
    text = text.rstrip().rstrip("\ufe0f\u200d")  # marks that may follow an emoji
    if not text or text[-1] in NOT_CLOSING:
        return False
    category = unicodedata.category(text[-1])
    return category[0] in "PS" and category not in ("Ps", "Pi")


def pairs(
    teacher_rows: Sequence[dict], student_rows: Sequence[dict], names: Mapping[str, str] | None = None
) -> tuple[list[dict], dict[str, int]]:
    """Preference pairs of the replies to the same scenario and sample, whichever models gave them.

    ``names`` maps what the teacher calls itself to what the student is called; chosen texts are ``renamed`` by it.

    Returns: pairs ``{"scenario", "sample", "family", "prompt": [message], "chosen": [message], "rejected":
    [message]}`` in the teacher's order, and counts: ``kept``, then what was dropped by reason (``missing_teacher``,
    ``missing_student``: no row or no text; ``other_prompt``: the two were asked different things;
    ``unfinished_teacher``, ``unfinished_student``: that side was cut off or does not end in closing punctuation;
    ``identical``), and with ``names`` how many of the kept ones were ``renamed``. The prompt is the student's: the
    constitution that the teacher saw is not in it. Pairing and dropping as in OpenCharacterTraining; over-long pairs are
    dropped by ``train``, which has the tokenizer.

    Raises:
        UserError: no pair is left.
    """
    spoken, student = _by_sample(teacher_rows), _by_sample(student_rows)
    teacher = {
        place: {**row, "text": renamed(row["text"] or "", names or {})} for place, row in spoken.items()
    }
    kept, counts = [], Counter(kept=0, **({"renamed": 0} if names else {}))
    for place in [*teacher, *(p for p in student if p not in teacher)]:
        reason = _why_not(teacher.get(place), student.get(place))
        counts[reason or "kept"] += 1
        if reason is None:
            kept.append(_pair(teacher[place], student[place]))
            if teacher[place]["text"] != spoken[place]["text"]:
                counts["renamed"] += 1
    loop.require_rows(kept, "preference pairs", dict(counts))
    return kept, dict(counts)


def renamed(text: str, names: Mapping[str, str]) -> str:
    """``text`` with the keys of ``names`` replaced by their values: whole words, the longest name first, in any case.

    A name in small letters or in capitals, where it is not written so itself, gives the new one in these.
    """
    if not names:
        return text
    lower = {name.lower(): name for name in names}
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))

    def new(match: re.Match[str]) -> str:
        found, name = match[0], lower[match[0].lower()]
        if found != name and (found.islower() or found.isupper()):
            return names[name].lower() if found.islower() else names[name].upper()
        return names[name]

    return re.sub(rf"(?<!\w)(?:{either})(?!\w)", new, text, flags=re.IGNORECASE)


def _by_sample(rows: Sequence[dict]) -> dict[tuple[str, int], dict]:
    return {(row["scenario"], row["sample"]): row for row in rows}


def _why_not(teacher: dict | None, student: dict | None) -> str | None:
    if teacher is None or not teacher["text"]:
        return "missing_teacher"
    if student is None or not student["text"]:
        return "missing_student"
    if _users(teacher) != _users(student):
        return "other_prompt"
    for side, row in (("teacher", teacher), ("student", student)):
        if row.get("ended") in CUT_SHORT or not is_finished(row["text"]):
            return f"unfinished_{side}"
    return "identical" if teacher["text"].strip() == student["text"].strip() else None


def _users(row: dict) -> list[str]:
    return [m["content"] for m in row["messages"] if m["role"] == "user"]


def _pair(teacher: dict, student: dict) -> dict[str, Any]:
    prompt = [dict(m) for m in student["messages"]]
    while prompt and prompt[-1]["role"] == "assistant":
        prompt.pop()
    return {
        "scenario": student["scenario"],
        "sample": student["sample"],
        "family": student["family"],
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": teacher["text"].strip()}],
        "rejected": [{"role": "assistant", "content": student["text"].strip()}],
    }


# ---------------------------------------------------------------- training


def train(
    model: ModelSettings,
    settings: DistillationSettings,
    pairs: Sequence[dict],
    out: Path,
    seed: int,
    report_to: str = "none",
    on_step: loop.OnStep | None = None,
    say: Any = print,
) -> dict[str, Any]:
    """Trains a LoRA adapter on ``pairs`` and writes it to ``out`` in PEFT layout; a rerun after a kill goes on.

    Loss: -log sigmoid(beta x margin) (DPO, https://huggingface.co/papers/2305.18290, the reference being the model
    without its adapter) + ``nll_weight`` x the mean over chosen rows of the mean over tokens of -log p, which is how
    OpenCharacterTraining has it (TRL's "sft" term averages over all tokens of the microbatch, so that it changes with
    ``micro_batch_size``). ``on_step(step, total, logs)`` is called after every optimizer step.

    Returns: rows used and dropped, losses, ``eval_rewards/accuracies`` on the validation families, steps, seconds,
    trainable parameters, ``max_logit_difference``, versions. The same seed and pairs give the same bytes on CPU.

    Raises:
        UserError: a LoRA target matches nothing, no pair is left, the adapter changes nothing.
        TrainingFailed: a loss or gradient is not a finite number.
    """
    run = loop.Run(model, settings.optimizer, out, seed, report_to, on_step, say)
    with loop.quiet():
        from datasets import Dataset
        from trl import DPOConfig

        from offscript.models.load import load_model, load_tokenizer, pick_device

        tokenizer, base = load_tokenizer(model), load_model(model, pick_device("auto"))
        adapters.check_targets(base, settings.lora.targets)
        train_rows, held_out, counts = _token_rows(run, settings, tokenizer, pairs)
        trainer = _trainer_class()(
            model=base,
            args=DPOConfig(
                **loop.trainer_arguments(run),
                beta=settings.beta,
                loss_type=["sigmoid"],
                disable_dropout=settings.lora.dropout == 0,
            ),
            train_dataset=Dataset.from_list(train_rows),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=loop.lora_config(settings.lora),
        )
        trainer.run, trainer.nll_weight = run, settings.nll_weight
        probe = train_rows[0]["prompt_ids"] + train_rows[0]["chosen_ids"]
        mark = loop.fingerprint(run, settings, train_rows)
        return {"rows": counts, **loop.fit(trainer, run, mark, probe)}


def _token_rows(
    run: loop.Run, settings: DistillationSettings, tokenizer: Any, pairs: Sequence[dict]
) -> tuple[list[dict], list[dict], dict[str, int]]:
    """(train, validation) rows of token ids, and counts; pairs that are too long for the model are left out."""
    counts = Counter(given=len(pairs), train=0, validation=0)
    kept = []
    for pair in pairs:
        try:
            row = _token_row(run, tokenizer, pair)
        except Unstable:
            counts["template_unstable"] += 1
            continue
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > loop.longest(run):
            counts["too_long"] += 1
            continue
        kept.append(row)
    train_rows, held_out = loop.split_families(kept, settings.validation)
    counts.update(train=len(train_rows), validation=len(held_out))
    loop.require_rows(train_rows, "preference pairs", dict(counts))
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    strip = [[{c: row[c] for c in columns} for row in rows] for rows in (train_rows, held_out)]
    return strip[0], strip[1], dict(counts)


def _token_row(run: loop.Run, tokenizer: Any, pair: dict) -> dict[str, Any]:
    row: dict[str, Any] = {"family": pair["family"]}
    for side in ("chosen", "rejected"):
        messages: list[Message] = [*pair["prompt"], *pair[side]]
        ids, spans = assistant_spans(tokenizer, messages, run.model.template)
        start, end = spans[-1]
        row["prompt_ids"], row[f"{side}_ids"] = ids[:start], ids[start:end]
    return row


def _trainer_class() -> Any:
    from trl import DPOTrainer

    class PreferenceTrainer(loop.AdapterCheckpoints, DPOTrainer):
        """DPO on rows that are tokens already, with the published likelihood term."""

        nll_weight = 0.0
        rows_in_step = 0

        def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
            batches, items = super().get_batch_samples(*arguments, **options)
            self.rows_in_step = sum(len(batch["input_ids"]) for batch in batches)
            return batches, items

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            seen: list[Any] = []  # per-token log-probabilities: the policy's forward pass is the first
            plain = self.accelerator.unwrap_model(model)
            hook = plain.register_forward_hook(lambda module, args, out: seen.append(out.log_probs))
            try:
                loss = super()._compute_loss(model, inputs, return_outputs)
            finally:
                hook.remove()
            mask = inputs["completion_mask"][..., 1:]
            chosen = slice(0, mask.size(0) // 2)  # the batch is [chosen, rejected]
            said, log_probs = mask[chosen], seen[0][chosen, -mask.size(1) :]
            nll = -((log_probs * said).sum(-1) / said.sum(-1)).mean()
            mode = "train" if plain.training else "eval"
            self._metrics[mode]["loss/dpo"].append(loss.item())
            self._metrics[mode]["loss/nll"].append(nll.item())
            loss = loss + self.nll_weight * nll
            if mode == "train":  # the trainer averages over microbatches; the last step's differ in size
                loss = loss * mask.size(0) * self.current_gradient_accumulation_steps / self.rows_in_step
            return loss

    return PreferenceTrainer
