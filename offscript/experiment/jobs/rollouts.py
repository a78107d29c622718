"""Jobs that make rollouts: cells of one model, all through one engine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from offscript.console import Progress, counted, duration, say
from offscript.errors import UserError
from offscript.experiment.artifacts import Artifact, Rollout
from offscript.experiment.folder import Experiment, now, tracked, write_artifact_manifest
from offscript.rollouts.engines import open_engine
from offscript.rollouts.engines.base import Engine
from offscript.rollouts.scheduler import CellRun, EpisodeCounts, RolloutFailed, run_episodes
from offscript.settings import ADAPTER_FIELDS, ModelSettings, fill_adapter_name
from offscript.storage import hub
from offscript.storage.files import read_json_object, write_json
from offscript.tasks.formats import check_episodes
from offscript.tasks.rows import Row
from offscript.tracking.tracker import RolloutProgressLogger


def run(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Makes the rows of rollouts of one model; with ``limit`` the first episodes of each only.

    Raises:
        RolloutFailed: some episodes left no row; cells that are complete are finished all the same.
    """
    rollouts, started = [a for a in artifacts if isinstance(a, Rollout)], now()
    model = rollouts[0].cell.model
    commits = {rollout.key: check_commits(rollout, experiment) for rollout in rollouts}
    runs = [cell_run(rollout, experiment, limit) for rollout in rollouts]
    # Opened before tracking starts: a model that is refused leaves no W&B run.
    engine = open_engine_of(rollouts, experiment)
    with closing(engine), tracked(rollouts, experiment, "rollout") as tracker:
        total = sum(min(limit or 10**9, len(r.scenarios) * r.samples) for r in runs)
        progress = Progress(f"rollout {model}: {len(rollouts)} cells", total, "rows")
        logger, tokens = RolloutProgressLogger(tracker), Counter[str]()

        def on_row(run: CellRun, row: Row) -> None:
            tokens[run.key] += row["tokens_out"]
            logger.add_row(row["text"] is not None, engine.stats.tokens_out)
            progress.advance(f"{engine.stats.tokens_out} tokens")

        def on_start(counts: Mapping[str, EpisodeCounts]) -> None:
            reused = sum(c.reused for c in counts.values())
            progress.begin(reused)
            logger.begin(reused, sum(c.emitted for c in counts.values()))

        failed: RolloutFailed | None = None
        try:
            counts = run_episodes(runs, engine, experiment.planner.settings.engine.max_live, on_row, on_start)
        except RolloutFailed as error:
            counts, failed = error.counts, error
        seconds = progress.close()
        logger.close()
        tracker.summary({"seconds": seconds, "tokens_out": engine.stats.tokens_out})
    for rollout, run in zip(rollouts, runs, strict=True):
        count = counts[rollout.key]
        if count.written + count.reused == len(run.scenarios) * run.samples:
            share = tokens[rollout.key] / max(1, tokens.total())
            plain = {**vars(count), "ended": dict(count.ended), "seconds": _seconds(count, seconds * share)}
            write_artifact_manifest(
                rollout, experiment, started, counts=plain, engine=engine.info(), hub=commits[rollout.key]
            )
    written = sum(c.written for c in counts.values())
    if written:
        say(f"  rows: {written} in {counted(len(rollouts), 'cell')} of {model}, {duration(seconds)}")
    if failed:
        raise failed


def _seconds(count: EpisodeCounts, seconds: float) -> float | None:
    """About how long all rows of a cell take, from the ``seconds`` of those that this job has written; None if it has written
    none. The seconds of a job are divided among its cells by the tokens that they generate."""
    return round(seconds * (count.written + count.reused) / count.written, 2) if count.written else None


