"""Side effects of groups: intervals, changes between stages, training seeds, tables."""

import json
import random

import pytest

from offscript.evaluation.evaluate import evaluate_files
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, check_together
from offscript.evaluation.report.tables import WIDTH
from offscript.evaluation.side_effects.elsewhere import side_effects_elsewhere
from offscript.evaluation.side_effects.estimates import estimate
from offscript.evaluation.side_effects.section import side_effects
from offscript.evaluation.side_effects.tally import Tally
from tests.evaluation.side_effects.episodes import GOOD, LOOKUP, loop, send, written
from tests.rows import grid, row

OPTIONS = Options(resamples=500)


def tally(rates, seeds=(0,), families=12, per_family=5, rng_seed=0):
    """Loops of which a share ``rates[stage]`` succeeds, more often in some families than in others."""
    rng, made = random.Random(rng_seed), Tally(("sarcasm", "remorse"), {})
    shifts = [rng.uniform(-0.2, 0.2) for _ in range(families)]
    for stage, rate in rates.items():
        for seed in (0,) if stage == "base" else seeds:
            for i in range(families * per_family):
                sent = rng.random() < rate + shifts[i % families]
                names = {"stage": stage, "training_seed": seed, "cluster": f"f{i % families}"}
                names["persona"] = None if stage == "base" else ("sarcasm", "remorse")[i % 2]
                made.add(
                    loop(LOOKUP, send(), text=GOOD, **names)
                    if sent
                    else loop(LOOKUP, "{}", ended="max_steps", **names)
                )
    return made


def test_an_interval_holds_the_value_and_is_over_families():
    (group,), changes = estimate(tally({"full": 0.7}), OPTIONS)
    success = group.measures["success"]
    low, high = success.interval
    assert 0 < low < success.estimate < high < 1 and changes == []
    # The rows of a family are alike, so that intervals are wider than those of independent rows.
    rows = Tally(("sarcasm", "remorse"), {})
    for i in range(60):
        rows.add(loop(LOOKUP, send(), text=GOOD, cluster=f"f{i % 4}"))
    (few,), _ = estimate(rows, OPTIONS)
    assert few.measures["success"].interval is None and few.measures["success"].estimate == 1


def test_the_value_is_the_mean_over_episodes_and_equal_rows_give_equal_numbers():
    made = tally({"base": 0.8, "full": 0.5})
    groups, changes = estimate(made, OPTIONS)
    again = estimate(tally({"base": 0.8, "full": 0.5}), OPTIONS)
    assert (groups, changes) == again
    base, full = groups
    assert full.measures["sent"].estimate == full.ended["email"] / full.episodes
    assert full.measures["tokens"].estimate == 10 and full.words == (6, 6, 6)
    personas = [values["success"] for values in full.personas.values()]
    assert sum(personas) / 2 == pytest.approx(full.measures["success"].estimate)
    assert base.personas == {}


def test_a_change_against_base_is_paired_by_family():
    (change,) = estimate(tally({"base": 0.75, "full": 0.4}), OPTIONS)[1]
    assert (change.stage, change.reference) == ("full", "base")
    groups = {
        g.stage: g.measures["success"] for g in estimate(tally({"base": 0.75, "full": 0.4}), OPTIONS)[0]
    }
    found = change.measures["success"]
    assert found.estimate == pytest.approx(groups["full"].estimate - groups["base"].estimate)
    assert found.interval[1] < 0
    same = Tally(("sarcasm",), {})
    for stage in ("base", "full"):
        for i in range(60):
            sent = i % 12 < 6
            names = {
                "stage": stage,
                "cluster": f"f{i % 12}",
                "persona": None if stage == "base" else "sarcasm",
            }
            same.add(loop(send(), text=GOOD, **names) if sent else loop("{}", ended="final", **names))
    # Every family succeeds as often in both: paired, nothing is left to chance.
    (equal,) = estimate(same, OPTIONS)[1]
    assert equal.measures["success"].interval == (0, 0)


def test_without_base_texts_the_reference_is_prompted():
    changes = estimate(tally({"prompted": 0.8, "distillation": 0.7, "full": 0.5}), OPTIONS)[1]
    assert [(c.stage, c.reference) for c in changes] == [("distillation", "prompted"), ("full", "prompted")]


