"""Reinforcement learning of a persona: group-relative policy optimization (GRPO) on episodes in the real formats.

GRPO: Shao et al. 2024 (https://arxiv.org/abs/2402.03300). The loss is that of DAPO (https://arxiv.org/abs/2503.14476), a mean
over all sampled tokens of a step, clipped further above than below. Every reward is normalized within its group before the
weighted sum, as in GDPO (https://arxiv.org/abs/2601.05242), so that task and persona weigh what their weights say.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from offscript.errors import UserError
from offscript.seeds import stable_hash
from offscript.settings import OptimizerSettings, TrainerSettings, identity
from offscript.tasks.rows import Row
from offscript.training import watch
from offscript.training.data.base import TrainingRow, require_rows
from offscript.training.episodes import PlayedEpisode, play, sequence_of
from offscript.training.fit import fit
from offscript.training.methods.base import Method
from offscript.training.run import (
    Metrics,
    Run,
    dataset,
    fingerprint,
    longest,
    session,
    split_families,
    trainer_arguments,
)
from offscript.training.start import OWN, adapted_base, check_parent, keep_start, parent_digest
from offscript.training.trainers import AdapterCheckpoints

if TYPE_CHECKING:
    from offscript.rollouts.engines.trained import TrainedEngine

REFERENCE = "ref"
"""TRL's name of the frozen copy of the adapter that the KL divergence is measured from."""

COUNTED = ("truncated", "too_long", "no_reply", "turns_left_out", "episodes", "sampled_tokens")
"""Numbers of each step, on all ranks."""


class GRPOSettings(TrainerSettings):
    """In each of ``steps`` steps the model plays ``optimizer.batch_size`` episodes, ``group`` of each scenario, at
    ``temperature`` and without top-p.

    Rewards are weighted by ``persona_weight``, ``task_weight``, ``length_weight`` and ``recitation_weight``
    (``evaluation.rewards`` has them). A text is too long above ``length_multiple`` times the median of the untrained model's
    texts in role. ``epsilon`` and ``epsilon_high`` clip the ratio of probabilities, and ``beta`` weighs the KL divergence
    from the weights that the training starts from.

    Every ``watch_every`` steps, ``watch_episodes`` episodes of each format are played with held-out families (each scenario
    several times where there are fewer), sampled as scored ones are. The training stops when a measure that is not rewarded is
    more than ``watch_margin`` nats below its best while the reward rose (``watch.parting``); ``null`` never.
    """

    steps: int = identity(ge=1)
    group: int = identity(8, ge=2)
    temperature: float = identity(1.0, gt=0)
    beta: float = identity(0.0, ge=0)
    epsilon: float = identity(0.2, gt=0, lt=1)
    epsilon_high: float = identity(0.28, gt=0)
    persona_weight: float = identity(1.0, ge=0)
    task_weight: float = identity(1.0, ge=0)
    length_weight: float = identity(1.0, ge=0)
    recitation_weight: float = identity(1.0, ge=0)
    length_multiple: float = identity(2.0, gt=0)
    watch_every: int = identity(10, ge=1)
    watch_episodes: int = identity(24, ge=1)
    watch_margin: float | None = identity(1.0, ge=0)


def train(run: Run, episodes: Sequence[TrainingRow]) -> Metrics:
    """Trains a copy of the parent's adapter on episodes that it plays itself, and writes it to ``run.out``.

    The tokens that are trained are those that were sampled, with their ids (``episodes.sequence_of``). Replies are a function
    of ``run.seed``, the step, the scenario and the weights, so that a training that resumes plays the same ones. Resuming,
    several ranks and what is raised are as in ``dpo.train``.

    Args:
        run: ``run.settings`` are GRPOSettings, and ``run.live`` is given.
        episodes: rows ``{"format", "scenario", "family"}``, the episodes that can be played.

    Raises:
        UserError: the batch does not consist of whole groups for each process, there are fewer scenarios than a step needs,
            or the weights are sharded (ZeRO stage 3).
    """
    settings, live = run.settings, run.live
    assert isinstance(settings, GRPOSettings) and live is not None
    check(settings, run.ranks.world_size, run.zero_stage, "training")
    check_parent(run)
    with session(run):
        from offscript.models.loading import load_tokenizer

        train_rows, held_out = split_families(episodes, settings.validation)
        counts = Counter(given=len(episodes), train=len(train_rows), validation=len(held_out))
        require_rows(train_rows, "episodes", counts)
        arguments = _arguments(run, settings)
        wrapped = adapted_base(run)
        if settings.beta:
            keep_start(run, wrapped, OWN, REFERENCE)
        tokenizer = load_tokenizer(run.model)
        planned = schedule(train_rows, settings, run.seed)
        trainer = _trainer_class()(
            model=wrapped,
            args=arguments,
            reward_funcs=[_reward(name) for name in weights_of(settings)],
            rollout_func=lambda prompts, trainer: trainer.play_step(prompts),
            train_dataset=dataset([{"prompt": str(i)} for i in range(len(planned))]),
            processing_class=tokenizer,
        )
        # TRL would copy an adapter of another name.
        trainer.beta = settings.beta
        trainer.run, trainer.planned = run, planned
        trainer.watched = watched_episodes(held_out, settings.watch_episodes)
        if trainer.watched:
            trainer.add_callback(watch.callback(trainer, settings.watch_every, settings.watch_margin))
        else:
            run.say("  no family is held out (validation), so the training is not watched")
        watched = [row for row, _ in trainer.watched]
        mark = fingerprint(run, [*planned, *watched], *live.identity, *parent_digest(run))
        probe: list[int] = tokenizer("Hello.")["input_ids"]
        try:
            return {"rows": dict(counts), **fit(trainer, run, mark, probe)}
        finally:
            trainer.close_engine()


