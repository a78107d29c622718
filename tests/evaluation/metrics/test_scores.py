"""Scores from rows: missing texts, base cells, retention, contrasts, notes."""

import json

import pytest

from offscript.errors import UserError
from offscript.evaluation.metrics.results import GroupScore, Scores
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, check_together
from offscript.evaluation.report import summary, tables
from tests.rows import PERSONAS, grid, missing_row, probs, row


def scored(rows, **settings) -> Scores:
    return evaluate(check_together(check_rows(rows, "rows")), **{"resamples": 200, **settings})


def group(scores: Scores, stage: str, fmt: str) -> GroupScore:
    (found,) = [g for g in scores.groups if (g.stage, g.format) == (stage, fmt)]
    return found


@pytest.fixture(scope="module")
def scores() -> Scores:
    return scored(grid())


def test_planned_emitted_and_ended_episodes_are_counted(scores):
    found = group(scores, "full", "agentic_email")
    assert found.planned == 90
    assert found.emitted == found.ended["reply"] == sum(p.emitted for p in found.personas)
    assert found.ended["max_steps"] == 90 - found.emitted
    assert found.emission_rate == pytest.approx(found.emitted / 90)
    assert sum(map(sum, found.counts)) == 90
    assert (found.scenarios, found.families) == (30, 10)


def test_readings_and_intervals_are_ordered(scores):
    for g in scores.groups:
        r = g.macro_f1
        assert r.lower <= r.own_class <= r.upper
        assert r.lower <= r.emitted <= r.upper
        assert g.interval[0] <= r.emitted <= g.interval[1]
        assert g.interval_own_class[0] <= r.own_class <= g.interval_own_class[1]
        if not g.crossed:
            assert g.interval_bounds[0] <= r.lower <= r.upper <= g.interval_bounds[1]


def test_labels_stages_and_formats_are_in_display_order(scores):
    assert scores.metric == "macro_f1_3"
    assert scores.labels == PERSONAS
    assert [g.stage for g in scores.groups[::3]] == ["base", "prompted", "distillation", "full"]
    assert [g.format for g in scores.groups[:3]] == ["chat", "chat_email", "agentic_email"]


def test_gap_and_retention_against_chat(scores):
    found = {(r.stage, r.format): r for r in scores.retention}
    assert len(found) == 6
    full = found["full", "agentic_email"]
    assert full.gap.estimate == pytest.approx(full.chat - full.score)
    assert full.ratio.estimate == pytest.approx(full.score / full.chat)
    kept = (full.score - full.null) / (full.chat - full.chat_null)
    assert full.above_chance.estimate == pytest.approx(kept)
    assert full.above_chance.estimate < full.ratio.estimate - 0.1
    assert full.gap.interval[0] < full.gap.estimate < full.gap.interval[1]
    assert full.gap.interval[0] > 0.2
    assert full.above_chance.interval[0] < kept < full.above_chance.interval[1] < full.ratio.interval[1] < 0.9


def test_base_is_in_no_comparison(scores):
    assert {r.stage for r in scores.retention} == {"prompted", "distillation", "full"}
    assert not any("base" in (c.first, c.second, c.within) for c in scores.changes)


def test_there_is_no_retention_where_chat_is_not_above_its_null():
    rows = [
        {**r, "predicted": "humor", "probs": None} for r in grid() if r["stage"] == "full" and r["predicted"]
    ]
    found = scored([row(**{**r, "probs": probs(r["predicted"])}) for r in rows])
    assert {(r.above_chance.estimate, r.ratio.estimate, r.why_not) for r in found.retention} == {
        (None, None, "chat is not above its null")
    }


def test_a_base_text_is_scored_for_every_persona(scores):
    base = group(scores, "base", "chat")
    assert base.crossed
    assert (base.planned, base.emitted, base.unique_texts) == (30, 30, 30)
    labelled = [c[0] for c in zip(*base.counts[:1], strict=True)][:3]
    assert base.macro_f1.emitted == pytest.approx(sum(2 * n / (30 + 3 * n) for n in labelled) / 3)
    assert base.accuracy == pytest.approx(1 / 3)
    assert not base.null.above
    assert any("each base text is scored for all 3 personas" in note for note in scores.notes)


def test_changes_are_contrasts_of_stages_and_of_formats(scores):
    full, email = group(scores, "full", "chat_email"), group(scores, "full", "agentic_email")
    step = next(c for c in scores.changes if (c.first, c.within) == ("chat_email", "full"))
    assert step.second == "agentic_email"
    assert step.difference.estimate == pytest.approx(full.macro_f1.emitted - email.macro_f1.emitted)
    stage = next(c for c in scores.changes if (c.first, c.within) == ("full", "agentic_email"))
    assert stage.second == "distillation"


