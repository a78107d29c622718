"""What an evaluation was made from, as the page lists it: a record of artifacts or files, filled by the caller."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """One artifact or file that the evaluation was made from.

    Args:
        kind: rollout, adapter, classifier, predictions or file.
        name: what it is of: ``pocket full sarcasm chat``.
        path: relative to the folder of the experiment, or as given.
        key: of the artifact, or digest of the file.
        rows: number of rows, None for weights.
        made_with: engine and device.
        finished: time at which it was finished.
    """

    kind: str
    name: str
    path: str
    key: str
    rows: int | None = None
    made_with: str = ""
    finished: str = ""


@dataclass(frozen=True)
class Provenance:
    """What was run.

    Args:
        facts: single facts in order, such as the commit or the key of the evaluation.
        versions: of packages.
        sources: all artifacts, inputs first.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