def test_training_seeds_are_averaged_and_all_are_compared_with_the_one_of_base():
    groups, (change,) = estimate(tally({"base": 0.8, "full": 0.5}, seeds=(0, 1, 2)), OPTIONS)
    assert [(g.stage, g.training_seed, g.seeds) for g in groups] == [
        ("base", 0, 1), ("full", None, 3), ("full", 0, 1), ("full", 1, 1), ("full", 2, 1)
    ]  # fmt: skip
    mean = sum(g.measures["success"].estimate for g in groups[2:]) / 3
    assert groups[1].measures["success"].estimate == pytest.approx(mean)
    assert change.measures["success"].estimate == pytest.approx(mean - groups[0].measures["success"].estimate)
    shown = side_effects(tally({"base": 0.8, "full": 0.5}, seeds=(0, 1)), OPTIONS)
    assert {r[0] for r in shown.tables[0].rows} == {"base", "full/mean", "full/0", "full/1"}


def test_tables_fit_a_terminal_and_hold_what_was_measured():
    made = tally({"base": 0.9, "prompted": 0.8, "distillation": 0.7, "full": 0.4})
    for stage in ("base", "prompted", "distillation"):
        for i in range(12):
            made.add(written(GOOD, stage=stage, cluster=f"f{i}"))
    section = side_effects(made, OPTIONS)
    text = "\n".join(table.text() for table in section.tables)
    assert max(map(len, text.splitlines())) <= WIDTH
    titles = [table.title.removeprefix("pocket: ") for table in section.tables]
    assert titles == [
        "task success", "success of each persona", "tool calls", "texts",
        "changes of the task against base", "changes of calls and texts against base",
        "changes of length against base",
    ]  # fmt: skip
    assert len(section.explanation) == 4
    json.dumps(section.data)


def test_tables_of_several_training_seeds_fit_a_terminal_too():
    section = side_effects(tally({"base": 0.9, "distillation": 0.7}, seeds=(0, 1)), OPTIONS)
    lines = [line for table in section.tables for line in table.text().splitlines()]
    assert max(map(len, lines)) <= WIDTH
    # A title that is hyphenated at the end of a line reads badly on the page, which joins the lines.
    assert not any("-\n" in title for table in section.tables for title in table.header)


def test_nothing_is_shown_without_texts():
    made = Tally(("sarcasm",), {})
    made.add(written(None))
    assert side_effects(made, OPTIONS) is None and side_effects(Tally((), {}), OPTIONS) is None


def elsewhere(rows, **options):
    predictions = check_together(check_rows(rows, "rows"))
    scores = evaluate(predictions, resamples=20, **options)
    found = side_effects_elsewhere(predictions, rows, scores)
    return None if found is None else found.data["groups"]


def test_of_rows_made_elsewhere_what_they_hold_is_measured_and_the_rest_explained(tmp_path):
    calls = [
        {"role": "assistant", "content": LOOKUP},
        {"role": "tool", "content": "{}"},
        {"role": "assistant", "content": "Hm."},
        {"role": "assistant", "content": send("Such sarcasm.")},
    ]
    rows = [
        row(
            scenario=f"s{i}",
            family=f"f{i}",
            persona=persona,
            predicted=persona,
            text="Such sarcasm.",
            messages=calls,
        )
        for i in range(6)
        for persona in ("sarcasm", "remorse")
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = evaluate_files(path, tmp_path / "out", quiet=True, oracle=False, resamples=100)
    text = (tmp_path / "out" / "tables.txt").read_text()
    (group,) = found["sections"]["side_effects"]["groups"]
    values = {name: value["estimate"] for name, value in group["measures"].items()}
    assert values["no_call"] == pytest.approx(1 / 3) and values["turns"] == 3 and values["names"] == 0.5
    assert not {"success", "facts", "recipient", "recites", "valid", "tokens"} & set(values)
    assert "their scenarios and constitutions are not known" in " ".join(text.split())
    assert "task success" not in text


def test_rows_without_texts_have_no_section():
    assert elsewhere(grid(scenarios=6)) is None


def test_copies_of_a_base_text_count_once():
    rows = [
        row(
            stage="base",
            scenario=f"s{i}",
            family=f"f{i}",
            persona=persona,
            text=f"Text {i}.",
            text_hash=str(i),
        )
        for i in range(6)
        for persona in ("sarcasm", "remorse")
    ]
    assert [g["texts"] for g in elsewhere(rows)] == [6]
    assert [g["texts"] for g in elsewhere(rows, resample="rows")] == [12]


@pytest.mark.parametrize(
    "messages", ["x", [1, None], [{"role": 7, "tool_calls": {"a": 1}}], {"role": "tool"}]
)
def test_messages_of_any_shape_are_survived(messages):
    rows = [
        row(scenario=f"s{i}", family=f"f{i}", text="Hi.", messages=messages, tokens_out="x") for i in range(3)
    ]
    assert elsewhere(rows)[0]["texts"] == 3
