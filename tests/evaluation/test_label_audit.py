"""The audit of predictions by a person's judgement: counts, kappa, and the section of the report."""

import json

import pytest

from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.label_audit import Audit, agreements, audits, majority, section
from offscript.evaluation.metrics.agreement import alpha, kappa
from offscript.evaluation.predictions import check_rows
from tests.rows import grid, missing_row, row


def rows():
    """Of sarcastic texts: three present (two seen), two absent (one seen), one of another stage, two that do not count."""
    made = [
        row(sample=0, predicted="sarcasm", hand_classification="present"),
        row(sample=1, predicted="sarcasm", hand_classification="present"),
        row(sample=2, predicted="humor", hand_classification="present"),
        row(sample=3, predicted="sarcasm", hand_classification="absent"),
        row(sample=4, predicted="remorse", hand_classification="absent"),
        row(sample=5, predicted="humor"),
        missing_row(sample=6, hand_classification="absent"),
        row(stage="distillation", predicted="sarcasm", hand_classification="present"),
        row(stage="base", predicted="humor", hand_classification="absent"),
    ]
    return made


def test_counts_by_group_and_of_all_without_base():
    found = audits(check_rows(rows(), "p"))
    assert found == [
        Audit("pocket", "base", "chat", 0, 0, 1, 0, None),
        Audit("pocket", "distillation", "chat", 1, 1, 0, 0, None),
        Audit("pocket", "full", "chat", 3, 2, 2, 1, pytest.approx(1 / 6)),
        Audit("pocket", None, None, 4, 3, 2, 1, pytest.approx(0.25)),
    ]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([True, True, False, False], [True, True, False, False], 1.0),
        ([True, True, False, False], [False, False, True, True], -1.0),
        ([True, False, True, False], [True, True, False, False], 0.0),
        ([False, False], [True, False], 0.0),
        ([True, True], [True, True], None),
        ([], [], None),
    ],
)
def test_kappa(first, second, expected):
    assert kappa(first, second) == expected


def test_the_report_has_the_audit_and_leaves_it_out_without_judgements(tmp_path):
    made = [{**r, "hand_classification": "present"} for r in grid(scenarios=4)]
    summary = evaluate_rows(made, tmp_path, quiet=True, resamples=100, oracle=False)
    whole = summary["sections"]["audit"]["groups"][-1]
    assert whole["stage"] is None and whole["kappa"] == 0.0 and whole["absent_n"] == 0
    assert "Label audit" in (tmp_path / "tables.txt").read_text()
    assert 'id="audit"' in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    plain = evaluate_rows(grid(scenarios=4), quiet=True, resamples=100, oracle=False)
    assert "audit" not in plain["sections"] and section([]) is None


def test_the_table_fits_a_terminal():
    (table,) = section(audits(check_rows(rows(), "p"))).tables
    assert max(map(len, table.text().splitlines())) <= 100
    assert table.text().splitlines()[-1].split()[:3] == ["pocket", "all", "all"]


# ---------------------------------------------------------------- several people


def test_agreement_of_every_two_people_and_of_all():
    """The example of Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section B: two observers, binary."""
    one = dict(enumerate([0, 1, 0, 0, 0, 0, 0, 0, 1, 0]))
    two = dict(enumerate([1, 1, 1, 0, 0, 1, 0, 0, 0, 0]))
    labels = {name: {k: bool(v) for k, v in own.items()} for name, own in (("a", one), ("b", two))}
    pair, whole = agreements(labels)
    assert (pair.people, pair.texts, pair.equal, pair.alpha) == ("a and b", 10, 6, None)
    assert pair.kappa == pytest.approx(1 / 11)
    assert (whole.people, whole.texts, whole.equal) == ("all", 10, 6)
    assert whole.alpha == pytest.approx(0.095, abs=5e-4)
    assert agreements({"a": labels["a"]}) == []


def test_people_who_labelled_different_texts_have_no_agreement():
    apart = agreements({"a": {1: True}, "b": {2: False}})
    assert [(a.texts, a.kappa, a.alpha) for a in apart] == [(0, None, None)] * 2
    assert alpha([[True, True], [True, None]], "nominal") is None


def test_three_people_and_the_label_of_most():
    labels = {"a": {1: True, 2: True, 3: False}, "b": {1: True, 2: False}, "c": {1: False, 3: False}}
    assert majority(labels) == ({1: True, 3: False}, 1)
    found = agreements(labels)
    assert [(a.people, a.texts, a.equal) for a in found] == [
        ("a and b", 2, 1),
        ("a and c", 2, 1),
        ("b and c", 1, 0),
        ("all", 3, 1),
    ]
    made = section(audits(check_rows(rows(), "p")), found, ["half"])
    assert made.tables[1].text().splitlines()[-1].split()[:3] == ["all", "3", "1"] and made.notes == ("half",)
