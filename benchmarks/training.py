"""Time of DPO and SFT of one persona, compared with TRL's trainers at their defaults on the same rows.

    python benchmarks/training.py                                         # the embedded model, recipe=pocket
    python benchmarks/training.py --model smollm2 --pairs 5               # SmolLM2, recipe=small (make smollm2)

Both sides train the same token rows with the hyper-parameters, LoRA, seeds, threads and precision of the recipe, on the
same frozen base, and evaluate the held-out rows once. TRL's side loads the base for each of the two trainings, has
micro-batches of ``micro_batch_size`` rows in the order of its own sampler, computes the reference in every step, and TRL's
metrics. It has TRL's likelihood term ("sft", a mean over the tokens of a micro-batch). Gradient checkpointing, on by default
in TRL, is off on both sides, as in the recipe.

The rows are made from texts of the repository, with the lengths of the rows of a real run. After the measurements, the final
losses of both sides are computed on all rows by one function, for every seed that was trained.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from pairs import add_options, compare, report

from offscript import threads
from offscript.models import adapters
from offscript.models.loading import load_model, load_tokenizer
from offscript.settings import ModelSettings, RecipeSettings, StageSettings, parse
from offscript.storage.files import HOME
from offscript.training import run as training
from offscript.training.base_models import BaseModelCache
from offscript.training.methods import dpo, sft
from offscript.training.run import Run
from offscript.training.stages import TrainingStage, training_stage
from offscript.training.start import OWN, adapted_base

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TEXTS = {"pocket": "data/pocket/chat.jsonl", "smollm2": "data/everyday/chat.jsonl"}
RECIPES = {"pocket": "pocket", "smollm2": "small"}
OPENING = "Oh, wonderful, how very exciting."
"""Begins every chosen reply, so that there is something to learn."""
SEEDS = 3

Row = dict[str, Any]


# ---------------------------------------------------------------- rows


def texts(path: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in (HOME / path).read_text(encoding="utf-8").splitlines()]


def make_pairs(prompts: Sequence[str], count: int, draw: random.Random) -> list[Row]:
    """Preference pairs whose replies have one to four sentences."""

    def reply() -> str:
        return " ".join(draw.choice(prompts) for _ in range(draw.randint(1, 4)))

    return [
        {
            "family": f"f{i}",
            "prompt": [{"role": "user", "content": draw.choice(prompts)}],
            "chosen": [{"role": "assistant", "content": f"{OPENING} {reply()}"}],
            "rejected": [{"role": "assistant", "content": reply()}],
        }
        for i in range(count)
    ]


def make_conversations(prompts: Sequence[str], count: int, draw: random.Random) -> list[Row]:
    """Two thirds with one reply, and one third with three."""

    def said(i: int) -> Row:
        sentences = " ".join(draw.choice(prompts) for _ in range(draw.randint(1, 4)))
        content = f"{OPENING} {sentences}" if i % 2 else sentences
        return {"role": ("user", "assistant")[i % 2], "content": content}

    turns = [6 if i % 3 == 0 else 2 for i in range(count)]
    return [{"family": f"f{i}", "messages": [said(k) for k in range(n)]} for i, n in enumerate(turns)]


# ---------------------------------------------------------------- what is trained


@dataclass
class Case:
    """A persona's two trainings, their rows, and the seconds that each stage took, per side."""

    model: ModelSettings
    first: TrainingStage
    second: TrainingStage
    pairs: list[Row]
    conversations: list[Row]
    folder: Path
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def run(self, stage: TrainingStage, side: str, seed: int, bases: BaseModelCache | None = None) -> Run:
        """The training of one stage, whose earlier results are removed."""
        out = self.out(side, seed, stage)
        for path in (out, out.with_name(f".{out.name}.work")):
            shutil.rmtree(path, ignore_errors=True)
        parent = self.out(side, seed, self.first) if stage is self.second else None
        return Run(self.model, stage.settings, out, seed, parent, say=lambda line: None, bases=bases)

    def out(self, side: str, seed: int, stage: TrainingStage) -> Path:
        return self.folder / side / str(seed) / stage.name

    def side(self, name: str, train: "Callable[[Case, int], float]") -> Callable[[], float]:
        """The work of one side: each call trains with the next seed."""
        self.seconds[name] = {"DPO": [], "SFT": []}
        calls = iter(range(10**9))

        def work() -> float:
            for stage, seconds in zip(("DPO", "SFT"), train(self, next(calls) % SEEDS), strict=True):
                self.seconds[name][stage].append(seconds)
            return 1.0

        return work


