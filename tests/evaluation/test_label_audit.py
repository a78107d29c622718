"""The audit of predictions by a person's judgement: counts, kappa, and the section of the report."""

import json

import pytest

from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.label_audit import Audit, audits, kappa, section
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
    whole = summary["sections"]["audit"][-1]
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
