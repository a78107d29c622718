"""What the report of an evaluation takes from the experiment: the transcripts of its episodes, and what was run."""

from collections.abc import Iterator, Sequence

from offscript.errors import UserError
from offscript.evaluation.report.provenance import Provenance, Source
from offscript.evaluation.report.transcripts import Transcript, transcript_of
from offscript.experiment.artifacts import Artifact, Evaluation, Predictions, Rollout, in_order
from offscript.experiment.folder import Experiment, code_revision, versions
from offscript.json_types import Json
from offscript.storage.manifests import read_manifest


class Transcripts:
    """Transcripts of the rows of predictions, by the number of a row in all of them. One cell is in memory at a time."""

    def __init__(
        self, experiment: Experiment, parts: Sequence[tuple[Predictions, list[dict[str, Json]]]]
    ) -> None:
        self.experiment = experiment
        self.rows = [(part.rollout, row) for part, rows in parts for row in rows]
        self.held: tuple[str, dict[object, Transcript]] = ("", {})

    def __call__(self, i: int) -> Transcript | None:
        """The transcript of row ``i``; None if the rollout of its cell is gone or has changed."""
        rollout, row = self.rows[i]
        if self.held[0] != rollout.key:
            self.held = (rollout.key, self._read(rollout))
        return self.held[1].get(row.get("row"))

    def _read(self, rollout: Rollout) -> dict[object, Transcript]:
        try:
            rows = self.experiment.rows(rollout)
        except UserError:
            # Predictions count without the rollout that they were made from, and so does their evaluation.
            return {}
        return {f"{row['scenario']}/{row['sample']}": transcript_of(row) for row in rows}  # type: ignore[arg-type]


def provenance(evaluation: Evaluation, experiment: Experiment) -> Provenance:
    """Key, commit and versions of an evaluation, and every artifact that it rests on, from the manifests."""
    sources = list(_sources(evaluation, experiment))
    facts = {
        "experiment": evaluation.name,
        "key of the evaluation": evaluation.key,
        "commit": code_revision() or "unknown",
        "made": _span([s.finished for s in sources if s.finished]),
    }
    return Provenance(facts, versions(), tuple(sources))


def _sources(evaluation: Evaluation, experiment: Experiment) -> Iterator[Source]:
    for artifact in in_order([evaluation]):
        if artifact != evaluation and (manifest := _manifest(artifact, experiment)) is not None:
            counts = manifest.get("counts")
            rows = counts.get("written", counts.get("rows")) if isinstance(counts, dict) else None
            yield Source(
                kind=artifact.kind,
                name=" ".join(str(v) for v in artifact.labels.values() if v is not None),
                path=artifact.path.as_posix(),
                key=artifact.key,
                rows=rows if isinstance(rows, int) else None,
                made_with=_engine(manifest.get("engine")),
                finished=str(manifest.get("finished", "")),
            )


def _manifest(artifact: Artifact, experiment: Experiment) -> dict[str, Json] | None:
    """The manifest of a finished artifact; None if there is none, or another one's."""
    try:
        manifest = read_manifest(experiment.path(artifact))
    except UserError:
        return None
    return manifest if manifest is not None and manifest["key"] == artifact.key else None


def _engine(engine: Json) -> str:
    return ", ".join(f"{name} {value}" for name, value in engine.items()) if isinstance(engine, dict) else ""


def _span(times: list[str]) -> str:
    return f"{min(times)} to {max(times)}" if times else "unknown"