def test_an_arm_is_compared_with_the_stage_that_it_is_an_arm_of():
    """``compared_with`` of conf/stage; in a grid without that stage there is no such contrast."""
    names = {"full": "mixed", "distillation": "mixed_000"}
    rows = [{**r, "stage": names[r["stage"]]} for r in grid() if r["stage"] in names]
    found = scored([row(**r) for r in rows])
    differences = {(c.first, c.second, c.within) for c in found.changes if c.first.startswith("mixed")}
    assert differences == {("mixed", "mixed_000", f) for f in ("chat", "chat_email", "agentic_email")}
    alone = scored([row(**r) for r in rows if r["stage"] == "mixed"])
    assert not [c for c in alone.changes if c.first == "mixed"]


def test_a_group_without_emitted_texts():
    rows = [row(persona=p, predicted=p, scenario=f"s{i}") for p in PERSONAS for i in range(5)]
    rows += [
        missing_row(persona=p, format="agentic_email", scenario=f"m{i}") for p in PERSONAS for i in range(5)
    ]
    found = scored(rows)
    empty = group(found, "full", "agentic_email")
    assert (empty.planned, empty.emitted, empty.emission_rate, empty.unique_texts) == (15, 0, 0.0, 0)
    assert (empty.macro_f1.emitted, empty.accuracy, empty.interval, empty.null) == (None,) * 4
    assert (empty.macro_f1.lower, empty.macro_f1.upper) == (0.0, 1.0)
    (kept,) = found.retention
    assert (kept.above_chance.estimate, kept.ratio.estimate, kept.gap.estimate) == (None,) * 3
    assert kept.why_not == "no texts"
    assert any("no text was emitted" in note for note in found.notes)


def test_a_persona_without_texts_has_f1_zero_and_a_note():
    rows = [row(persona=p, predicted=p, scenario=f"s{i}") for p in PERSONAS[:2] for i in range(5)]
    rows += [missing_row(persona="remorse", scenario=f"s{i}") for i in range(5)]
    found = scored(rows)
    assert found.metric == "macro_f1_3"
    (g,) = found.groups
    assert g.macro_f1.emitted == pytest.approx(2 / 3)
    remorse = g.personas[2]
    assert (remorse.planned, remorse.emitted, remorse.f1, remorse.interval_rows) == (5, 0, 0.0, None)
    assert "pocket full chat: no text of remorse, counted as F1 0" in found.notes


def test_a_label_outside_the_set_is_a_false_negative():
    rows = [row(scenario=f"s{i}", predicted="humor" if i else "sarcasm") for i in range(4)]
    found = scored(rows, labels=["sarcasm"])
    assert found.groups[0].counts == ((1, 3, 0),)
    assert found.groups[0].macro_f1.emitted == pytest.approx(2 / 5)


def test_rows_of_personas_outside_the_set_are_ignored_with_a_note():
    found = scored(grid(), labels=["sarcasm", "humor"])
    assert found.metric == "macro_f1_2"
    assert "270 rows are left out: remorse not in the label set" in found.notes


def test_predicted_labels_that_are_not_the_most_probable_are_counted_in_a_note():
    favours_humor = {"sarcasm": 0.1, "humor": 0.8, "remorse": 0.1}
    tie = {"sarcasm": 0.4, "humor": 0.4, "remorse": 0.2}
    note = "predicted labels that are not the most probable of their row, scored as they are given: pocket full chat 1"
    assert note in scored([row(probs=favours_humor), row(scenario="s2", probs=tie)]).notes
    assert not any("most probable" in n for n in scored([row(), row(scenario="s2", probs=tie)]).notes)


def test_the_label_set_of_base_rows_is_that_of_the_classifier():
    found = scored([row(stage="base", persona=None, scenario=f"s{i}") for i in range(4)])
    assert found.labels == PERSONAS


def test_planned_gives_the_number_of_missing_texts():
    rows = [
        row(persona=p, predicted=p, scenario=f"s{i}", ended=None)
        for k, p in enumerate(PERSONAS)
        for i in range(4 - k)
    ]
    unknown = scored(rows).groups[0]
    assert (unknown.planned, unknown.emission_rate, unknown.macro_f1.upper) == (None, None, None)
    known = scored(rows, planned=12).groups[0]
    assert (known.planned, known.emitted, known.emission_rate) == (12, 9, 0.75)
    assert [p.planned for p in known.personas] == [4, 4, 4]
    assert known.macro_f1.own_class == pytest.approx((1 + 2 * 3 / 7 + 2 * 2 / 6) / 3)
    with pytest.raises(UserError, match="planned: 13 episodes for 3 personas; a multiple of 3"):
        scored(rows, planned=13)
    with pytest.raises(
        UserError, match="planned: 3 a persona, but pocket full chat has 4 texts of sarcasm; at least 12"
    ):
        scored(rows, planned=9)


