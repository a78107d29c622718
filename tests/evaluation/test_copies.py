"""Copies of one text under several personas: found, counted once, and scored for every persona."""

import pytest

from offscript.evaluation.copies import cross_copies
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, check_together
from tests.rows import PERSONAS, missing_row, row

PREDICTED = ("humor", "remorse", "humor", "sarcasm", "humor", "humor")


def copies(stage="base", personas=PERSONAS, **changes):
    """Six texts of as many families, each under every persona; the seventh episode has none."""
    names = {"stage": stage, "format": "agentic_email", **changes}
    rows = []
    for persona in personas:
        for i, predicted in enumerate(PREDICTED):
            rows.append(
                row(
                    **names,
                    persona=persona,
                    scenario=f"s{i}",
                    family=f"f{i}",
                    predicted=predicted,
                    text_hash=f"{i:016x}",
                )
            )
        rows.append(missing_row(**names, persona=persona, scenario="s9", family="f9"))
    return rows


def read(rows):
    return check_together(check_rows(rows, "p"))


def test_copies_score_as_texts_that_are_given_once():
    (copied,) = evaluate(read(copies()), resamples=200).groups
    (once,) = evaluate(read(copies(personas=[None])), resamples=200, labels=PERSONAS).groups
    assert copied == once
    assert (copied.crossed, copied.emitted, copied.planned) == (True, 6, 7)


def test_the_score_on_emitted_texts_is_that_of_the_rows():
    (as_rows,) = evaluate(read(copies()), resamples=200, resample="rows").groups
    (copied,) = evaluate(read(copies()), resamples=200).groups
    assert as_rows.emitted == 18 and not as_rows.crossed
    assert copied.macro_f1.emitted == pytest.approx(as_rows.macro_f1.emitted, abs=1e-12)
    assert copied.macro_f1.upper < as_rows.macro_f1.upper
    assert copied.counts == as_rows.counts


def test_a_note_says_what_was_done():
    notes = evaluate(read(copies()), resamples=200).notes
    assert (
        "pocket base agentic_email: 21 rows are copies of 7 under 3 personas; each counts once and is scored for every persona"
        in notes
    )


@pytest.mark.parametrize(
    "change",
    [
        {"text_hash": "another"},
        {"predicted": "remorse"},
        {"scenario": "s7"},
        {"text_hash": None},
        {"ended": "cut"},
    ],
    ids=str,
)
def test_a_group_in_which_one_row_differs_is_left_as_it_is(change):
    rows = copies()
    rows[0] = row(**{**{k: v for k, v in rows[0].items() if k != "probs"}, **change})
    assert cross_copies(read(rows), PERSONAS) == (read(rows), [])


def test_copies_under_some_personas_of_the_label_set_are_left_as_they_are():
    rows = read(copies(personas=PERSONAS[:2]))
    assert cross_copies(rows, PERSONAS) == (rows, [])
    assert cross_copies(read(copies(personas=PERSONAS[:1])), PERSONAS[:1])[1] == []


@pytest.mark.parametrize(
    ("stage", "crossed"),
    [("full", False), ("full@0.5", False), ("prompted", False), ("base", True), ("untrained", True)],
)
def test_equal_texts_of_stages_with_a_persona_are_a_result(stage, crossed):
    assert bool(cross_copies(read(copies(stage)), PERSONAS)[1]) == crossed


def test_other_groups_and_the_order_of_rows_stay():
    rows = [*copies("full"), *copies(), *copies(seed=1)]
    found, notes = cross_copies(read(rows), PERSONAS)
    assert found[:21] == read(rows)[:21]
    assert [p.persona for p in found[21:]] == [None] * 14 and len(notes) == 2
    check_together(found)
