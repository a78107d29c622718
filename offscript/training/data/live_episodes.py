"""Scenarios of episodes that the weights play while they are trained, in chat and in other formats. No rows are made before."""

from collections.abc import Mapping, Sequence

from offscript.errors import UserError
from offscript.settings import Node, identity
from offscript.training.data.base import (
    Counts,
    FormatScenarios,
    MakeContext,
    RowsRequest,
    SourceRow,
    TrainingData,
    TrainingRow,
)
from offscript.training.data.mixture import CHAT, check_formats


class LiveEpisodesSettings(Node):
    """Chat has ``prompts`` prompts of split train; each of the scored ``formats`` has ``scenarios`` of its own source's split
    train."""

    prompts: int = identity(ge=0)
    formats: tuple[str, ...] = identity(())
    scenarios: int = identity(20, ge=1)


def requests(settings: LiveEpisodesSettings, where: str) -> tuple[RowsRequest, ...]:
    """Episodes under a plain system text, in chat and in each of ``formats``.

    Raises:
        UserError: a format is unknown or named twice, or there is no episode.
    """
    check_formats(settings.formats, where)
    if not settings.prompts and not settings.formats:
        raise UserError(where, "prompts is 0 and formats is empty", "allowed: prompts > 0, or a format")
    counts = {CHAT: settings.prompts} if settings.prompts else {}
    counts |= dict.fromkeys(settings.formats, settings.scenarios)
    return tuple(
        RowsRequest(name, name, (FormatScenarios(count),), generator="parent")
        for name, count in counts.items()
    )


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