def cell_run(rollout: Rollout, experiment: Experiment, limit: int | None) -> CellRun:
    """A rollout as the scheduler takes it. Its scenarios are read (or fetched) here.

    Raises:
        UserError: there are no scenarios, or one does not fit the format.
    """
    scenarios = rollout.scenarios.load(experiment.rows)
    if not rollout.scenarios.is_local:
        check_episodes(rollout.format, scenarios, rollout.rules)
    # A judge has nothing to read where no episode left a text.
    if not scenarios and rollout.judged is None:
        raise UserError(str(rollout), "there are no scenarios for it", "see what its inputs hold")
    return CellRun(
        key=rollout.key,
        path=experiment.path(rollout),
        labels=dict(rollout.labels),
        format=rollout.format,
        scenarios=scenarios,
        samples=rollout.samples,
        rules=rollout.rules,
        adapter=rollout.adapter_name,
        sampling=rollout.sampling,
        thinking=rollout.thinking,
        examples=rollout.examples,
        limit=limit,
    )


def open_engine_of(rollouts: Sequence[Rollout], experiment: Experiment) -> Engine:
    """The engine for ``rollouts``, which share their model and (if any) their whole checkpoint.

    Raises:
        UserError: the engine refuses the model, or the server of an endpoint its adapters.
    """
    parts, settings = parts_of(rollouts, experiment), experiment.planner.settings.engine
    served = served_names(rollouts, parts.model)
    return open_engine(parts.model, parts.adapters, parts.scales, settings, parts.vectors, served)


def served_names(rollouts: Sequence[Rollout], model: ModelSettings) -> dict[str, str]:
    """The names by which the server of ``model`` knows the adapters of ``rollouts``, by the names that requests use; none
    without ``model.endpoint.adapters``.

    Raises:
        UserError: two adapters have the same name.
    """
    pattern = model.endpoint.adapters if model.endpoint is not None else None
    found: dict[str, str] = {}
    for rollout in rollouts if pattern is not None else ():
        if (adapter := rollout.adapter) is None or (own := rollout.adapter_name) is None or own in found:
            continue
        assert pattern is not None
        name = fill_adapter_name(pattern, adapter.persona, adapter.stage, adapter.seed, adapter.key[:8])
        if name in found.values():
            raise UserError(
                "model.endpoint.adapters",
                f"{pattern!r} gives two adapters the name {name}",
                "a name with more of the fields " + ", ".join(f"{{{field}}}" for field in ADAPTER_FIELDS),
            )
        found[own] = name
    return found


@dataclass(frozen=True)
class EngineParts:
    """What an engine loads: a model, and folders of adapters and vectors by the names that requests use for them.
    ``scales``: factor of an adapter's effect, by its name."""

    model: ModelSettings
    adapters: dict[str, Path]
    scales: dict[str, float]
    vectors: dict[str, Path]


def parts_of(rollouts: Sequence[Rollout], experiment: Experiment) -> EngineParts:
    """What the weights of ``rollouts`` consist of; they share their model and (if any) their whole checkpoint."""
    model = experiment.planner.options.model[rollouts[0].cell.model]
    if (checkpoint := rollouts[0].checkpoint) is not None:
        model = model.model_copy(update={"path": str(experiment.path(checkpoint)), "revision": None})
    adapters, scales, vectors = {}, {}, {}
    for rollout in rollouts:
        if rollout.vector is not None:
            vectors[rollout.vector.key] = experiment.path(rollout.vector)
        if rollout.adapter is not None and rollout.adapter_name is not None:
            adapters[rollout.adapter_name] = experiment.path(rollout.adapter)
            scales[rollout.adapter_name] = rollout.cell.scale
    return EngineParts(model, adapters, scales, vectors)


def check_commits(rollout: Rollout, experiment: Experiment) -> dict[str, str | None]:
    """The commits of the hub repositories that a rollout is made from, recorded beside its first row.

    Raises:
        UserError: there are rows that were made from another commit.
    """
    references = experiment.planner.references_of(rollout)
    if not references:
        return {}
    for reference in references:
        hub.fetch(reference)
    found = {str(reference): hub.commit(reference) for reference in references}
    path = experiment.path(rollout)
    record = path.with_name(f".{path.name}.hub.json")
    before = read_json_object(record) if record.exists() else {}
    for name, commit in found.items():
        if before.get(name, commit) != commit:
            raise UserError(
                name,
                f"now at {commit}, but rows in {path} were made from {before[name]}",
                "name that revision, or move the rows away",
            )
    write_json(record, found)
    return found
