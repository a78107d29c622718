"""``offscript evaluate beside="..."``: two finished runs of a grid in one table, with the settings in which they differ."""

import json

import pytest

from offscript.evaluation.comparison import compare, differing, text
from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.predictions import check_rows
from tests.invoked import invoke, refused
from tests.rows import PERSONAS, grid, missing_row, row

GRID = (
    "experiment=smoke",
    "engine=scripted",
    "root=runs",
    "tracking=off",
    "grid.stage=[base,prompted]",
    "grid.format=[chat]",
    "classifier.stages=[prompted]",
    "classifier.epochs=1",
    "format.count={classifier: 8, eval: 4}",
    "evaluation.resamples=100",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the plain and the named prompted baseline, whose base rows are shared."""
    folder = tmp_path_factory.mktemp("beside")
    for words in ((), ("recipe.prompted=named",)):
        done = invoke(folder, "submit", *GRID, *words)
        assert done.code == 0, done.err
    assert len(list(folder.rglob("rollouts/pocket/base/*/*.jsonl"))) == 1
    return folder


@pytest.mark.slow
def test_two_runs_in_one_folder_stand_side_by_side(runs):
    evaluation = (runs / "runs/smoke/evaluation/summary.json").read_text()
    done = invoke(runs, "evaluate", *GRID, "beside=recipe.prompted=named")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "smoke, beside recipe.prompted=named: macro-F1 and its difference"
    header = "model stage format F1 emitted beside: F1 emitted difference 95%"
    assert lines[1].split() == header.split()
    assert [line.split()[:3] for line in lines[3:5]] == [["pocket", s, "chat"] for s in ("base", "prompted")]
    assert lines[6:8] == ["Settings that differ: here, beside", "  recipe.prompted (F6): plain, named"]
    (folder,) = (runs / "runs/smoke/evaluations").glob("beside-*")
    kept = json.loads((folder / "comparison.json").read_text())
    assert (folder / "comparison.txt").read_text() in done.out
    for group in kept["groups"]:
        if group["stage"] != "base":
            assert group["difference"] == pytest.approx(group["here"]["f1"] - group["beside"]["f1"])
        assert group["here"]["emission_rate"] == 1.0
    assert (runs / "runs/smoke/evaluation/summary.json").read_text() == evaluation
    here = {(g["stage"], g["format"]): g["macro_f1"]["emitted"] for g in json.loads(evaluation)["groups"]}
    # The last evaluation that was made is that of the second run.
    for group in kept["groups"]:
        assert group["beside"]["f1"] == pytest.approx(here[group["stage"], group["format"]], abs=1e-6)


@pytest.mark.slow
def test_a_run_that_is_not_finished_is_named_with_the_command_that_makes_it(runs):
    line = refused(runs, "evaluate", *GRID, 'beside="recipe.prompted=named name=elsewhere"')
    assert line.startswith("error: elsewhere: predictions pocket")
    assert " more are not made yet; make all with: offscript submit experiment=smoke " in line
    assert line.endswith("recipe.prompted=named name=elsewhere")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fish=1"], "error: beside: fish: unknown key; "),
        (["recipe.prompted=rude"], "error: beside: recipe.prompted: found 'rude'; input should be"),
        (["persona=sarcasm"], "error: beside: persona=sarcasm: this command does not read it; write grid"),
        (["a b"], "error: beside: a: no '=' in it; "),
        (["name='x"], 'error: beside: found "name=\'x"; no closing quotation: close every quote'),
        (
            ["beside=seed=1"],
            "error: beside: beside: is for one evaluation, not for its second run; leave it out",
        ),
        (["predictions=x"], "error: beside: predictions: is for one evaluation, not for its second run"),
        (["format=chat"], "error: beside: format: is for one evaluation, not for its second run"),
        (
            ["seed=1", "predictions=x.jsonl"],
            "error: beside: cannot be combined with predictions=; leave one of them out",
        ),
    ],
)
@pytest.mark.parametrize("quoted", [True, False], ids=["quoted", "bare"])
def test_error_messages_for_options_that_cannot_be_beside(tmp_path, words, line, quoted):
    beside, *others = words
    word = f'beside="{beside}"' if quoted else f"beside={beside}"
    assert refused(tmp_path, "evaluate", *GRID, word, *others).startswith(line)


def test_a_group_of_one_run_only_is_shown_without_a_difference():
    rows = [row(persona=p, predicted=p, stage=s) for p in ("sarcasm", "humor") for s in ("full", "prompted")]
    wrong = [row(persona=p, predicted="humor", stage="full") for p in ("sarcasm", "humor")]
    other = check_rows([*wrong, missing_row(row="s2/0", scenario="s2")], "beside")
    compared = compare(check_rows(rows, "here"), other, ["sarcasm", "humor"], Options(resamples=100))
    assert [(c.group[1], c.other is None) for c in compared] == [("prompted", True), ("full", False)]
    lines = text(compared, "title", {"recipe.x": (None, "y")}).splitlines()
    assert lines[3].split() == ["pocket", "prompted", "chat", "1.00", "100%", "-", "-", "n/a", "n/a"]
    # One family has no interval.
    assert lines[4].split() == ["pocket", "full", "chat", "1.00", "100%", ".333", "67%", ".667", "n/a"]
    assert lines[-1] == "  recipe.x: null, y"


def test_the_difference_of_two_runs_has_a_paired_interval():
    """Two runs with the same errors in each family differ by exactly 0, in every resample."""
    rows = check_rows([r for r in grid() if r["stage"] == "full"], "rows")
    for one in compare(rows, rows, PERSONAS, Options(resamples=100)):
        assert one.first == one.other and one.difference == Contrast(0.0, (0.0, 0.0))


def test_differing_names_every_key_at_any_depth():
    first = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    other = {"a": {"b": 1, "c": [1, 3]}, "e": {"f": 2}}
    assert differing(first, other) == {"a.c": ([1, 2], [1, 3]), "e": (None, {"f": 2})}
    assert differing(first, first) == {}
