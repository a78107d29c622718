"""Jobs that make adapters: training rows, training, merging, or importing weights that were trained elsewhere."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from offscript.console import Progress, duration, say
from offscript.errors import MissingInput, UserError
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    ImportedAdapter,
    RemergedAdapter,
    Selection,
    TrainedAdapter,
)
from offscript.experiment.folder import Experiment, now, tracked, write_artifact_manifest
from offscript.experiment.jobs.live import live_episodes
from offscript.models.adapter_config import check_one_rank, ranks_of
from offscript.seeds import training_seed
from offscript.storage import hub, references
from offscript.tasks.formats.episodes import without_system
from offscript.training import ranks
from offscript.training.data.base import Counts, MakeContext, SourceRow, TrainingRow, describe
from offscript.training.episodes import LiveEpisodes
from offscript.training.fit import TrainingFailed
from offscript.training.run import Metrics, Run, check_not_sharded, longest_row, rows_per_process
from offscript.training.spans import TurnTokens


def check_settings(artifacts: Iterable[Artifact], experiment: Experiment, processes: int) -> None:
    """Checks the trainings among ``artifacts``, each on ``processes`` processes, before any of their rows is made.

    The base's configuration is needed for that, not its weights. That of a model that was not downloaded yet is checked
    when its training starts.

    Raises:
        UserError: a LoRA target, rank or batch size does not fit, a method cannot train so, or prompts with images are to be
            trained on under ZeRO-3.
    """
    from offscript.models.adapters import check_lora
    from offscript.models.loading import load_without_weights

    zero_stage = experiment.planner.settings.deepspeed.stage
    stages = {(a.base, a.stage): a.training for a in artifacts if isinstance(a, TrainedAdapter)}
    for _, training in stages.items():
        rows_per_process(training.settings.optimizer, processes, f"{training.where}.optimizer")
        if training.method.check is not None:
            training.method.check(training.settings, processes, zero_stage, training.where)
        if training.pictured:
            check_not_sharded(zero_stage, f"stage {training.name}")
    for name in dict.fromkeys(base for base, _ in stages):
        model = experiment.planner.options.model[name]
        reference = references.model_reference(model)
        if model.is_only_served or (reference is not None and hub.cached(reference) is None):
            continue
        base = load_without_weights(model)
        for training in (t for (own, _), t in stages.items() if own == name):
            check_lora(base, training.settings.lora, f"{training.where}.lora")


def run(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Makes one adapter."""
    (adapter,) = (a for a in artifacts if isinstance(a, Adapter))
    started = now()
    if isinstance(adapter, ImportedAdapter):
        import_weights(adapter, experiment, started)
        return
    if isinstance(adapter, RemergedAdapter):
        own = run_of(adapter.trained, experiment).out
        counts = {"merge": merge(adapter, experiment, own)}
        write_artifact_manifest(adapter, experiment, started, counts=counts)
        return
    assert isinstance(adapter, TrainedAdapter)
    progress = Progress(f"train {adapter.persona} {adapter.stage}", 1, "steps")
    with tracked(artifacts, experiment, "train") as tracker:

        def on_step(step: int, total: int, logs: dict[str, float]) -> None:
            progress.update(step, total, f"loss {logs['loss']:.3f}" if "loss" in logs else None)

        ranks.send_task(adapter.key)
        training_run = run_of(adapter, experiment)
        training_run.callbacks, training_run.on_step = tracker.callbacks(), on_step
        metrics = train(adapter, experiment, training_run)
        if adapter.training.stacked:
            metrics["merge"] = merge(adapter, experiment, training_run.out)
        seconds = progress.close()
        tracker.summary({k: v for k, v in metrics.items() if isinstance(v, int | float)})
    write_artifact_manifest(adapter, experiment, started, counts=metrics)
    say(f"  {adapter}: {duration(seconds)}")


def help_train(adapter: Artifact, experiment: Experiment) -> None:
    """The part of the ranks other than 0 in one training. Errors that all ranks have are reported by rank 0."""
    assert isinstance(adapter, TrainedAdapter)
    with contextlib.suppress(TrainingFailed, UserError):
        train(adapter, experiment, run_of(adapter, experiment))


def run_of(adapter: TrainedAdapter, experiment: Experiment) -> Run:
    """The training of ``adapter``. A stacked adapter is first written beside the merged one."""
    out = experiment.path(adapter)
    return Run(
        model=experiment.planner.options.model[adapter.base],
        settings=adapter.training.settings,
        out=out.with_name(f"{adapter.training.data.name}-{adapter.key[:8]}")
        if adapter.training.stacked
        else out,
        seed=training_seed(adapter.key, adapter.seed),
        parent=experiment.path(adapter.parent) if adapter.parent is not None else None,
        say=say,
        deepspeed=experiment.planner.settings.deepspeed,
        bases=experiment.bases,
        continues=adapter.training.continues,
        live=live_episodes(adapter, experiment) if adapter.live is not None else None,
    )


