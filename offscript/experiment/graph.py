"""The job graph: which artifacts one process makes together, in which layer, and which jobs come before.

One rollout job loads a model once and drives all of its personas, stages and formats; ``shards`` cuts it into as many
jobs as can run at once. A training job trains one adapter, or ``trainings`` of them on one loaded base. The same graph runs
inline, in local processes and on SLURM.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from offscript.experiment.artifacts import Artifact, Projections, Rollout, TrainedAdapter, layers
from offscript.experiment.folder import Experiment


@dataclass(frozen=True)
class Job:
    """Artifacts of one kind that one process makes; ``needs`` are the indices of the jobs that make their inputs."""

    index: int
    kind: str
    layer: int
    artifacts: tuple[Artifact, ...]
    needs: frozenset[int]

    def __str__(self) -> str:
        first = self.artifacts[0]
        if len(self.artifacts) == 1:
            return str(first)
        return f"{self.kind} {first.model or ''} x{len(self.artifacts)}"


def needed(wanted: Iterable[Artifact], experiment: Experiment) -> tuple[list[Artifact], list[Artifact]]:
    """The artifacts that ``wanted`` still need (inputs first), and the finished ones that they are made from."""
    todo: dict[str, Artifact] = {}
    reused: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key in todo or artifact.key in reused:
            return
        if experiment.is_finished(artifact):
            reused[artifact.key] = artifact
            return
        for part in artifact.inputs:
            visit(part)
        todo[artifact.key] = artifact

    for artifact in wanted:
        visit(artifact)
    return list(todo.values()), list(reused.values())


def jobs_of(todo: Sequence[Artifact], shards: int = 1, trainings: int = 1) -> list[Job]:
    """The jobs that make ``todo`` (inputs first), layer by layer; a job needs nothing of its own layer.

    Args:
        shards: jobs among which the rollouts of a model are divided, at most.
        trainings: adapters of one model and layer that a job trains, at most.
    """
    jobs: list[Job] = []
    maker: dict[str, int] = {}
    for depth, layer in enumerate(layers(list(todo))):
        for group in _groups(layer, shards, trainings):
            needs = {maker[part.key] for a in group for part in a.inputs if part.key in maker}
            jobs.append(Job(len(jobs), group[0].kind, depth, tuple(group), frozenset(needs)))
            maker |= dict.fromkeys((a.key for a in group), len(jobs) - 1)
    return jobs


def _groups(artifacts: Sequence[Artifact], shards: int, trainings: int) -> Iterator[list[Artifact]]:
    """Artifacts that share a process: rollouts or projections of one model or of one whole checkpoint, predictions of one
    model, up to ``trainings`` adapters of one model. Every other artifact is a job of its own."""
    groups: dict[tuple[str, ...], list[Artifact]] = {}
    for artifact in artifacts:
        checkpoint = artifact.checkpoint if isinstance(artifact, Rollout | Projections) else None
        shared = (artifact.kind, artifact.model or "", checkpoint.key if checkpoint else "")
        shares = artifact.shares_process or (trainings > 1 and isinstance(artifact, TrainedAdapter))
        groups.setdefault(shared if shares else (artifact.key,), []).append(artifact)
    for group in groups.values():
        rollouts = [a for a in group if isinstance(a, Rollout)]
        if rollouts and shards > 1:
            yield from _shards(rollouts, shards)
        elif isinstance(group[0], TrainedAdapter):
            for start in range(0, len(group), trainings):
                yield group[start : start + trainings]
        else:
            yield group


def _shards(rollouts: Sequence[Rollout], shards: int) -> list[list[Artifact]]:
    """``rollouts`` in at most ``shards`` parts of similar size in episodes; the rollouts of one adapter stay together
    unless that leaves a part empty."""
    by_adapter: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_adapter.setdefault(rollout.adapter.key if rollout.adapter else rollout.key, []).append(rollout)
    pieces = list(by_adapter.values())
    if len(pieces) < shards:
        pieces = [[rollout] for rollout in rollouts]
    parts: list[list[Artifact]] = [[] for _ in range(min(shards, len(pieces)))]
    size = [0] * len(parts)
    for piece in sorted(pieces, key=lambda p: -sum(r.planned_rows for r in p)):
        smallest = size.index(min(size))
        parts[smallest] += piece
        size[smallest] += sum(r.planned_rows for r in piece)
    return parts
