"""The section on the multiverse: in how many specifications each claim holds, and which choices decide it."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from offscript.evaluation.metrics.claims import Claim, Rule, Share, claims, defined, most_often, rule, shares
from offscript.evaluation.metrics.display import number
from offscript.evaluation.metrics.multiverse import (
    AS_GIVEN,
    DIMENSIONS,
    RESAMPLES,
    Multiverse,
    Specification,
    multiverse,
)
from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.metrics.specified import BALANCED, ERRORS, LOWER, UPPER
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.section import Section, Table
from offscript.evaluation.report.specification_curve import WORDS, curves
from offscript.evaluation.report.summary import csv_field, rounded
from offscript.json_types import Json
from offscript.storage.files import write_text

NAME = "multiverse"
FILE = f"{NAME}.csv"
MAX_SUMMARY_BYTES = 1_000_000
"""Specifications that take more of ``summary.json`` are in ``FILE`` instead."""
MAX_NAMED = 3
"""Number of values of a dimension that a sentence names."""

_NUMBERS = ("above_chance", "gap", "difference")


def multiverse_section(
    scores: Scores,
    predictions: Sequence[Prediction],
    classifiers: Mapping[str, Sequence[str | None]],
) -> Section | None:
    """The section; None if no model has a headline.

    Args:
        classifiers: labels of further classifiers, see ``metrics.multiverse.multiverse``.
    """
    models = dict.fromkeys(g.model for g in scores.groups)
    found = (multiverse(scores, predictions, model, classifiers) for model in models)
    made = [m for m in found if m is not None and len(m.outcomes) > 1 and claims(m)]
    if not made:
        return None
    whole = json.dumps(rounded([_specifications(m) for m in made]), indent=2)
    outside = len(whole.encode()) > MAX_SUMMARY_BYTES
    return Section(
        name=NAME,
        title="Multiverse",
        explanation=(*(line for m in made for line in sentences(m)), *_explanation(made, scores)),
        tables=tuple(_table(m, claim) for m in made for claim in claims(m)),
        data={m.headline.model: _data(m, outside) for m in made},
        draw=partial(_draw, made, outside),
        description=" ".join(line for m in made for line in sentences(m)),
    )


def _draw(made: Sequence[Multiverse], outside: bool, folder: Path) -> list[Path]:
    paths = curves(made, folder, NAME)
    if outside:
        write_text(folder / FILE, _csv(made))
        paths.append(folder / FILE)
    return paths


# ---------------------------------------------------------------- sentences


def sentences(made: Multiverse) -> list[str]:
    """What holds in how many specifications, a sentence or two for each claim."""
    return [_sentence(made, claim) for claim in claims(made)]


def _sentence(made: Multiverse, claim: Claim) -> str:
    place = f"{made.headline.model}, {made.headline.stage} in {made.headline.format}"
    outcomes = defined(made, claim)
    if not outcomes:
        return f"{place}: whether {claim.statement} is defined in no specification."
    holding = [o for o in outcomes if claim.holds(o)]
    certain = sum(map(claim.is_certain, outcomes))
    undefined = len(made.outcomes) - len(outcomes)
    more = f"; {undefined} more are undefined" if undefined else ""
    shown = (
        f"{place}: {claim.statement} in {len(holding)} of {len(outcomes)} specifications, with the whole interval "
        f"{claim.side} in {certain}{more}."
    )
    if len(holding) in (0, len(outcomes)):
        return shown
    few = len(holding) * 2 <= len(outcomes)
    members = [o.specification for o in outcomes if claim.holds(o) == few]
    who = "Those in which it holds" if few else "Those in which it does not hold"
    among = [o.specification for o in outcomes]
    return f"{shown} {who} {_described(members, among, made)}."


def _described(members: Sequence[Specification], among: Sequence[Specification], made: Multiverse) -> str:
    """What the specifications ``members`` have in common, as the end of a sentence."""
    found, parts = rule(members, among), []
    if found.choices and found.matching * 2 <= len(among):
        parts.append(f"all have {_rule(found, made)}")
    if found.members * 2 < found.matching and (most := most_often(members, among)) is not None:
        dimension, value, mine, total = most
        parts.append(f"are most frequent with {WORDS[dimension]} = {value} ({mine} of {total})")
    return " and ".join(parts) or "are spread over all choices"


def _rule(found: Rule, made: Multiverse) -> str:
    parts = []
    for dimension, values in found.choices.items():
        others = [value for value in made.choices[dimension] if value not in values]
        if len(values) > MAX_NAMED and len(others) < len(values):
            parts.append(f"{WORDS[dimension]} other than {' and '.join(others)}")
        else:
            parts.append(f"{WORDS[dimension]} = {' or '.join(values)}")
    whole = "all" if found.members == found.matching else f"{found.members} of the"
    return f"{' and '.join(parts)} ({whole} {found.matching} such specifications)"


def _explanation(made: Sequence[Multiverse], scores: Scores) -> Iterator[str]:
    first = made[0]
    resamples = min(RESAMPLES, scores.options.resamples)
    yield (
        "A specification is one combination of choices that an analyst could have made: the label set (the personas of the "
        "grid, all labels of the classifier, the personas without one of them), the assumption about missing texts, the unit "
        "that is resampled, the classifier, and how its probabilities become labels. The headline is computed in all of them "
        f"({resamples} resamples each). The first value of each choice is that of the other tables. The unit changes the "
        "interval only."
    )
    if any(set(m.choices["missing"]) >= {ERRORS, LOWER, UPPER} for m in made):
        yield (
            f"Missing texts: {ERRORS} counts each as a miss; {LOWER} and {UPPER} take the labels that give the least and the "
            "most F1, in every format and stage of a specification alike. Retention compares the bounds with the null of the "
            "emitted texts."
        )
    if any(BALANCED in m.choices["calibration"] for m in made):
        yield (
            f"Labels by argmax: the most probable label, as given. {BALANCED}: the same after each label's probabilities were "
            "weighted such that all personas are equally frequent in a format, which is assumed and not known; the weights "
            f"are not fitted again in a resample. Only the classifier {first.main.classifier!r} has probabilities. A "
            "temperature is no choice, because it changes no label."
        )
    named = {name for m in made for name in m.choices["classifier"]}
    kinds = (
        ("fit 1", "each of its fits alone"),
        ("oracle", "the oracle, which was fitted on the prompted texts of the format that it predicts"),
        ("baseline", "the baseline of n-grams"),
    )
    if found := [words for name, words in kinds if name in named]:
        yield f"Classifier: {AS_GIVEN} is that of the other tables; the others are {', '.join(found)}."
    yield (
        "Columns: defined, of how many specifications with that choice; alone, the number if only this choice differs from "
        "the first line; median, lowest and highest while the others vary; in how many the claim holds, by the estimate and "
        "by the whole interval."
    )


# ---------------------------------------------------------------- tables


def _table(made: Multiverse, claim: Claim) -> Table:
    subject = made.headline
    return Table(
        f"{subject.model}, {subject.stage} in {subject.format}: {claim.quantity} by choice (claim: {claim.side})",
        (
            "choice",
            "value",
            "defined",
            "alone",
            "median",
            "lowest",
            "highest",
            "claim\nholds",
            "by\ninterval",
        ),
        tuple(_row(share) for share in shares(made, claim)),
    )


def _row(share: Share) -> tuple[str, ...]:
    return (
        WORDS.get(share.dimension, "all"),
        share.choice,
        str(share.defined) if share.defined == share.total else f"{share.defined}/{share.total}",
        *(number(value) for value in (share.alone, share.median, share.lowest, share.highest)),
        _percent(share.holds, share.defined),
        _percent(share.certain, share.defined),
    )


def _percent(part: int, whole: int) -> str:
    """``99%``; 100% and 0% only where it is all or none."""
    if not whole:
        return "n/a"
    shown = round(100 * part / whole)
    return f"{min(shown, 99) if part < whole and shown > 99 else max(shown, 1) if part else 0}%"


# ---------------------------------------------------------------- data


def _data(made: Multiverse, outside: bool) -> Json:
    subject = made.headline
    return {
        "stage": subject.stage,
        "format": subject.format,
        "chat": subject.chat,
        "other_stage": subject.other,
        "main": dict(made.main._asdict()),
        "choices": {name: list(values) for name, values in made.choices.items()},
        "claims": {claim.name: _claim(made, claim) for claim in claims(made)},
        "columns": list(_columns()),
        "specifications": FILE if outside else [list(row) for row in _specifications(made)],
    }


def _claim(made: Multiverse, claim: Claim) -> Json:
    by_choice: list[Json] = [asdict(share) for share in shares(made, claim)]
    return {"sentence": _sentence(made, claim), "limit": claim.limit, "by_choice": by_choice}


def _columns() -> tuple[str, ...]:
    return (*DIMENSIONS, *(f"{name}{end}" for name in _NUMBERS for end in ("", "_low", "_high")))


def _specifications(made: Multiverse) -> list[tuple[str | float | None, ...]]:
    """A row for each specification, with the values of ``_columns``."""
    rows = []
    for outcome in made.outcomes:
        values: list[str | float | None] = list(outcome.specification)
        for name in _NUMBERS:
            found = getattr(outcome, name)
            values += [found.estimate, *(found.interval or (None, None))]
        rows.append(tuple(values))
    return rows


def _csv(made: Sequence[Multiverse]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", *_columns()))
    for m in made:
        writer.writerows([csv_field(v) for v in (m.headline.model, *row)] for row in _specifications(m))
    return out.getvalue()
