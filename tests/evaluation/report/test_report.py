"""Tables, CSV, JSON, page and figures of a synthetic grid."""

import csv
import io
import itertools
import json

import pytest

from offscript.evaluation.metrics import display
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.order import formats_in_order
from offscript.evaluation.predictions import check_rows, check_together
from offscript.evaluation.report import figures, summary, tables
from tests.rows import PERSONAS, grid, missing_row, row


def scored(rows, **settings):
    return evaluate(check_together(check_rows(rows, "rows")), **{"resamples": 100, **settings})


@pytest.fixture(scope="module")
def scores():
    return scored(grid())


@pytest.mark.parametrize(
    ("value", "places", "shown"),
    [
        (0.1816, 3, ".182"),
        (0.1816, 4, ".1816"),
        (1.0, 3, "1.00"),
        (0.99999, 3, "1.00"),
        (-0.0412, 3, "-.041"),
        (-0.00001, 3, ".000"),
        (0.0, 4, ".0000"),
        (-1.25, 3, "-1.25"),
        (None, 3, "n/a"),
    ],
)
def test_format_of_numbers(value, places, shown):
    assert display.number(value, places) == shown


def test_format_of_intervals():
    assert display.span((0.1384, 0.2206)) == ".138-.221"
    assert display.span((-0.02, 0.0314)) == "-.020 to .031"
    assert display.span(None) == "n/a"


def test_tables_are_at_most_100_columns_wide():
    rows = grid(scenarios=4) + [
        {**r, "format": "break_character"} for r in grid(scenarios=4) if r["format"] == "chat"
    ]
    text = tables.text(scored(rows))
    seeds = tables.text(scored([{**r, "seed": s} for s in range(3) for r in rows]))
    assert max(map(len, (text + seeds).splitlines())) <= tables.WIDTH
    assert "pocket: macro_f1_3 by stage and format" in text
    assert "pocket: retention against chat" in text


def lines_of(text: str, *words: str) -> list[list[str]]:
    """The cells of all lines that begin with ``words``."""
    lines = [line.split() for line in text.splitlines()]
    return [line for line in lines if line[: len(words)] == list(words)]


def test_the_overview_is_one_table_of_trained_and_prompted_stages(scores):
    text = tables.overview(scores)
    assert len(text.splitlines()) <= 25, "one screen"
    assert [line.split()[0] for line in text.splitlines()[3:12]] == [
        stage for stage in ("prompted", "distillation", "full") for _ in range(3)
    ]
    group, kept = scores.groups[-1], scores.retention[-1]
    assert (group.stage, group.format) == (kept.stage, kept.format) == ("full", "agentic_email")
    (cells,) = lines_of(text, "full", "agentic_email")
    assert cells[2:] == [
        display.number(group.macro_f1.emitted),
        f"({display.span(group.interval)})",
        display.number(group.null.mean),
        display.number(group.null.p),
        display.number(kept.above_chance.estimate),
        *f"({display.span(kept.above_chance.interval)})".split(),
        f"{group.emission_rate:.0%}",
        display.span((group.macro_f1.lower, group.macro_f1.upper)),
    ]
    assert not lines_of(text, "base") and lines_of(text, "Texts", "of", "base", "weights,")
    assert not {"own", "texts"} & set(text.splitlines()[1].split())


def test_base_alone_is_shown():
    rows = [r for r in grid(scenarios=6) if r["stage"] == "base"]
    assert len(lines_of(tables.overview(scored(rows)), "base")) == 3


def test_the_overview_shows_the_mean_over_training_seeds():
    rows = [{**r, "seed": s} for s in range(3) for r in grid(scenarios=15, seed=s) if r["stage"] == "full"]
    text = tables.overview(scored(rows))
    assert len(lines_of(text, "full")) == 3 and "means over training seeds (3 of full)" in text
    assert lines_of(tables.text(scored(rows)), "full/1", "chat")


def test_intervals_of_missing_texts_have_a_table(scores):
    group = scores.groups[-1]
    text = tables.text(scores).partition("under assumptions about missing texts")[2]
    cells = lines_of(text, "full", "agentic_email")[0]
    assert cells[2] == str(group.planned - group.emitted)
    assert cells[-3:] == [
        display.number(group.macro_f1.lower),
        display.number(group.macro_f1.upper),
        display.span(group.interval_bounds),
    ]


def test_a_table_line_has_the_numbers_of_its_group(scores):
    group = scores.groups[-1]
    line = next(
        line
        for line in tables.text(scores).partition("by stage and format")[2].splitlines()
        if line.startswith("full") and "agentic_email" in line
    )
    for shown in (
        f"{group.emitted}/90",
        display.number(group.macro_f1.emitted, 4),
        display.number(group.accuracy),
    ):
        assert shown in line.split()