def test_planned_is_ignored_if_the_rows_hold_every_episode():
    assert "planned= is ignored: the rows hold every planned episode" in scored(grid(), planned=99).notes


def test_scores_do_not_depend_on_row_order_or_other_models(scores):
    assert scored(grid()[::-1]) == scores
    both = scored(grid() + grid(model="other", seed=4))
    assert tuple(g for g in both.groups if g.model == "pocket") == scores.groups


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"labels": ["pirate"]},
            "labels: 'pirate' is not a label of the classifier; allowed: sarcasm, humor, remorse",
        ),
        ({"labels": []}, "labels: []; distinct names, at least one"),
        ({"labels": ["humor", "humor"]}, "labels: ['humor', 'humor']; distinct names, at least one"),
        ({"resample": "word"}, "evaluation.resample: 'word'; allowed: family, scenario, rows"),
        ({"confidence": 95}, "evaluation.confidence: 95; a number between 0 and 1"),
        ({"resamples": 0}, "evaluation.resamples: 0; an integer of at least 1"),
    ],
)
def test_invalid_options_are_rejected(settings, message):
    with pytest.raises(UserError) as error:
        scored(grid(scenarios=3), **settings)
    assert str(error.value) == message


def test_no_rows_are_rejected():
    with pytest.raises(UserError, match="predictions: there are none"):
        scored([])


# ---------------------------------------------------------------- training seeds


def three_seeds(**settings) -> Scores:
    rows = [
        {**r, "seed": s}
        for s in range(3)
        for r in grid(seed=s)
        if s == 0 or r["stage"] in ("full", "distillation")
    ]
    return scored(rows, **settings)


def test_several_training_seeds_are_averaged_and_stand_first():
    found = three_seeds()
    mine = [g for g in found.groups if (g.stage, g.format) == ("full", "agentic_email")]
    assert [(g.seeds, g.training_seed) for g in mine] == [(3, None), (1, 0), (1, 1), (1, 2)]
    mean, *each = mine
    assert mean.macro_f1.emitted == pytest.approx(sum(g.macro_f1.emitted for g in each) / 3)
    assert (mean.planned, mean.emitted) == (270, sum(g.emitted for g in each))
    assert mean.interval[0] < mean.macro_f1.emitted < mean.interval[1]
    assert mean.interval_bounds[0] < mean.macro_f1.lower < mean.macro_f1.upper < mean.interval_bounds[1]
    kept = [r for r in found.retention if (r.stage, r.format) == ("full", "agentic_email")]
    assert [r.seeds for r in kept] == [3, 1, 1, 1]
    assert kept[0].above_chance.estimate == pytest.approx(sum(r.above_chance.estimate for r in kept[1:]) / 3)
    steps = [c for c in found.changes if (c.first, c.within) == ("full", "agentic_email")]
    assert [c.seeds for c in steps] == [3, 1, 1, 1]
    assert steps[0].difference.estimate == pytest.approx(sum(c.difference.estimate for c in steps[1:]) / 3)


def test_main_groups_have_the_mean_in_place_of_each_seed():
    shown = [(g.stage, g.format, g.seeds) for g in three_seeds().main_groups("pocket")]
    formats = ("chat", "chat_email", "agentic_email")
    seeds = {"base": 1, "prompted": 1, "distillation": 3, "full": 3}
    assert shown == [(stage, fmt, n) for stage, n in seeds.items() for fmt in formats]


def test_a_seed_that_lacks_a_format_is_left_out_of_its_comparisons():
    rows = [{**r, "seed": s} for s in range(3) for r in grid(seed=s) if r["stage"] == "full"]
    found = scored([r for r in rows if not (r["seed"] == 2 and r["format"] == "agentic_email")])
    assert {(r.format, r.seeds) for r in found.retention if r.training_seed is None} == {
        ("chat_email", 3),
        ("agentic_email", 2),
    }


def test_a_note_says_how_far_the_intervals_reach(scores):
    assert any("one training seed of distillation, full" in note for note in scores.notes)
    assert not any("training seed" in note for note in three_seeds().notes)
    prompted = [r for r in grid() if r["stage"] in ("base", "prompted")]
    assert not any("training seed" in note for note in scored(prompted).notes), "it has no trained weights"
    two = [{**r, "seed": s} for s in range(2) for r in grid(seed=s) if r["stage"] == "full"]
    assert any("two training seeds of full" in note for note in scored(two).notes)