def check(settings: GRPOSettings, processes: int, zero_stage: int | str, where: str) -> None:
    """Checks that each of ``processes`` has the whole weights and plays whole groups, and that the steps are not given twice;
    ``where`` is the config key of ``settings``.

    Raises:
        UserError: one of these is not so.
    """
    optimizer = settings.optimizer
    if zero_stage == 3:
        raise UserError(
            "deepspeed.stage",
            "3, but the weights that are trained also generate, and each process needs all of them",
            "allowed: deepspeed=off, zero2 or zero2_offload",
        )
    if optimizer.epochs != 1:
        raise UserError(
            f"{where}.optimizer.epochs", f"{optimizer.epochs:g}, but grpo has steps", "allowed: 1"
        )
    if optimizer.batch_size % (settings.group * processes):
        raise UserError(
            f"{where}.optimizer.batch_size",
            f"{optimizer.batch_size} episodes a step in groups of {settings.group} on {processes} processes",
            f"a multiple of {settings.group * processes}",
        )


def schedule(rows: Sequence[TrainingRow], settings: GRPOSettings, seed: int) -> list[TrainingRow]:
    """The scenarios of all steps in order, ``batch_size / group`` of each step. In every pass over ``rows`` they have another
    order, and no step has a scenario twice: the rest of a pass that makes no whole step is left out.

    Raises:
        UserError: there are fewer than a step needs.
    """
    of_step = settings.optimizer.batch_size // settings.group
    if len(rows) < of_step:
        raise UserError(
            "optimizer.batch_size",
            f"{of_step} scenarios a step, but there are {len(rows)}",
            "a smaller batch, a larger group, or more prompts and scenarios",
        )
    whole = len(rows) - len(rows) % of_step
    found: list[TrainingRow] = []
    turn = 0
    while len(found) < settings.steps * of_step:

        def position(row: TrainingRow, turn: int = turn) -> int:
            return stable_hash("order", seed, turn, row["format"], row["scenario"])

        found += sorted(rows, key=position)[:whole]
        turn += 1
    return found[: settings.steps * of_step]


