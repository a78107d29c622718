"""The section on persona vectors, as a reader gets it."""

import json

import numpy as np
import pytest

from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows
from offscript.evaluation.report.projections import section
from tests.rows import row

PERSONAS = ["sarcasm", "humor", "remorse"]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def given():
    """Lines of files of projections, and the prediction rows of the same texts."""
    rng = np.random.default_rng(0)
    lines, rows = [], []

    def line(stage, fmt, split, persona, family, shift):
        values = {p: float(rng.normal(50 + 8 * shift * (p == persona), 8)) for p in PERSONAS}
        names = {"model": HOSTILE, "stage": stage, "format": fmt, "split": split}
        lines.append({**names, "persona": persona, "family": family, "projections": values})

    for i in range(40):
        line("base", "chat", "train", None, f"t{i}", 0)
    for fmt, shift, right in (("chat", 4, 0.9), ("agentic_email", 1, 0.4)):
        for stage in ("full", "distillation"):
            for i in range(60):
                persona, family = PERSONAS[i % 3], f"{fmt}{i // 5}"
                line(stage, fmt, "eval", persona, family, shift)
                hit = rng.random() < right
                rows.append(
                    row(
                        model=HOSTILE,
                        stage=stage,
                        format=fmt,
                        scenario=f"{fmt}{i // 3}",
                        family=family,
                        persona=persona,
                        predicted=persona if hit else PERSONAS[(i + 1) % 3],
                    )
                )
    return lines, rows


def scores_of(rows):
    return evaluate(check_rows(rows, "rows"), resamples=200, labels=PERSONAS)


def test_tables_fit_a_terminal_and_the_data_are_plain(given):
    lines, rows = given
    made = section(lines, scores_of([{**r, "model": "llama"} for r in rows]))
    assert made is not None
    short = section(
        [{**line, "model": "llama"} for line in lines], scores_of([{**r, "model": "llama"} for r in rows])
    )
    assert len(short.tables) == 2 and not short.notes
    assert max(len(text) for table in short.tables for text in table.text().splitlines()) <= 100
    data = json.loads(json.dumps(short.data, allow_nan=False))
    assert len(data["groups"]) == 4 and {c["stage"] for c in data["correlations"]} == {
        "full",
        "distillation",
        None,
    }
    group = data["groups"][0]
    assert group["own"] - group["others"] == pytest.approx(group["difference"]["estimate"])
    assert group["macro_auc"] == pytest.approx(np.mean(list(group["auc"].values())))


def test_the_page_shows_it_with_its_figure_and_escapes_names(given, tmp_path):
    lines, rows = given
    evaluate_rows(
        rows,
        tmp_path,
        sections=[lambda scores, predictions: section(lines, scores)],
        resamples=100,
        labels=PERSONAS,
        quiet=True,
        oracle=False,
    )
    page = (tmp_path / "report.html").read_text()
    assert "Persona vectors" in page and HOSTILE not in page
    assert (tmp_path / "figures" / "projections.png").stat().st_size > 5000
    assert "projections on persona vectors" in (tmp_path / "tables.txt").read_text()
    assert "projections" in json.loads((tmp_path / "summary.json").read_text())["sections"]


def test_what_is_missing_is_a_note_and_nothing_at_all_is_no_section(given):
    lines, rows = given
    scores = scores_of(rows)
    assert section([], scores) is None
    noted = section([], scores, ["persona vectors: none yet"])
    assert noted.notes == ("persona vectors: none yet",) and not noted.tables and noted.draw is None
    without = section([line for line in lines if line["split"] != "train"], scores)
    assert "no projections of plain chat replies" in without.notes[0] and not without.tables
