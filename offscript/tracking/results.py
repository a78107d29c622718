"""Logs the results of an evaluation to W&B: tables of retention and of scores, bars per format, a heatmap of personas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offscript.tracking.tracker import Tracker

RETENTION, SCORES, BARS, HEATMAP = "retention", "scores", "bars", "heatmap"
"""Keys in W&B: two tables, a chart per format (``bars/chat``), an image."""

Row = Mapping[str, int | float | str | None]


@dataclass(frozen=True)
class WandbResults:
    """The results of an evaluation, as W&B gets them.

    Args:
        retention: rows of the table ``retention``, one per model, stage, format and training seed.
        scores: rows of the table ``scores``, one per group and persona. All rows of a table have the same columns.
        bars: macro-F1 by label of the bar, for each format.
        bar_title: what the bars show.
        summary: headline numbers by key.
    """

    retention: Sequence[Row]
    scores: Sequence[Row]
    bars: Mapping[str, Mapping[str, float]]
    bar_title: str
    summary: Row


def log_results(tracker: Tracker, results: WandbResults, heatmap: Path) -> None:
    """Logs ``results`` and the image ``heatmap`` (png). A table without rows is left out."""
    for name, rows in ((RETENTION, results.retention), (SCORES, results.scores)):
        if rows:
            tracker.table(name, list(rows[0]), [list(row.values()) for row in rows])
    for format_, heights in results.bars.items():
        tracker.bars(f"{BARS}/{format_}", f"{results.bar_title}, {format_}", heights)
    tracker.image(HEATMAP, heatmap)
    tracker.summary(results.summary)
