"""Fits of the classifier and the baseline: their labels in the rows become spread, intervals and scores of their own."""

import numpy as np
import pytest

from offscript.errors import UserError
from offscript.evaluation.comparison import compare
from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, check_together
from offscript.evaluation.relabelled import scored_with
from tests.rows import PERSONAS, grid


def with_labels(rows, fits=5, doubt=0.0, baseline=None):
    """``rows`` with the labels of ``fits`` fits, each of which has drawn a share ``doubt`` of its labels at random."""
    rng, made = np.random.default_rng(1), []
    for row in rows:
        if row["predicted"] is None:
            made.append(row)
            continue
        labels = [
            str(rng.choice(PERSONAS)) if rng.random() < doubt * (f + 1) else row["predicted"]
            for f in range(fits)
        ]
        made.append({**row, "fits": labels, **({"baseline": baseline(row)} if baseline else {})})
    return made


def scored(rows):
    return evaluate(check_rows(rows, "rows"), resamples=300)


def of(scores, stage, fmt):
    return next(g for g in scores.groups if (g.stage, g.format) == (stage, fmt))


def width(interval):
    return interval[1] - interval[0]


def test_the_spread_of_the_fits_is_in_every_interval():
    rows = grid()
    plain, equal = scored(rows), scored(with_labels(rows))
    doubtful = scored(with_labels(rows, doubt=0.1))
    assert equal.groups[0].fit_sd == 0 and plain.groups[0].fit_sd is None
    one, other, wide = (of(s, "full", "agentic_email") for s in (plain, equal, doubtful))
    assert one.interval == pytest.approx(other.interval) and wide.macro_f1 == one.macro_f1
    assert wide.fit_sd > 0.01
    for name in ("interval", "interval_own_class", "interval_bounds"):
        assert width(getattr(wide, name)) > width(getattr(one, name)), name
    assert wide.interval_rows == one.interval_rows
    assert any(
        width(w.interval) > width(p.interval) for w, p in zip(wide.personas, one.personas, strict=True)
    )
    for w, p in zip(doubtful.retention + doubtful.changes, plain.retention + plain.changes, strict=True):
        wider, narrow = (
            (w.above_chance, p.above_chance) if hasattr(w, "above_chance") else (w.difference, p.difference)
        )
        assert wider.estimate == narrow.estimate and width(wider.interval) > width(narrow.interval)


def test_the_spread_is_the_standard_deviation_of_the_score_by_each_fit():
    rows = with_labels(grid(), fits=3, doubt=0.1)
    alone = [
        of(
            scored([{**r, "predicted": r["fits"][f], "fits": None} if r["predicted"] else r for r in rows]),
            "full",
            "chat_email",
        ).macro_f1.emitted
        for f in range(3)
    ]
    assert of(scored(rows), "full", "chat_email").fit_sd == pytest.approx(np.std(alone, ddof=1))


def test_one_fit_is_said_so():
    def notes(rows):
        return [n for n in scored(rows).notes if "fit of the classifier" in n]

    assert notes(grid()) and not notes(with_labels(grid()))


def test_all_rows_of_a_model_have_the_same_number_of_fits():
    rows = with_labels(grid(), fits=2)
    rows[3] = {**rows[3], "fits": None}
    with pytest.raises(UserError, match=r"1 fits, but 2 at|2 fits, but 1 at"):
        check_together(check_rows(rows, "rows"))
    with pytest.raises(UserError, match=r"fits is .*; a list of labels"):
        check_rows([{**rows[0], "fits": ["humor"]}], "rows")
    with pytest.raises(UserError, match="'nobody' has no probability"):
        check_rows([{**rows[0], "fits": ["humor", "nobody"]}], "rows")


def test_the_baseline_is_scored_on_the_same_texts(tmp_path):
    """One that is always right, and one that always says the same."""
    rows = grid()
    right = evaluate_rows(
        with_labels(rows, baseline=lambda row: row["persona"] or "humor"),
        tmp_path,
        quiet=True,
        oracle=False,
        resamples=200,
    )
    group = next(g for g in right["groups"] if (g["stage"], g["format"]) == ("full", "agentic_email"))
    assert group["baseline"]["f1"] == 1 and group["macro_f1"]["emitted"] < 0.7
    assert "base-" in (tmp_path / "tables.txt").read_text(encoding="utf-8")
    constant = evaluate_rows(
        with_labels(rows, baseline=lambda row: "humor"), quiet=True, oracle=False, resamples=200
    )
    group = next(g for g in constant["groups"] if (g["stage"], g["format"]) == ("full", "chat"))
    assert group["baseline"]["f1"] == pytest.approx(1 / 6, abs=1e-6) == group["baseline"]["null"]
    without = evaluate_rows(rows, quiet=True, oracle=False, resamples=200)
    assert {g["baseline"] for g in without["groups"]} == {None}


def test_fits_of_the_classifier_are_in_the_difference_to_another_classifier():
    """The oracle has one fit, and what it finds more than a classifier of five is as uncertain as these."""
    scores, wide = (scored(rows) for rows in (with_labels(grid()), with_labels(grid(), doubt=0.1)))
    plain, doubtful = (
        scored_with(s, given, [(p, p.persona if p.predicted else None) for p in given if p.persona])
        for s, given in (
            (scores, check_rows(with_labels(grid()), "rows")),
            (wide, check_rows(with_labels(grid(), doubt=0.1), "rows")),
        )
    )
    assert plain.seen.keys() == doubtful.seen.keys() != set()
    for name in plain.seen:
        for narrow, wider in ((plain.seen, doubtful.seen), (plain.lost, doubtful.lost)):
            assert narrow[name].estimate == wider[name].estimate
            assert width(wider[name].interval) > width(narrow[name].interval)


@pytest.mark.parametrize("fits", [None, 3])
def test_runs_with_other_numbers_of_fits_are_compared(fits):
    rows = grid()
    first = check_rows(with_labels(rows, doubt=0.1), "rows")
    other = check_rows(with_labels(rows, fits=fits, doubt=0.1) if fits else rows, "rows")
    options = Options(resamples=200)
    plain = {
        c.group: c for c in compare(check_rows(rows, "rows"), check_rows(rows, "rows"), PERSONAS, options)
    }
    found = {c.group: c for c in compare(first, other, PERSONAS, options)}
    group = ("pocket", "full", "agentic_email", 0)
    # The same predictions on both sides: without fits, the difference is 0 in every resample.
    assert plain[group].difference.interval == (0, 0) and found[group].difference.estimate == 0
    assert width(found[group].difference.interval) > 0.01
