"""The job graph: which artifacts one process makes together, in which layer, and which jobs come before.

One rollout job loads a model once and drives all of its personas, stages and formats; ``shards`` cuts it into as many
jobs as can run at once. A training job trains one adapter, or ``trainings`` of them on one loaded base; with
``stages_together`` it trains all stages of a persona, and makes the rollouts between them. The same graph runs inline, in
local processes and on SLURM.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from offscript.experiment.artifacts import (
    Artifact,
    Projections,
    Rollout,
    TrainedAdapter,
    in_order,
    layers,
)
from offscript.experiment.folder import Experiment


@dataclass(frozen=True)
class Job:
    """Artifacts of one kind that one process makes, or adapters and the rollouts between them (inputs first, of kind
    ``adapter``). ``needs`` are the indices of the jobs that make their inputs."""

    index: int
    kind: str
    layer: int
    artifacts: tuple[Artifact, ...]
    needs: frozenset[int]

    def __str__(self) -> str:
        first = self.artifacts[0]
        if len(self.artifacts) == 1:
            return str(first)
        counts = Counter(artifact.kind for artifact in self.artifacts)
        parts = [f"{self.kind} {first.model or ''} x{counts.pop(self.kind)}"]
        return ", ".join([*parts, *(f"{kind} x{count}" for kind, count in counts.items())])


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


def jobs_of(
    todo: Sequence[Artifact], shards: int = 1, trainings: int = 1, stages_together: bool = False
) -> list[Job]:
    """The jobs that make ``todo`` (inputs first), layer by layer; a job needs nothing of its own layer.

    Args:
        shards: jobs among which the rollouts of a model are divided, at most.
        trainings: adapters of one model and layer that a job trains, at most; with ``stages_together``, personas.
        stages_together: a job makes all adapters of ``todo`` that are trained on one another, and the rollouts between.
    """
    jobs: list[Job] = []
    maker: dict[str, int] = {}
    chains = _chains(todo, trainings) if stages_together else []
    chained = {artifact.key for chain in chains for artifact in chain}
    units = [*chains, *([artifact] for artifact in todo if artifact.key not in chained)]
    for depth, layer in enumerate(layers(units)):
        apart = [artifact for unit in layer for artifact in unit if artifact.key not in chained]
        together = [unit for unit in layer if unit[0].key in chained]
        for group in [*together, *_groups(apart, shards, trainings)]:
            needs = {maker[part.key] for a in group for part in a.inputs if part.key in maker}
            jobs.append(Job(len(jobs), group[0].kind, depth, tuple(group), frozenset(needs)))
            maker |= dict.fromkeys((a.key for a in group), len(jobs) - 1)
    return jobs


def _chains(todo: Sequence[Artifact], size: int) -> list[list[Artifact]]:
    """Adapters of ``todo`` that are trained on one another, with what lies between them; up to ``size`` chains of one model
    as one."""
    by_model: dict[str, list[list[Artifact]]] = {}
    for chain in _chains_of_one(todo):
        by_model.setdefault(chain[0].model or "", []).append(chain)
    return [
        [artifact for chain in chains[start : start + size] for artifact in chain]
        for chains in by_model.values()
        for start in range(0, len(chains), size)
    ]


def _chains_of_one(todo: Sequence[Artifact]) -> Iterator[list[Artifact]]:
    """The chains of two or more adapters (inputs first), each of one persona and seed.

    Adapters that need rows of the adapters of another chain form none, since two such chains could need each other.
    """
    root: dict[str, str] = {}
    trained: dict[str, list[Artifact]] = {}
    # The first adapters of the chains that an artifact needs adapters of.
    needs: dict[str, set[str]] = {}
    for artifact in todo:
        key = artifact.key
        needs[key] = {first for part in artifact.inputs for first in needs.get(part.key, ())}
        if isinstance(artifact, TrainedAdapter):
            root[key] = key if artifact.parent is None else root.get(artifact.parent.key, key)
            trained.setdefault(root[key], []).append(artifact)
            needs[key].add(root[key])
    for first, adapters in trained.items():
        chain = [artifact for artifact in in_order(adapters) if needs.get(artifact.key)]
        if len(adapters) > 1 and all(needs[artifact.key] == {first} for artifact in chain):
            yield chain


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