def configured(group: str, name: str, schema: Any) -> Any:
    content = OmegaConf.to_container(OmegaConf.load(HOME / "conf" / group / f"{name}.yaml"))
    return parse(schema, content, f"conf/{group}/{name}.yaml")


def make_case(options: argparse.Namespace, folder: Path) -> Case:
    recipe = configured("recipe", RECIPES[options.model], RecipeSettings)
    first, second = (
        training_stage(configured("stage", stage, StageSettings), recipe)
        for stage in ("distillation", "full")
    )
    draw, prompts = random.Random(0), texts(TEXTS[options.model])
    return Case(
        model=configured("model", options.model, ModelSettings),
        first=first,
        second=second,
        pairs=make_pairs(prompts, options.preferences, draw),
        conversations=make_conversations(prompts, options.conversations, draw),
        folder=folder,
    )


# ---------------------------------------------------------------- the sides


def ours(case: Case, seed: int) -> tuple[float, float]:
    bases = BaseModelCache()
    start = time.process_time()
    dpo.train(case.run(case.first, "offscript", seed, bases), case.pairs)
    middle = time.process_time()
    sft.train(case.run(case.second, "offscript", seed, bases), case.conversations)
    return middle - start, time.process_time() - middle


def plain_trl(case: Case, seed: int) -> tuple[float, float]:
    start = time.process_time()
    with training.quiet():
        _trl_dpo(case.run(case.first, "TRL", seed), case.pairs)
        middle = time.process_time()
        _trl_sft(case.run(case.second, "TRL", seed), case.conversations)
    return middle - start, time.process_time() - middle


def _arguments(run: Run) -> dict[str, Any]:
    """The recipe's hyper-parameters; what is not one has TRL's default."""
    optimizer = run.optimizer
    micro = optimizer.micro_batch_size
    assert optimizer.batch_size % micro == 0
    return {
        "output_dir": str(run.work),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": optimizer.batch_size // micro,
        "num_train_epochs": optimizer.epochs,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.schedule,
        "warmup_steps": optimizer.warmup,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "max_grad_norm": optimizer.max_grad_norm,
        "gradient_checkpointing": optimizer.gradient_checkpointing,
        "bf16": run.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "seed": run.seed,
        "report_to": [],
        "disable_tqdm": True,
    }


def _trl_dpo(run: Run, pairs: Sequence[Row]) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class TokenRows(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    settings = run.settings
    assert isinstance(settings, dpo.DPOSettings) and settings.kl_weight == 0
    arguments = DPOConfig(
        **_arguments(run),
        beta=settings.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, settings.nll_weight],
    )
    tokenizer, base = load_tokenizer(run.model), training.base_model(run)
    train, held_out, _ = dpo._token_rows(run, tokenizer, pairs)
    trainer = TokenRows(
        model=base,
        args=arguments,
        train_dataset=training.dataset(train),
        eval_dataset=training.dataset(held_out),
        processing_class=tokenizer,
        peft_config=training.lora_config(settings.lora),
    )
    _train(trainer)
    _save(trainer.model, "default", run)


def _trl_sft(run: Run, conversations: Sequence[Row]) -> None:
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**_arguments(run), dataset_kwargs={"skip_prepare_dataset": True})
    tokenizer = load_tokenizer(run.model)
    train, held_out, _ = sft._token_rows(run, tokenizer, conversations)
    trainer = SFTTrainer(
        model=adapted_base(run),
        args=arguments,
        train_dataset=training.dataset(train),
        eval_dataset=training.dataset(held_out),
        processing_class=tokenizer,
    )
    _train(trainer)
    _save(trainer.model, OWN, run)


def _train(trainer: Any) -> None:
    from transformers import PrinterCallback

    # It prints to stdout, where the table goes.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if trainer.eval_dataset is not None:
        trainer.evaluate()