def watched_episodes(rows: Sequence[TrainingRow], count: int) -> list[tuple[TrainingRow, int]]:
    """The episodes of each format that are watched: rows in the order of a hash, and how often each is played. They are at
    least ``count``, and at most as many more as there are scenarios."""
    chosen: list[tuple[TrainingRow, int]] = []
    for name in dict.fromkeys(row["format"] for row in rows):
        own = [row for row in rows if row["format"] == name]
        first = sorted(own, key=lambda row: stable_hash("watched", row["scenario"]))[:count]
        chosen += [(row, -(-count // len(first))) for row in first]
    return chosen


def weights_of(settings: GRPOSettings) -> dict[str, float]:
    """Reward -> its weight."""
    return {
        "persona": settings.persona_weight,
        "task": settings.task_weight,
        "length": settings.length_weight,
        "recitation": settings.recitation_weight,
    }


def _reward(name: str) -> Callable[..., Sequence[float | None]]:
    """A reward function of TRL that returns what the episodes were scored with."""

    def reward(**fields: Any) -> Sequence[float | None]:
        found: Sequence[float | None] = fields[f"reward_{name}"]
        return found

    reward.__name__ = name
    return reward


def _arguments(run: Run, settings: GRPOSettings) -> Any:
    from trl import GRPOConfig

    common = trainer_arguments(run)
    del common["max_length"]
    own = common["per_device_train_batch_size"]
    micro = micro_batch(settings.optimizer, own)
    return GRPOConfig(
        **{
            **common,
            "num_train_epochs": 1,
            "max_steps": settings.steps,
            "per_device_train_batch_size": micro,
            "per_device_eval_batch_size": settings.group,
            "gradient_accumulation_steps": own // micro,
            "steps_per_generation": own // micro,
        },
        num_generations=settings.group,
        max_completion_length=longest(run),
        temperature=settings.temperature,
        beta=0.0,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        loss_type="dapo",
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=list(weights_of(settings).values()),
        # ``sequence_of`` masks what was cut.
        mask_truncated_completions=False,
        shuffle_dataset=False,
    )


def micro_batch(optimizer: OptimizerSettings, rows: int) -> int:
    """Rows of a forward pass: the largest divisor of ``rows`` up to ``micro_batch_size``."""
    return max(n for n in range(1, optimizer.micro_batch_size + 1) if rows % n == 0)


def _trainer_class() -> "Callable[..., Any]":
    import functools
    import shutil
    from pathlib import Path

    import torch
    from accelerate.utils import gather_object
    from torch import Tensor
    from torch.nn.functional import pad
    from transformers import Trainer
    from trl import GRPOTrainer
    from trl.trainer.utils import split_tensor_dict

    from offscript.models.adapters import load_tensors

    class PolicyTrainer(AdapterCheckpoints, GRPOTrainer):
        adapter = OWN
        planned: Sequence[TrainingRow]
        watched: Sequence[tuple[TrainingRow, int]]
        micro_batches: list[dict[str, Tensor | None]]
        chosen: Path | None = None

        @functools.cached_property
        def engine(self) -> "TrainedEngine":
            from offscript.rollouts.engines.trained import TrainedEngine

            assert self.run.live is not None
            settings = self.run.live.engine.model_copy(update={"device": str(self.accelerator.device)})
            return TrainedEngine(self.run.model, self.peft_model, OWN, settings)

        def close_engine(self) -> None:
            """Takes the engine off the model, if there is one."""
            if "engine" in self.__dict__:
                self.engine.close()

        def play_step(self, prompts: Sequence[str]) -> Mapping[str, Any]:
            """The episodes of one step on this rank, as TRL takes them. ``prompts`` are positions in ``planned``, each
            repeated for the whole group."""
            run, settings = self.run, self.run.settings
            assert isinstance(settings, GRPOSettings) and run.live is not None
            positions = [int(prompt) for prompt in prompts[:: settings.group]]
            of_step = settings.optimizer.batch_size // settings.group
            assert [str(p) for p in positions for _ in range(settings.group)] == list(prompts)
            assert {p // of_step for p in positions} == {self.state.global_step}
            places = [(self.planned[p]["format"], self.planned[p]["scenario"]) for p in positions]
            played = play(
                self.engine,
                run.live,
                places,
                settings.group,
                f"{run.seed}/{self.state.global_step}",
                settings.temperature,
            )
            assert len(played) == len(prompts)
            return self._as_trl(played)

        def _as_trl(self, played: Sequence[PlayedEpisode]) -> Mapping[str, Any]:
            assert self.run.live is not None
            padding = self.engine.tokenizer.pad_token_id
            found = [sequence_of(episode, longest(self.run), padding) for episode in played]
            own = Counter(sequence.why for sequence in found if sequence.why)
            own["turns_left_out"] = sum(sequence.left_out for sequence in found)
            own["episodes"] = len(found)
            own["sampled_tokens"] = sum(sum(sequence.mask) for sequence in found)
            numbers = torch.tensor([float(own[name]) for name in COUNTED], device=self.accelerator.device)
            for name, value in zip(COUNTED, self.accelerator.reduce(numbers, "sum").tolist(), strict=True):
                self._metrics["train"][f"episodes/{name}"].append(value)
            settings = self.run.settings
            assert isinstance(settings, GRPOSettings)
            rows = [episode.row for episode in played]
            rewards = self.run.live.scorer.rewards(rows, settings.length_multiple)
            return {
                "prompt_ids": [sequence.prompt for sequence in found],
                "completion_ids": [sequence.completion for sequence in found],
                "logprobs": [sequence.log_probs for sequence in found],
                "env_mask": [sequence.mask for sequence in found],
                **{f"reward_{name}": list(values) for name, values in rewards.items()},
            }

        # ------------------------------------------------ micro-batches

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            """The micro-batches of a step by length, in place of TRL's random order, so that little of them is padding."""
            parts: int = self.args.gradient_accumulation_steps
            if self._step % parts == 0:
                made = self._generate_and_score_completions(generation_batch)
                lengths = made["prompt_mask"].sum(1) + made["completion_mask"].sum(1)
                order = lengths.argsort(stable=True)
                by_length = {k: v[order] if v is not None and v.dim() else v for k, v in made.items()}
                self.micro_batches = split_tensor_dict(by_length, parts)
            return self.micro_batches[self._step % parts]

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: Tensor,
            attention_mask: Tensor,
            logits_to_keep: int,
            batch_size: int | None = None,
            **options: Any,
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            """As TRL's, without the columns that are padding in all rows of a forward pass; zero there."""
            found: list[tuple[Tensor, Tensor | None]] = []
            start = input_ids.size(1) - logits_to_keep
            for rows in torch.arange(len(input_ids)).split(batch_size or len(input_ids)):
                present = attention_mask[rows].any(0).nonzero()
                first, end = int(present[0]), max(int(present[-1]) + 1, start + 1)
                of_rows = super()._get_per_token_logps_and_entropies(
                    model, input_ids[rows, first:end], attention_mask[rows, first:end], end - start, **options
                )
                after = input_ids.size(1) - end
                found.append(tuple(None if t is None else pad(t, (0, after)) for t in of_rows[:2]))  # type: ignore[arg-type]
            log_probs, entropies = zip(*found, strict=True)
            together = None if entropies[0] is None else torch.cat(cast("list[Tensor]", list(entropies)))
            return torch.cat(log_probs), together, None

        # ------------------------------------------------ watching

        def measure(self) -> dict[str, float]:
            """The measures of the watched episodes, which have the same seeds at every point."""
            live = self.run.live
            assert live is not None
            own = self.watched[self.run.ranks.rank :: self.run.ranks.world_size]
            played: list[PlayedEpisode] = []
            for samples in sorted({samples for _, samples in own}):
                places = [(row["format"], row["scenario"]) for row, often in own if often == samples]
                played += play(self.engine, live, places, samples, f"{self.run.seed}/watched")
            rows: list[Row] = gather_object([episode.row for episode in played])
            rows = sorted(rows, key=lambda row: (row["format"], row["scenario"], row["sample"]))
            return watch.broadcast(live.scorer.measures(rows) if self.run.is_main else None)

        def log_point(self, measures: Mapping[str, float]) -> None:
            """Logs ``measures`` apart from those of the step, which TRL would take along and which are still to be logged."""
            pending = self.control.should_log
            Trainer.log(self, dict(measures))
            self.control.should_log = pending

        @property
        def parted(self) -> "watch.Parting | None":
            settings = self.run.settings
            assert isinstance(settings, GRPOSettings)
            return watch.parting(watch.curve_of(self.state.log_history), settings.watch_margin)

        def choose_weights(self) -> None:
            """Those from before a parting, if there was one."""
            if (found := self.parted) is not None:
                self.chosen = watch.folder_of(self.run.work, found.best)
                load_tensors(self.peft_model, OWN, self.chosen)

        def write_adapter(self, folder: Path) -> None:
            """Writes the weights; after ``choose_weights``, the chosen ones: DeepSpeed's float32 copies are still those of the
            last step."""
            if self.chosen is None:
                super().write_adapter(folder)
            elif self.run.is_main:
                shutil.copytree(self.chosen, folder, dirs_exist_ok=True)

        def trained_tokens(self) -> int:
            return int(self._logged("sampled_tokens"))

        def own_numbers(self) -> dict[str, Any]:
            """The curve, why it was stopped, the step whose weights are kept, and counts of episodes."""
            found = self.parted
            return {
                "curve": watch.curve_of(self.state.log_history),
                "stopped": str(found) if found else None,
                "kept_step": found.best if found else self.state.global_step,
                "played": {name: int(self._logged(name)) for name in COUNTED if name != "sampled_tokens"},
            }

        def _logged(self, name: str) -> float:
            values = (entry.get(f"episodes/{name}", 0.0) for entry in self.state.log_history)
            return sum(values, start=0.0)

    return PolicyTrainer


def episodes_of(settings: GRPOSettings) -> tuple[int, int, int]:
    """Numbers of episodes that are trained on and, of each format, watched; and passes of the reference over the former."""
    points = 1 + -(-settings.steps // settings.watch_every)
    return (
        settings.steps * settings.optimizer.batch_size,
        points * settings.watch_episodes,
        int(settings.beta > 0),
    )


METHOD = Method(
    name="grpo",
    settings=GRPOSettings,
    takes="episodes",
    train=train,
    continues=True,
    plays=episodes_of,
    check=check,
)
