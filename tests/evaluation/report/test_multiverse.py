"""The section on the multiverse: sentences, tables, data, figure."""

import csv
import json
import warnings

import pytest

from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, check_together
from offscript.evaluation.report import multiverse
from offscript.evaluation.report.tables import WIDTH
from tests.rows import PERSONAS, grid, probs


def section(rows, classifiers=None):
    predictions = check_together(check_rows(rows, "rows"))
    return multiverse.multiverse_section(evaluate(predictions, resamples=100), predictions, classifiers or {})


@pytest.fixture(scope="module")
def made():
    rows = grid(scenarios=18)
    # To this classifier, distillation has lost nothing.
    kind = [
        None if r["predicted"] is None else r["persona"] if r["stage"] == "distillation" else r["predicted"]
        for r in rows
    ]
    return section(rows, {"kind": [label or r["predicted"] for label, r in zip(kind, rows, strict=True)]})


def test_each_claim_has_a_sentence_with_its_numbers(made):
    claims = made.data["pocket"]["claims"]
    assert list(claims) == ["less_than_half_kept", "gap_positive", "stage_below"]
    for line, (name, claim) in zip(made.explanation, claims.items(), strict=False):
        every = claim["by_choice"][0]
        assert line == claim["sentence"] and line.startswith("pocket, full in agentic_email: ")
        assert f"in {every['holds']} of {every['defined']} specifications" in line, name
        assert f"in {every['certain']}" in line


def test_a_sentence_names_the_choice_that_decides(made):
    sentence = made.data["pocket"]["claims"]["stage_below"]["sentence"]
    assert "classifier = kind" in sentence


def test_tables_are_at_most_as_wide_as_a_terminal(made):
    assert max(len(line) for table in made.tables for line in table.text().splitlines()) <= WIDTH
    titles = [table.title for table in made.tables]
    assert titles[0] == "pocket, full in agentic_email: retention above chance by choice (claim: below .5)"
    assert len(titles) == 3


def test_shares_are_whole_only_if_they_are():
    assert [
        multiverse._percent(*pair) for pair in ((999, 1000), (1000, 1000), (1, 1000), (0, 9), (0, 0))
    ] == [
        "99%",
        "100%",
        "1%",
        "0%",
        "n/a",
    ]


def test_all_specifications_are_in_the_summary(made):
    data = made.data["pocket"]
    assert len(data["specifications"]) == 4 * 4 * 3 * 3
    first = dict(zip(data["columns"], data["specifications"][0], strict=True))
    assert {name: first[name] for name in data["main"]} == data["main"]
    assert first["gap_low"] < first["gap"] < first["gap_high"]


def test_specifications_that_are_too_many_for_the_summary_are_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(multiverse, "MAX_SUMMARY_BYTES", 1000)
    rows = [{**r, "model": model} for model in ("=pocket", "other") for r in grid(scenarios=6)]
    summary = evaluate_rows(rows, tmp_path, quiet=True, multiverse=True, oracle=False, resamples=100)
    assert summary["sections"]["multiverse"]["other"]["specifications"] == "multiverse.csv"
    with (tmp_path / "figures" / "multiverse.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert {r["model"] for r in read} == {"'=pocket", "other"}, "no formula for a spreadsheet"
    assert len(read) == 2 * 4 * 4 * 3 * 2
    # A later evaluation without it leaves nothing behind.
    evaluate_rows(rows, tmp_path, quiet=True, oracle=False, resamples=100)
    assert not list((tmp_path / "figures").glob("multiverse*"))


def test_the_page_shows_names_as_text(tmp_path):
    hostile = '<script>alert("x")</script>' * 4
    rows = [{**r, "model": hostile} for r in grid(scenarios=6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate_rows(rows, tmp_path, quiet=True, multiverse=True, oracle=False, resamples=100)
    page = (tmp_path / "report.html").read_text()
    assert 'id="multiverse"' in page and "<script>alert" not in page
    assert json.loads((tmp_path / "summary.json").read_text())["sections"]["multiverse"][hostile]


def test_long_names_of_personas_do_not_hide_the_figure(tmp_path):
    long = "a name of a persona that is far too long for a figure " * 3
    rename = {**dict(zip(PERSONAS, PERSONAS, strict=True)), "sarcasm": long, None: None}
    rows = [
        {
            **r,
            "persona": rename[r["persona"]],
            "predicted": rename[r["predicted"]],
            "probs": r["probs"] and probs(rename[r["predicted"]], tuple(map(rename.get, PERSONAS))),
        }
        for r in grid(scenarios=6)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        png, svg = section(rows).draw(tmp_path)
    assert png.exists() and "without a name of" in svg.read_text()


def test_there_is_no_section_without_a_headline():
    assert section([r for r in grid(scenarios=3) if r["format"] == "chat"]) is None
