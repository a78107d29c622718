"""What an evaluation logs to W&B: the retention table, bars per format, the heatmap of personas."""

from pathlib import Path
from typing import Any

from offscript.tracking.tracker import Tracker

TABLE, BARS, HEATMAP = "retention", "bars", "heatmap"
"""Names of what an evaluation logs: a table, a chart per format (``bars/chat``), an image."""


def log_retention(tracker: Tracker, summary: dict[str, Any], heatmap: Path) -> None:
    """Headline numbers into the run's summary; the retention table, bars per format and the heatmap as objects."""
    metric, groups = summary["metric"], summary["groups"]
    columns = ["model", "stage", "format", "training_seed", "planned", "emitted", "unique_texts", "accuracy"]
    rows = [
        [*(g[c] for c in columns), g["macro_f1"]["emitted"], *(g["interval_scenario"] or (None, None))]
        for g in groups
    ]
    tracker.table(TABLE, [*columns, metric, "low", "high"], rows)
    for format_ in dict.fromkeys(g["format"] for g in groups):
        heights = {
            " ".join(str(g[c]) for c in ("model", "stage", "training_seed") if g[c] is not None): g[
                "macro_f1"
            ]["emitted"]
            for g in groups
            if g["format"] == format_ and g["macro_f1"]["emitted"] is not None
        }
        tracker.bars(f"{BARS}/{format_}", f"{metric}, {format_}", heights)
    tracker.image(HEATMAP, heatmap)
    for g in groups:
        place = "/".join(str(g[c]) for c in ("model", "stage", "format"))
        tracker.summary(
            {f"{place}/{metric}": g["macro_f1"]["emitted"], f"{place}/emission_rate": g["emission_rate"]}
        )