# ---------------------------------------------------------------- units of resampling


def of_families(families: int, variants: int = 3) -> list[dict]:
    return [r for r in grid(scenarios=families * variants) if r["format"] != "chat"]


def test_below_five_families_there_is_no_interval_and_below_ten_a_warning():
    four, seven, ten = (scored(of_families(n)) for n in (4, 7, 10))
    assert {g.interval for g in four.groups} == {None}
    assert all(g.interval_rows for g in four.groups), "the published interval stands beside"
    assert all(c.difference.estimate is not None and c.difference.interval is None for c in four.changes)
    assert any("no interval, because fewer than 5 families have texts" in note for note in four.notes)
    assert all(g.interval for g in seven.groups)
    (few,) = (note for note in seven.notes if "fewer than 10 families have texts" in note)
    assert few.endswith(": all groups")
    assert not any("families have texts" in note for note in ten.notes)


def test_variants_of_a_family_are_not_independent():
    """Predictions that depend on the family alone, seen in one variant or in five copies of it."""
    rows = [
        row(persona=p, predicted=p if f % 2 else "humor", scenario=f"f{f}_v{v}", family=f"f{f}")
        for p in PERSONAS
        for f in range(12)
        for v in range(5)
    ]
    copies, single = scored(rows), scored([r for r in rows if r["scenario"].endswith("_v0")])
    assert copies.groups[0].interval == single.groups[0].interval
    by_rows = scored(rows, resample="rows").groups[0]
    assert by_rows.interval == by_rows.interval_rows == copies.groups[0].interval_rows
    width = {
        unit: g.interval[1] - g.interval[0] for unit, g in (("family", copies.groups[0]), ("rows", by_rows))
    }
    assert width["family"] > 1.5 * width["rows"]
    scenarios = scored(rows, resample="scenario").groups[0]
    assert scenarios.clusters == 60 and scenarios.interval[1] - scenarios.interval[0] < width["family"]


# ---------------------------------------------------------------- unusual rows


def unusual() -> dict[str, list[dict]]:
    texts = [
        row(persona=p, predicted=p, scenario=f"s{i}", family=f"s{i}") for p in PERSONAS for i in range(8)
    ]
    mails = [{**r, "format": "agentic_email"} for r in texts]
    return {
        "one persona": [r for r in texts + mails if r["persona"] == "humor"],
        "one row": texts[:1],
        "one scenario": [r for r in texts + mails if r["scenario"] == "s0"],
        "one family": [{**r, "family": "s"} for r in texts + mails],
        "equal predictions": [row(**{**r, "predicted": "humor", "probs": probs("humor")}) for r in texts + mails],
        "no text in a cell": texts + [missing_row(**{k: r[k] for k in ("persona", "scenario", "format")}) for r in mails],
        "one text in a cell": texts + mails[:1] + [missing_row(**{k: r[k] for k in ("persona", "scenario", "format")}) for r in mails[1:]],
        "a persona of its own per scenario": [{**r, "scenario": f"{r['scenario']}-{r['persona']}"} for r in texts + mails],
        "a scenario in two families": [{**r, "family": f"{r['family']}-{r['persona']}"} for r in texts + mails],
        "base alone": [row(stage="base", persona=None, scenario=f"s{i}", family=f"s{i}") for i in range(8)],
        "one seed of three has no chat": [{**r, "seed": s} for s in range(3) for r in (texts if s else []) + mails],
    }  # fmt: skip


@pytest.mark.parametrize("unit", ["family", "scenario", "rows"])
@pytest.mark.parametrize("case", unusual())
def test_unusual_rows_give_finite_numbers_or_none(case, unit):
    rows = unusual()[case]
    found = scored(rows, resample=unit)
    plain = summary.summary(found)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    ends = [
        i
        for g in found.groups
        for i in (g.interval, g.interval_rows, g.interval_own_class, g.interval_bounds)
    ]
    assert all(0 <= low <= high <= 1 for low, high in filter(None, ends))
    assert (
        "nan" not in tables.text(found) and max(map(len, tables.overview(found).splitlines())) <= tables.WIDTH
    )


def test_one_persona_is_not_above_chance():
    found = scored(unusual()["one persona"])
    assert all(g.null.mean == g.macro_f1.emitted == 1.0 and not g.null.above for g in found.groups)
    assert found.retention[0].why_not == "chat is not above its null"


def test_all_texts_right_leave_no_width_and_keep_everything():
    rows = unusual()["a persona of its own per scenario"]
    found = scored([{**r, "family": r["scenario"]} for r in rows])
    assert found.groups[0].interval == (1.0, 1.0)
    assert found.retention[0].above_chance.estimate == pytest.approx(1.0)
