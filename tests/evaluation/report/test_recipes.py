"""The section on recipes, as a reader gets it."""

import json

import pytest

from offscript.evaluation.evaluate import evaluate_files, evaluate_rows
from offscript.evaluation.report.recipes import UNKNOWN_RECIPES, Recipe, section
from offscript.evaluation.report.section import Section
from offscript.evaluation.report.tables import WIDTH
from tests.evaluation.metrics.test_recipes import rows_of, scores_of
from tests.rows import PERSONAS

STAGES = {
    "full": 0.0,
    "mixed": 0.3,
    "mixed_000": 0.0,
    "mixed_without_agentic_email": 0.2,
    "mixed_without_chat_email": 0.15,
}
BOTH = ["chat_email", "agentic_email"]


def mixed(share, formats, tokens=6_000.0):
    settings = {"share": share, "formats": formats, "tokens": 6_000, "lora": {"rank": 16}}
    return Recipe(("chat", *(formats if share else ())), settings, tokens, 12.4, 30.0)


KNOWN = {
    ("pocket", "full"): Recipe(("chat", "self_reflection"), {"loss_on": "every_turn"}, 40_000.0, 20.0, 50.0),
    ("pocket", "mixed"): mixed(0.25, BOTH),
    ("pocket", "mixed_000"): mixed(0.0, BOTH),
    ("pocket", "mixed_without_agentic_email"): mixed(0.25, ["chat_email"]),
    ("pocket", "mixed_without_chat_email"): mixed(0.25, ["agentic_email"]),
}


@pytest.fixture(scope="module")
def scores():
    return scores_of(rows_of(STAGES))


def table(found, title):
    (one,) = [t for t in found.tables if title in t.title]
    return {line[0]: line for line in one.rows}


def test_the_matrix_marks_the_formats_that_a_stage_was_trained_on(scores):
    rows = table(section(scores, KNOWN), "kept above chance by recipe")
    marked = {stage: [cell.endswith("*") for cell in row[1:4]] for stage, row in rows.items()}
    assert marked == {
        "full": [True, False, False],
        "mixed": [True, True, True],
        "mixed_000": [True, False, False],
        "mixed_without_agentic_email": [True, True, False],
        "mixed_without_chat_email": [True, False, True],
    }


def test_a_variant_of_a_format_is_the_format_that_it_is_a_variant_of():
    assert Recipe(("drift",)).trains_on("drift/own8") and not Recipe(("chat",)).trains_on("chat_email")


def test_points_are_of_what_is_kept_off_chat_for_a_million_tokens(scores):
    found = section(scores, KNOWN)
    (kept,) = [r.kept.estimate for r in scores.recipes if (r.stage, r.format) == ("mixed", None)]
    by_stage = {stage["stage"]: stage for stage in found.data["stages"]}
    assert by_stage["mixed"]["points_per_million"] == pytest.approx(100 * kept / 0.006)
    row = table(found, "cost")["mixed"]
    assert row[1:4] == ("6,000", "12", "30")
    unknown = section(scores, {**KNOWN, ("pocket", "mixed"): mixed(0.25, BOTH, tokens=None)})
    assert table(unknown, "cost")["mixed"][1] == table(unknown, "cost")["mixed"][5] == "n/a"


def test_stages_that_differ_in_their_share_alone_are_a_dose_curve(scores, tmp_path):
    found = section(scores, KNOWN)
    (doses,) = [t for t in found.tables if "dose" in t.title]
    assert [row[:2] for row in doses.rows] == [(".00", "mixed_000"), (".25", "mixed")]
    f1 = {r.stage: r.f1.estimate for r in scores.recipes if r.format == "agentic_email"}
    assert doses.header[4] == "agentic_email" and doses.rows[1][4].startswith(
        f"{f1['mixed']:.3f}".removeprefix("0")
    )
    png, svg = found.draw(tmp_path)
    assert png.stat().st_size > 5000 and "agentic_email" in svg.read_text()
    other = {**KNOWN, ("pocket", "mixed_000"): Recipe(("chat",), {"share": 0.0, "formats": BOTH})}
    assert not any("dose" in t.title for t in section(scores, other).tables)
    assert section(scores, other).draw is None


def test_a_format_that_was_left_out_is_marked(scores):
    rows = table(section(scores, KNOWN), "left out")
    out = {stage: [cell.endswith("out") for cell in row[1:]] for stage, row in rows.items()}
    assert out == {
        "mixed": [False, False],
        "mixed_without_agentic_email": [False, True],
        "mixed_without_chat_email": [True, False],
    }


def test_tables_fit_a_terminal_and_the_data_are_plain(scores):
    found = section(scores, KNOWN)
    assert max(len(line) for t in found.tables for line in t.text().splitlines()) <= WIDTH
    assert [t.title.removeprefix("pocket: ") for t in found.tables] == [
        "kept above chance by recipe", "scores by recipe", "changes against full", "what the recipes train on",
        "cost of an adapter", "F1 by dose", "kept with a format left out",
    ]  # fmt: skip
    data = json.loads(json.dumps(found.data, allow_nan=False))
    assert data["reference"] == {"pocket": "full"} and len(data["stages"]) == 5
    assert table(found, "train on")["full"] == ("full", "chat", "self_reflection")


def test_what_predictions_do_not_tell_is_left_out_with_one_line(scores, tmp_path):
    found = section(scores, {}, (UNKNOWN_RECIPES,))
    assert [t.title.removeprefix("pocket: ") for t in found.tables] == [
        "kept above chance by recipe", "scores by recipe", "changes against full"
    ]  # fmt: skip
    assert {row[2] for row in found.tables[1].rows} == {"?", ""}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows_of({"full": 0.0, "mixed": 0.3})))
    evaluate_files(file, tmp_path / "out", quiet=True, resamples=50, oracle=False)
    text = (tmp_path / "out/tables.txt").read_text()
    assert "scores by recipe" in text and " ".join(UNKNOWN_RECIPES.split()) in " ".join(text.split())


def test_one_trained_stage_has_no_section():
    assert section(scores_of(rows_of({"full": 0.0, "prompted": 0.1})), KNOWN) is None


def test_the_page_has_the_figure_and_links_to_the_side_effects_if_they_are_there(tmp_path):
    rows = rows_of({"full": 0.0, "mixed": 0.3, "mixed_000": 0.1})
    effects = Section("side_effects", "Task success and side effects", (), (), {})
    made = [lambda scores, predictions: section(scores, KNOWN)]
    options = {"resamples": 50, "labels": list(PERSONAS), "quiet": True, "oracle": False}
    evaluate_rows(rows, tmp_path / "one", sections=[effects, *made], **options)
    page = " ".join((tmp_path / "one/report.html").read_text().split())
    link = ', <a href="#side_effects">'
    assert link in page and 'See also: <a href="#confusions">' in page and "F1 by dose" in page
    assert (tmp_path / "one/figures/recipes.svg").exists()
    evaluate_rows(rows, tmp_path / "two", sections=made, **options)
    assert link not in " ".join((tmp_path / "two/report.html").read_text().split())
