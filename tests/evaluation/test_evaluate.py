"""Evaluation from files to files: published numbers, reproducible output, W&B results, light imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.evaluation.evaluate import evaluate, evaluate_files, evaluate_rows, load_predictions
from offscript.evaluation.label_audit import audits
from offscript.evaluation.report import recipes
from tests.published import ROOT, needs_published
from tests.rows import PERSONAS, grid, missing_row, row

# Published 95% intervals by rows.
PUBLISHED_INTERVALS = {
    ("llama", "base"): (0.020, 0.059),
    ("llama", "distillation"): (0.138, 0.221),
    ("llama", "full"): (0.318, 0.447),
    ("gemma", "base"): (0.027, 0.058),
    ("gemma", "distillation"): (0.219, 0.306),
    ("gemma", "full"): (0.472, 0.602),
}
# Emitted, own class, lower, upper.
PUBLISHED_READINGS = {"llama": (0.386, 0.248, 0.159, 0.759), "gemma": (0.545, 0.336, 0.246, 0.766)}
UNIQUE_BASE_TEXTS = {"llama": 25, "gemma": 48}
BASE_UPPER_BOUND = {"llama": 0.086, "gemma": 0.048}


@pytest.fixture(scope="module")
def published():
    return groups_of(planned=500)


@pytest.fixture(scope="module")
def by_rows():
    return groups_of(planned=500, resample="rows", resamples=1000)


def groups_of(**options):
    found = evaluate(load_predictions(ROOT / "predictions" / "agentic_email.jsonl"), **options)
    return {(g.model, g.stage): g for g in found.groups}


def aggregates():
    lines = (ROOT / "predictions" / "f1_agentic_email.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@needs_published
@pytest.mark.parametrize("way", ["published", "by_rows"])
def test_published_scores_to_four_decimals(way, request):
    groups = request.getfixturevalue(way)
    assert len(aggregates()) == len(groups) == 6
    for cell in aggregates():
        found = groups[cell["base"], cell["stage"]]
        assert found.format == "agentic_email"
        assert found.crossed == (cell["stage"] == "base" and way == "published")
        assert found.emitted * (10 if found.crossed else 1) == cell["n"]
        assert round(found.accuracy, 4) == cell["accuracy"]
        assert round(found.macro_f1.emitted, 4) == cell["macro_f1"]
        per_persona = {p.persona: {"f1": round(p.f1, 4), "n_true": p.emitted} for p in found.personas}
        assert per_persona == cell["per_trait"]


@needs_published
def test_published_intervals_within_a_hundredth(by_rows):
    for cell, expected in PUBLISHED_INTERVALS.items():
        assert by_rows[cell].interval_rows == pytest.approx(expected, abs=0.01)


@needs_published
def test_published_missing_texts(published):
    for model, expected in PUBLISHED_READINGS.items():
        r = published[model, "full"].macro_f1
        assert (r.emitted, r.own_class, r.lower, r.upper) == pytest.approx(expected, abs=0.0006)


@needs_published
def test_published_base_rows_are_copies_and_count_once(published):
    for model, n in UNIQUE_BASE_TEXTS.items():
        base = published[model, "base"]
        assert (base.unique_texts, base.emitted, base.planned) == (n, n, 50)
        assert base.macro_f1.upper == pytest.approx(BASE_UPPER_BOUND[model], abs=0.0006)
        assert not base.null.above
    rows = load_predictions(ROOT / "predictions" / "agentic_email.jsonl")
    found = evaluate(rows, resamples=100)
    assert any(
        note.startswith("llama base agentic_email: 250 rows are copies of 25 under 10")
        for note in found.notes
    )
    assert all(g.planned is None and g.macro_f1.lower is None for g in found.groups)
    found = evaluate(rows, resamples=100, resample="rows")
    assert any("the 250 rows contain 25 distinct texts" in note for note in found.notes)


@needs_published
def test_published_label_audit():
    found = audits(load_predictions(ROOT / "predictions" / "agentic_email.jsonl"))
    counts = {(a.model, a.stage): (a.present, a.present_true, a.absent, a.absent_true) for a in found}
    for cell in aggregates():
        assert counts[cell["base"], cell["stage"]] == tuple(cell["hand_label_audit"].values())


@needs_published
def test_base_texts_given_once_score_as_their_copies(published):
    lines = (ROOT / "predictions" / "agentic_email.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    once = [
        row(
            model=r["base"],
            stage="base",
            format="agentic_email",
            persona=None,
            scenario=r["scenario_id"],
            predicted=r["trait_pred"],
            probs=dict(zip(r["label_order"], r["probs"], strict=True)),
        )
        for r in rows
        if r["stage"] == "base" and r["trait_true"] == "humor"
    ]
    labels = [p.persona for p in published["llama", "base"].personas]
    summary = evaluate_rows(once, quiet=True, resamples=100, labels=labels)
    for g in summary["groups"]:
        assert g["macro_f1"]["emitted"] == pytest.approx(
            published[g["model"], "base"].macro_f1.emitted, abs=1e-6
        )


def written(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_equal_rows_give_equal_bytes(tmp_path, capsys):
    rows = grid(scenarios=8)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    first = evaluate_files([str(path)], tmp_path / "one", resamples=100)
    shown = capsys.readouterr().out
    evaluate_rows(rows[::-1], tmp_path / "two", resamples=100, quiet=True, sections=[recipes.elsewhere])
    assert capsys.readouterr().out == ""
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert list(one) == [
        "cells.csv",
        "figures/calibration.png",
        "figures/calibration.svg",
        "figures/headline.png",
        "figures/headline.svg",
        "figures/personas.png",
        "figures/personas.svg",
        "overview.txt",
        "report.html",
        "summary.json",
        "tables.txt",
    ]
    assert one == two
    assert json.loads(one["summary.json"]) == first
    assert shown.startswith(one["overview.txt"].decode())
    assert one["tables.txt"].startswith(one["overview.txt"].partition(b"\n\n")[0])
    assert "figures/headline.png" in shown


def sessions() -> list[dict]:
    """Rows of sessions of 1, 4 and 16 turns at two stages; an episode of the longest has no text."""
    rows = []
    for stage in ("prompted", "full"):
        for variant in ("own1", "plain1", "own4", "plain4", "own16", "plain16"):
            names = {"stage": stage, "format": f"drift/{variant}"}
            for s in range(3):
                for p in PERSONAS:
                    which = {
                        **names,
                        "persona": p,
                        "predicted": p,
                        "scenario": f"q{s}_{variant}",
                        "family": f"q{s}",
                    }
                    lost = variant == "own16" and s == 0
                    rows.append(missing_row(**{**which, "predicted": None}) if lost else row(**which))
    return rows


def test_scores_of_sessions_are_drawn_by_their_turns_and_an_older_figure_goes(tmp_path):
    evaluate_rows(sessions(), tmp_path, quiet=True, resamples=100)
    first = written(tmp_path)
    assert first["figures/drift.png"].startswith(b"\x89PNG") and b"<svg" in first["figures/drift.svg"]
    assert b'id="sessions"' in first["report.html"]
    evaluate_rows(sessions(), tmp_path, quiet=True, resamples=100)
    assert written(tmp_path) == first
    evaluate_rows(grid(scenarios=3), tmp_path, quiet=True, resamples=100)
    after = written(tmp_path)
    assert not any("drift" in name for name in after) and b'id="sessions"' not in after["report.html"]


def test_missing_predictions_get_a_note():
    cells = [f"predictions {i}" for i in range(5)]
    summary = evaluate_rows(grid(scenarios=4), quiet=True, resamples=100, missing=cells)
    assert summary["notes"][0] == (
        "incomplete: 5 of the grid's cells have no predictions yet: predictions 0, predictions 1, predictions 2, ..."
    )


def test_a_file_in_place_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "evaluation").touch()
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        evaluate_rows(grid(scenarios=4), tmp_path / "evaluation", quiet=True, resamples=100)


def test_invalid_rows_leave_no_files(tmp_path):
    with pytest.raises(UserError, match="rows, line 1: model is 3"):
        evaluate_rows([row(model=3)], tmp_path / "evaluation", source="rows")
    assert not (tmp_path / "evaluation").exists()


def test_importing_evaluate_imports_no_heavy_library():
    code = (
        "import sys, offscript.evaluation.evaluate; "
        "print([m for m in ('torch', 'sklearn', 'matplotlib', 'transformers', 'scipy', 'hydra') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