def test_unknown_and_undefined_values_are_marked():
    rows = [row(scenario=f"s{i}", ended=None) for i in range(3)]
    rows += [missing_row(format="agentic_email", scenario=f"m{i}") for i in range(3)]
    text = tables.text(scored(rows, labels=PERSONAS)).partition("by stage and format")[2]
    chat, email = (
        next(line for line in text.splitlines() if f" {f} " in line) for f in ("chat", "agentic_email")
    )
    assert chat.split()[2] == "3/?"
    assert email.split()[2:] == ["0/3", "0", *["n/a"] * 6]


def test_training_seeds_are_shown_only_if_there_are_several(scores):
    assert "full/0" not in tables.text(scores)
    assert "full/1" in tables.text(scored(grid(scenarios=4) + [{**r, "seed": 1} for r in grid(scenarios=4)]))


def test_cells_csv_has_a_line_per_group_and_per_persona(scores):
    lines = list(csv.DictReader(io.StringIO(summary.cells_csv(scores))))
    assert len(lines) == 12 * (1 + len(PERSONAS))
    for group in scores.groups:
        mine = [r for r in lines if (r["stage"], r["format"]) == (group.stage, group.format)]
        assert [r["persona"] for r in mine] == ["_all", *PERSONAS]
        assert mine[0]["macro_f1_3"] == f"{group.macro_f1.emitted:.6f}"
        assert mine[0]["planned"] == str(group.planned)
        assert [r["f1"] for r in mine[1:]] == [f"{p.f1:.6f}" for p in group.personas]
        assert mine[0]["f1"] == "" and mine[1]["macro_f1_3"] == ""
    agentic = next(r for r in lines if (r["stage"], r["format"]) == ("full", "agentic_email"))
    assert agentic["ended"] == ";".join(f"{k}:{v}" for k, v in scores.groups[-1].ended.items())


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1"])
def test_a_name_that_a_spreadsheet_would_run_is_quoted_in_cells_csv(name):
    named = [{**r, "model": name} for r in grid(scenarios=2)]
    (first, *_) = csv.DictReader(io.StringIO(summary.cells_csv(scored(named)), newline=""))
    assert first["model"] == f"'{name}".replace("\r", " ")


def test_summary_holds_json_values_only(scores):
    plain = summary.summary(scores)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["columns"] == [*PERSONAS, "outside", "missing"]
    assert set(plain["groups"][0]["macro_f1"]) == {"emitted", "own_class", "lower", "upper"}
    assert plain["options"]["resamples"] == 100


def test_rounding_has_no_negative_zero():
    assert str(summary.rounded(-1e-9)) == "0.0"


def test_figures_are_reproducible(scores, tmp_path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(
            [
                path.read_bytes()
                for path in [
                    *figures.headline(scores, tmp_path / name),
                    *figures.heatmap(scores, tmp_path / name),
                ]
            ]
        )
    assert made[0] == made[1]
    assert made[0][0].startswith(b"\x89PNG")
    assert b"<svg" in made[0][1]


@pytest.mark.parametrize(
    "rows",
    [
        [missing_row(scenario=f"s{i}") for i in range(3)],
        [row(scenario="s0", model="a & b < c $x$", stage="my_stage", format="my_format")],
        grid(scenarios=3) + grid(scenarios=3, model="other") + [{**r, "seed": 1} for r in grid(scenarios=3)],
    ],
    ids=["no texts", "unknown names", "models and seeds"],
)
def test_figures_of_unusual_rows(rows, tmp_path):
    assert all(path.stat().st_size > 1000 for path in figures.headline(scored(rows), tmp_path))


def test_many_stages_have_a_row_each_in_every_panel():
    names = [f"stage_{i:02d}" for i in range(11)]
    found = scored(
        [{**r, "stage": name} for name in names for r in grid(scenarios=3) if r["stage"] == "full"]
    )
    axes = figures._draw_headline(found).axes
    formats = formats_in_order(g.format for g in found.groups)
    assert [axis.get_title(loc="left").split("\n")[0] for axis in axes] == formats
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == names
    drawn = {
        (format_, names[round(y)]): x
        for axis, format_ in zip(axes, formats, strict=True)
        for container in axis.containers
        for x, y in zip(*container.lines[0].get_data(), strict=True)
    }
    assert drawn == {(g.format, g.stage): g.macro_f1.emitted for g in found.groups}


def test_a_heatmap_of_many_columns_fits_a_page():
    rows = [
        {**r, "stage": f"stage_{i:02d}"} for i in range(20) for r in grid(scenarios=3) if r["stage"] == "full"
    ]
    found = scored(rows)
    figure = figures._draw_heatmap(found)
    assert figure.get_figwidth() < 12
    rows_of_cells = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert rows_of_cells == [f"{g.stage} {g.format}" for g in found.main_groups("pocket")]


def test_labels_of_lines_do_not_overlap():
    placed = figures._spread([0.5, 0.49, 0.9, 1.0, 1.0])
    gaps = sorted(placed)
    assert all(b - a >= 0.0549 for a, b in itertools.pairwise(gaps))
    assert max(placed) <= 1.0
    assert placed[1] < placed[0]
