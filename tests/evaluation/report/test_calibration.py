"""The section on calibration: tables, data and figure."""

import csv
import json

import pytest

from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.metrics.readouts import with_readouts
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows
from offscript.evaluation.report import reliability
from offscript.evaluation.report.calibration import calibration
from tests.evaluation.metrics.test_persona_gaps import rows as unequal
from tests.rows import grid, row


def section(rows):
    predictions = check_rows(rows, "rows")
    return calibration(with_readouts(evaluate(predictions, resamples=50), predictions), predictions)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [{**r, "text": "word " * (5 + i % 40)} for i, r in enumerate(grid()) if r["predicted"]]
    return folder, evaluate_rows(rows, folder, oracle=False, resamples=100, quiet=True)


def test_the_section_is_in_every_result(evaluated):
    folder, found = evaluated
    text = (folder / "tables.txt").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    for title in ("pocket: without a threshold (temperature T", "pocket: the gap of F1 at equal lengths"):
        assert title in text and title in page
    assert max(map(len, text.splitlines())) <= 100
    assert 'id="calibration"' in page and "Accuracy by confidence" in page
    assert {"calibration.png", "calibration.svg"} <= {path.name for path in (folder / "figures").iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sections"]["calibration"] == found["sections"]["calibration"]
    assert 0 < summary["sections"]["calibration"]["temperatures"]["pocket"] < 100
    assert {m["format"] for m in summary["sections"]["calibration"]["lengths"]} == {
        "chat_email",
        "agentic_email",
    }
    (line,) = (
        line
        for line in csv.DictReader((folder / "cells.csv").open())
        if (line["stage"], line["format"], line["persona"]) == ("full", "agentic_email", "_all")
    )
    group = next(g for g in found["groups"] if (g["stage"], g["format"]) == ("full", "agentic_email"))
    of_group = group["readouts"]
    for column, value in {
        "auc": of_group["auc"],
        "auc_low": of_group["auc_interval"][0],
        "log_loss": of_group["raw"]["log_loss"],
        "ece": of_group["raw"]["ece"],
        "ece_scaled": of_group["scaled"]["ece"],
        "temperature": of_group["temperature"],
    }.items():
        assert line[column] == f"{value:.6f}"


def test_base_texts_are_in_no_table(evaluated):
    made = section(grid())
    assert all(line[0] != "base" for table in made.tables for line in table.rows)
    assert section([r for r in grid() if r["stage"] == "base"]) is None


def test_reasons_stand_where_a_table_does_not():
    made = section(grid())
    assert not any("equal lengths" in table.title for table in made.tables)
    (reason,) = (line for line in made.explanation if line.startswith("No F1 at equal lengths"))
    assert "the rows do not hold the texts: pocket prompted chat_email" in reason


def test_personas_that_differ_are_listed_with_their_corrected_p():
    made = section(unequal((0.4, 0.4, 0.95, 0.4)))
    (table,) = (table for table in made.tables if "lose more or less" in table.title)
    assert {line[2]: line[-1] for line in table.rows}["remorse"] == "<.001"
    assert all(float(line[-1].removeprefix("<")) <= 0.05 for line in table.rows) and len(table.rows) < 4
    assert any(line.startswith("Tested: 4 gaps") for line in made.explanation)


def test_many_formats_are_drawn_together_and_names_are_escaped(tmp_path):
    rows = [
        row(format=fmt, scenario=f"s{s}", family=f"f{s}", persona=p, predicted=p if (s + k) % 3 else "humor")
        for k, fmt in enumerate(["chat", "<b>$x_1$", "a", "b", "c", "d"])
        for s in range(8)
        for p in ("sarcasm", "humor", "remorse")
    ]

    def drawn(chosen):
        predictions = check_rows(chosen, "rows")
        scores = with_readouts(evaluate(predictions, resamples=20), predictions)
        return reliability.draw(scores, tmp_path)[1].read_text(encoding="utf-8")

    assert "5 other formats" in drawn(rows)
    few = drawn([r for r in rows if r["format"] in ("chat", "<b>$x_1$")])
    assert "&lt;b&gt;$x_1$" in few and "other formats" not in few


def test_a_figure_without_a_temperature_has_one_panel(tmp_path):
    predictions = check_rows([r for r in grid() if r["format"] != "chat"], "rows")
    scores = with_readouts(evaluate(predictions, resamples=20), predictions)
    png, svg = reliability.draw(scores, tmp_path)
    assert png.stat().st_size > 0 and "T = " not in svg.read_text(encoding="utf-8")