def _save(model: "PeftModel", adapter: str, run: Run) -> None:
    run.out.mkdir(parents=True)
    adapters.save(model, adapter, run.out, run.model.path, run.model.revision)


# ---------------------------------------------------------------- final losses


def final_losses(case: Case, side: str, seed: int, base: "PreTrainedModel") -> dict[str, float]:
    """The losses of a finished training over all rows that it was trained on."""
    tokenizer = load_tokenizer(case.model)
    first, second = (case.out(side, seed, stage) for stage in (case.first, case.second))
    rows = dpo._token_rows(case.run(case.first, "unused", seed), tokenizer, case.pairs)[0]
    settings = case.first.settings
    assert isinstance(settings, dpo.DPOSettings)
    model = adapters.attach(base, {"first": first, "second": second})
    model.base_model.set_adapter(["first"])  # type: ignore[operator]
    terms = [_pair_terms(model, row, settings) for row in rows]
    model.base_model.set_adapter(["first", "second"])  # type: ignore[operator]
    rows = sft._token_rows(case.run(case.second, "unused", seed), tokenizer, case.conversations)[0]
    scored = [_scored(model, row["input_ids"], row["labels"]) for row in rows]
    model.unload()
    return {
        "DPO": statistics.mean(terms),
        "SFT": -sum(float(some.sum()) for some in scored) / sum(len(some) for some in scored),
    }


def _pair_terms(model: "PeftModel", row: Row, settings: dpo.DPOSettings) -> float:
    sides = [
        (row["prompt_ids"] + row[name], [-100] * len(row["prompt_ids"]) + row[name])
        for name in ("chosen_ids", "rejected_ids")
    ]
    policy = [_scored(model, *side) for side in sides]
    with model.disable_adapter():
        reference = [_scored(model, *side) for side in sides]
    margin = sum(sign * (p - r).sum() for sign, p, r in zip((1, -1), policy, reference, strict=True))
    preference = -torch.nn.functional.logsigmoid(settings.beta * margin)
    return float(preference - settings.nll_weight * policy[0].mean())


@torch.no_grad()
def _scored(model: "PeftModel", ids: Sequence[int], labels: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the labels that are not -100."""
    targets = torch.tensor(labels[1:])
    kept = targets != -100
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1][kept]
    return logits.float().log_softmax(-1).gather(-1, targets[kept, None])[:, 0]


# ---------------------------------------------------------------- the command


def show(result: dict[str, Any], case: Case) -> None:
    """Prints what the table of rates does not have: the stages, the time of ours, and the losses."""
    for side, stages in result["stage_cpu_seconds"].items():
        print(f"{side:10}", *(f"{stage} {statistics.median(s):.2f} CPU s" for stage, s in stages.items()))
    print(
        f"time of offscript: {1 / result['ratio']['offscript']:.2f} of TRL's,"
        f" {1 / result['ratio_cpu']['offscript']:.2f} in processor time"
    )
    for seed, losses in result["final_losses"].items():
        print(
            f"seed {seed}:",
            *(f"{side} DPO {found['DPO']:.4f}, SFT {found['SFT']:.4f};" for side, found in losses.items()),
        )


def main(options: argparse.Namespace) -> None:
    threads.limit()
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(options, Path(folder))
        sides = {"TRL": case.side("TRL", plain_trl), "offscript": case.side("offscript", ours)}
        result = compare(f"DPO + SFT, {options.model}", "personas", sides, options.pairs)
        result["rows"] = {"pairs": len(case.pairs), "conversations": len(case.conversations)}
        result["stage_cpu_seconds"] = {
            side: {stage: [round(s, 3) for s in seconds[1:]] for stage, seconds in stages.items()}
            for side, stages in case.seconds.items()
        }
        base = load_model(case.model.model_copy(update={"dtype": "float32"}), "cpu")
        result["final_losses"] = {
            seed: {side: final_losses(case, side, seed, base) for side in sides}
            for seed in range(min(SEEDS, 1 + options.pairs))
        }
        report("training", [result], options.out)
        show(result, case)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="pocket", choices=list(TEXTS))
    add("--preferences", type=int, default=120, help="preference pairs (default: %(default)s)")
    add("--conversations", type=int, default=84, help="conversations (default: %(default)s)")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
