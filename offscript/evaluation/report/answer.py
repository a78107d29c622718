"""The answer of an evaluation in a sentence for each model."""

from offscript.evaluation.metrics.results import GroupScore, Retention, Scores
from offscript.evaluation.order import headline_stage, is_in_distribution


def answers(scores: Scores) -> list[str]:
    """A sentence for each model: how much of what the classifier recognizes in chat remains off distribution, after the
    published training, or the last stage if it is not scored."""
    return [_answer(scores, model) for model in dict.fromkeys(g.model for g in scores.groups)]


def _answer(scores: Scores, model: str) -> str:
    groups = [g for g in scores.main_groups(model) if not g.is_base] or scores.main_groups(model)
    stage = headline_stage(g.stage for g in groups)
    last = [g for g in groups if g.stage == stage]
    # Training seeds are represented by their mean, as in main_groups.
    places = {(g.format, g.training_seed) for g in last}
    kept = [
        r
        for r in scores.retention
        if (r.model, r.stage) == (model, stage) and (r.format, r.training_seed) in places
    ]
    defined = [r for r in kept if r.above_chance.estimate is not None]
    if not defined:
        return f"{model}, {stage}: {_undefined(last, kept)}."
    lowest = min(defined, key=lambda r: r.above_chance.estimate or 0.0)
    shown = percent(lowest.above_chance.estimate)
    if lowest.above_chance.interval is not None:
        low, high = map(percent, lowest.above_chance.interval)
        shown += f" ({scores.options.confidence:.0%} interval: {low} to {high})"
    rank = f", the least of {len(kept)} formats" if len(kept) > 1 else ""
    return (
        f"{model}, {stage}: {shown} of the persona that the classifier recognizes in chat above chance remains in "
        f"{lowest.format}{rank} (macro-F1 {lowest.score:.2f}, in chat {lowest.chat:.2f})."
    )


def _undefined(groups: list[GroupScore], kept: list[Retention]) -> str:
    """Why there is no retention, with the scores that there are."""
    known = [g for g in groups if g.macro_f1.emitted is not None]
    shown = ", ".join(f"{g.format} {g.macro_f1.emitted:.2f}" for g in known)
    scored = f"; macro-F1: {shown}" if shown else ""
    if kept:
        reasons = ", ".join(dict.fromkeys(r.why_not or "unknown" for r in kept))
        return f"how much of the persona remains off distribution is undefined: {reasons}{scored}"
    if all(g.is_base for g in groups):
        return f"there are base texts alone, which know nothing of a persona{scored}"
    if any(is_in_distribution(g.format) for g in groups):
        return f"there is no format but chat{scored}"
    return f"there are no chat texts to compare with{scored}"


def percent(value: float | None) -> str:
    """``41%``; ``n/a`` for None."""
    shown = "n/a" if value is None else f"{value:.0%}"
    return "0%" if shown == "-0%" else shown
