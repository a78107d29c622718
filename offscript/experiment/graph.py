"""The job graph: which artifacts one process makes together, in which layer, and what has to be there before.

One rollout job loads a model once and drives all of its personas, stages and formats; ``shards`` cuts it into as many
jobs as can run at once. The same graph runs inline, in local processes and on SLURM.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from offscript.experiment.artifacts import Artifact
from offscript.experiment.folder import Bench, adapter_of, checkpoint_of
from offscript.experiment.planner import layers

SHARED = ("rollout", "predictions")
"""Kinds whose artifacts share what is costly to load: a model, a classifier."""


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
        return f"{self.kind} {first.labels.get('model', '')} x{len(self.artifacts)}"


def needed(wanted: Iterable[Artifact], bench: Bench) -> tuple[list[Artifact], list[Artifact]]:
    """What is still to be made for ``wanted`` (inputs first), and which finished artifacts that builds on."""
    todo: dict[str, Artifact] = {}
    reused: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key in todo or artifact.key in reused:
            return
        if bench.finished(artifact):
            reused[artifact.key] = artifact
            return
        for part in artifact.inputs:
            visit(part)
        todo[artifact.key] = artifact

    for artifact in wanted:
        visit(artifact)
    return list(todo.values()), list(reused.values())


def jobs_of(todo: Sequence[Artifact], shards: int = 1) -> list[Job]:
    """The jobs that make ``todo`` (inputs first), layer by layer; a job needs nothing of its own layer."""
    jobs: list[Job] = []
    maker: dict[str, int] = {}
    for depth, layer in enumerate(layers(list(todo))):
        for group in _groups(layer, shards):
            needs = {maker[part.key] for a in group for part in a.inputs if part.key in maker}
            jobs.append(Job(len(jobs), group[0].kind, depth, tuple(group), frozenset(needs)))
            maker |= dict.fromkeys((a.key for a in group), len(jobs) - 1)
    return jobs


def _groups(artifacts: Sequence[Artifact], shards: int) -> Iterator[list[Artifact]]:
    """Rollouts of one model share its weights and predictions its classifier; all else is a job of its own. A whole
    checkpoint takes the model's place: its rollouts are a job of their own too."""
    shared: dict[tuple[str, str, str], list[Artifact]] = {}
    for artifact in artifacts:
        if artifact.kind in SHARED:
            whole = checkpoint_of(artifact) if artifact.kind == "rollout" else None
            place = (artifact.kind, artifact.labels["model"], whole.key if whole else "")
            shared.setdefault(place, []).append(artifact)
        else:
            shared[artifact.key, "", ""] = [artifact]
    for group in shared.values():
        yield from _cut(group, shards) if group[0].kind == "rollout" else [group]


def _cut(cells: Sequence[Artifact], shards: int) -> list[list[Artifact]]:
    """``cells`` in at most ``shards`` parts of like size in episodes; the cells of one adapter stay together while that
    does not leave a part empty."""
    if shards == 1:
        return [list(cells)]
    bundles: dict[str, list[Artifact]] = {}
    for cell in cells:
        weights = adapter_of(cell)
        bundles.setdefault(weights.key if weights else cell.key, []).append(cell)
    pieces = list(bundles.values())
    if len(pieces) < shards:
        pieces = [[cell] for cell in cells]
    parts: list[list[Artifact]] = [[] for _ in range(min(shards, len(pieces)))]
    size = [0] * len(parts)
    for piece in sorted(pieces, key=lambda p: -sum(c.spec["planned"] for c in p)):
        smallest = size.index(min(size))
        parts[smallest] += piece
        size[smallest] += sum(c.spec["planned"] for c in piece)
    return parts
