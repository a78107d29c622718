"""Scenarios of episodes that the weights play while they are trained, in chat and in other formats. No rows are made before."""

from collections.abc import Mapping, Sequence

from offscript.settings import Node, identity
from offscript.training.data.base import (
    Counts,
    MakeContext,
    RowsRequest,
    SourceRow,
    TrainingData,
    TrainingRow,
)
from offscript.training.data.mixture import parent_episodes


class LiveEpisodesSettings(Node):
    """Chat has ``prompts`` prompts of split train; each of the scored ``formats`` has ``scenarios`` of its own source's split
    train."""

    prompts: int = identity(ge=0)
    formats: tuple[str, ...] = identity(())
    scenarios: int = identity(20, ge=1)


def requests(settings: LiveEpisodesSettings, where: str) -> tuple[RowsRequest, ...]:
    """The scenarios of the episodes of ``mixture.parent_episodes``."""
    return parent_episodes((settings.prompts, 1), (settings.scenarios, 1), settings.formats, where)


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: LiveEpisodesSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Rows ``{"format", "scenario", "family"}``, one for each scenario, and their numbers by format."""
    found = [
        {"format": name, "scenario": row["scenario"], "family": row["family"]}
        for name, of_format in rows.items()
        for row in of_format
    ]
    return found, {name: len(of_format) for name, of_format in rows.items()}


DATA = TrainingData(
    name="live_episodes",
    settings=LiveEpisodesSettings,
    makes="episodes",
    requests=requests,
    make=make,
    typical_rows=1_000,
    live=True,
)