def train(adapter: TrainedAdapter, experiment: Experiment, training_run: Run) -> Metrics:
    """Makes the training rows and trains; returns the numbers of the training and the counts of its rows."""
    training = adapter.training
    if adapter.parent is not None and training.stacked and training.merge.method == "published":
        # The planner cannot see the rank of a parent that was not downloaded yet.
        check_one_rank([*ranks_of(experiment.path(adapter.parent)), training.settings.lora.rank])
    rows, counts = training_rows(adapter, experiment, training_run.live)
    if ranks.rank_info().is_main:
        say(f"  {adapter}: {training.data.makes} {describe(counts)}")
    return {**training.method.train(training_run, rows), training.data.makes: counts}


def training_rows(
    adapter: TrainedAdapter, experiment: Experiment, live: LiveEpisodes | None = None
) -> tuple[list[TrainingRow], Counts]:
    """The rows that ``adapter`` is trained on, made here or released by others, and counts of them. ``live`` is what it plays
    while it is trained, if ``adapter.live`` is given."""
    training = adapter.training
    if adapter.released:
        files = [references.fetch(rows, f"{training.where}.rows") for rows in adapter.released]
        assert training.data.read_released is not None
        return training.data.read_released(files, training.settings)
    by_role: dict[str, list[SourceRow]] = scenarios_of(adapter, live)
    requests = training.data.requests(training.settings, training.where)
    for request, (role, rollout) in zip(requests, adapter.rows, strict=adapter.live is None):
        rows = experiment.rows(rollout)
        if request.plain_messages:
            rules = (rollout.rollout if isinstance(rollout, Selection) else rollout).rules
            rows = [{**row, "messages": without_system(rules.system, row["messages"])} for row in rows]
        by_role.setdefault(role, []).extend(rows)
    model = experiment.planner.options.model[adapter.base]
    longest = longest_row(training.settings.optimizer, model)
    context = MakeContext(
        adapter.renamed, TurnTokens(model, longest).count, training.where, adapter.role_prompt
    )
    return training.data.make(by_role, training.settings, context)


def scenarios_of(adapter: TrainedAdapter, live: LiveEpisodes | None) -> dict[str, list[SourceRow]]:
    """The scenarios of the episodes that ``adapter`` plays while it is trained, by role; none for other trainings."""
    if adapter.live is None:
        return {}
    assert live is not None
    return {
        role: [
            cast(SourceRow, {"scenario": s.id, "family": s.family})
            for s in live.cells[rollout.cell.format].scenarios
        ]
        for role, rollout in adapter.live.episodes
    }


def merge(adapter: TrainedAdapter | RemergedAdapter, experiment: Experiment, own: Path) -> Metrics:
    """Merges the trained adapter in ``own`` with its parent's; returns method, weights and error."""
    from offscript.models import adapters

    trained = adapter.trained if isinstance(adapter, RemergedAdapter) else adapter
    settings = adapter.merge if isinstance(adapter, RemergedAdapter) else trained.training.merge
    assert trained.parent is not None
    if not own.is_dir():
        raise MissingInput(
            str(own),
            "the adapter before its merge is gone",
            f"delete {experiment.path(trained)}, train it again",
        )
    model = experiment.planner.options.model[adapter.base]
    parts = [(experiment.path(trained.parent), settings.parent), (own, settings.own)]
    report = adapters.merge(model, parts, experiment.path(adapter), settings.method)
    error = report["max_relative_error"]
    say(f"  {adapter}: merged ({settings.method}), largest relative error {error:.2g}")
    return dict(report)


def import_weights(adapter: ImportedAdapter, experiment: Experiment, started: str) -> None:
    """Converts weights that were trained elsewhere to our own layout; reports what was left out."""
    from offscript.models.imported import import_adapter, import_checkpoint

    source, model = adapter.imported_from, experiment.planner.options.model[adapter.base]
    folder = references.fetch(source, f"model.adapters.{adapter.stage}")
    convert = import_checkpoint if adapter.checkpoint else import_adapter
    counts = convert(model, folder, experiment.path(adapter))
    reference = references.reference(source)
    commits = {str(reference): hub.commit(reference)} if reference else {}
    write_artifact_manifest(adapter, experiment, started, counts=counts, hub=commits)
    ignored = "; ".join(f"{name}: {value}" for name, value in counts.get("ignored", {}).items() if value)
    say(f"  {adapter}: from {reference or folder}" + (f" (ignored: {ignored})" if ignored else ""))
    if counts.get("note"):
        say(f"  {adapter}: {counts['note']}")
