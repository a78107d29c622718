"""The results of an evaluation as W&B shows them: two tables, a bar chart per format, headline numbers."""

from offscript.evaluation.metrics import table
from offscript.evaluation.metrics.results import GroupScore, Retention, Scores
from offscript.evaluation.order import formats_in_order
from offscript.evaluation.report.summary import FlatRow, retention_rows, score_rows
from offscript.tracking.results import WandbResults


def wandb_results(scores: Scores) -> WandbResults:
    """``scores`` for ``tracking.results.log_results``."""
    return WandbResults(
        retention=retention_rows(scores),
        scores=score_rows(scores),
        bar_title=scores.metric,
        bars={name: _bars(scores, name) for name in formats_in_order(g.format for g in scores.groups)},
        summary=_headlines(scores),
    )


def _bars(scores: Scores, format_: str) -> dict[str, float]:
    """Macro-F1 by model, stage and training seed."""
    return {
        " ".join(
            str(part) for part in (g.model, g.stage, g.training_seed) if part is not None
        ): g.macro_f1.emitted
        for g in scores.groups
        if g.format == format_ and g.macro_f1.emitted is not None
    }


def _headlines(scores: Scores) -> FlatRow:
    """Numbers by ``model/stage/format/seed/metric``, with ``/persona`` for those of a persona."""
    found: FlatRow = {}
    for group in scores.groups:
        for metric in (m for m in table.METRICS if m.in_summary):
            for column, value in metric.values(group, len(scores.labels)).items():
                if metric.persona is None or value is not None:
                    found[f"{_place(group)}/{column}"] = value
            for persona in group.personas if metric.persona else ():
                for column, value in metric.values(persona, len(scores.labels)).items():
                    found[f"{_place(group)}/{column}/{persona.persona}"] = value
    for r in scores.retention:
        found[f"{_place(r)}/above_chance"] = r.above_chance.estimate
        found[f"{_place(r)}/ratio"] = r.ratio.estimate
    return found


def _place(cell: GroupScore | Retention) -> str:
    seed = [] if cell.training_seed is None else [f"seed{cell.training_seed}"]
    return "/".join([cell.model, cell.stage, cell.format, *seed])
