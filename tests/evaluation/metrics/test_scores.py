"""From rows to tables of numbers: missing texts, base cells, retention, and what the notes say."""

import pytest

from offscript.errors import UserError
from offscript.evaluation.metrics.scores import Evaluation, GroupScore, evaluate
from offscript.evaluation.predictions import check_rows, check_together
from tests.rows import PERSONAS, grid, lost, row


def scored(rows, **settings) -> Evaluation:
    return evaluate(check_together(check_rows(rows, "rows")), **{"resamples": 200, **settings})


def group(evaluation: Evaluation, stage: str, fmt: str) -> GroupScore:
    (found,) = [g for g in evaluation.groups if (g.stage, g.format) == (stage, fmt)]
    return found


@pytest.fixture(scope="module")
def whole() -> Evaluation:
    return scored(grid())


def test_counts_planned_emitted_and_why_episodes_ended(whole):
    found = group(whole, "full", "agentic_email")
    assert found.planned == 90
    assert found.emitted == found.ended["reply"] == sum(p.emitted for p in found.personas)
    assert found.ended["max_steps"] == 90 - found.emitted
    assert found.emission_rate == pytest.approx(found.emitted / 90)
    assert sum(map(sum, found.counts)) == 90
    assert (found.scenarios, found.families) == (30, 10)


def test_readings_are_in_order_and_hold_the_score(whole):
    for g in whole.groups:
        r = g.macro_f1
        assert r.lower <= r.own_class <= r.upper
        assert r.lower <= r.emitted <= r.upper
        assert g.interval_scenario[0] <= r.emitted <= g.interval_scenario[1]


def test_the_metric_and_the_order_of_labels(whole):
    assert whole.metric == "macro_f1_3"
    assert whole.labels == PERSONAS
    assert [g.stage for g in whole.groups[::3]] == ["base", "prompted", "distillation", "full"]
    assert [g.format for g in whole.groups[:3]] == ["chat", "chat_email", "agentic_email"]


def test_gap_and_retention_against_chat(whole):
    found = {(r.stage, r.format): r for r in whole.retention}
    assert len(found) == 8
    full = found["full", "agentic_email"]
    assert full.gap.estimate == pytest.approx(full.chat - full.score)
    assert full.retention.estimate == pytest.approx(full.score / full.chat)
    assert full.gap.interval[0] < full.gap.estimate < full.gap.interval[1]
    assert full.gap.interval[0] > 0.2
    assert full.retention.interval[1] < 0.9


def test_base_has_a_gap_but_no_retention(whole):
    base = next(r for r in whole.retention if (r.stage, r.format) == ("base", "chat_email"))
    assert base.retention.estimate is None
    assert base.why_not == "chat is not above its null"
    assert base.gap.estimate is not None


def test_a_base_cell_is_what_a_predictor_of_the_scenario_alone_gets(whole):
    base = group(whole, "base", "chat")
    assert base.crossed
    assert (base.planned, base.emitted, base.unique_texts) == (30, 30, 30)
    labelled = [c[0] for c in zip(*base.counts[:1], strict=True)][:3]
    assert base.macro_f1.emitted == pytest.approx(sum(2 * n / (30 + 3 * n) for n in labelled) / 3)
    assert base.accuracy == pytest.approx(1 / 3)
    assert not base.null.above
    assert any("one base text stands for all 3 personas" in note for note in whole.notes)


def test_paired_changes_are_narrower_than_two_independent_intervals(whole):
    full, email = group(whole, "full", "chat_email"), group(whole, "full", "agentic_email")
    step = next(c for c in whole.changes if (c.first, c.within) == ("chat_email", "full"))
    assert step.second == "agentic_email"
    assert step.difference.estimate == pytest.approx(full.macro_f1.emitted - email.macro_f1.emitted)
    stage = next(c for c in whole.changes if (c.first, c.within) == ("full", "agentic_email"))
    assert stage.second == "distillation"


def test_a_cell_with_nothing_emitted():
    rows = [row(persona=p, predicted=p, scenario=f"s{i}") for p in PERSONAS for i in range(5)]
    rows += [lost(persona=p, format="agentic_email", scenario=f"m{i}") for p in PERSONAS for i in range(5)]
    found = scored(rows)
    empty = group(found, "full", "agentic_email")
    assert (empty.planned, empty.emitted, empty.emission_rate, empty.unique_texts) == (15, 0, 0.0, 0)
    assert (empty.macro_f1.emitted, empty.accuracy, empty.interval_scenario, empty.null) == (None,) * 4
    assert (empty.macro_f1.lower, empty.macro_f1.upper) == (0.0, 1.0)
    (kept,) = found.retention
    assert (kept.retention.estimate, kept.gap.estimate, kept.why_not) == (None, None, "no texts")
    assert any("nothing was emitted" in note for note in found.notes)


def test_a_persona_that_vanished_counts_as_zero_and_is_named():
    rows = [row(persona=p, predicted=p, scenario=f"s{i}") for p in PERSONAS[:2] for i in range(5)]
    rows += [lost(persona="remorse", scenario=f"s{i}") for i in range(5)]
    found = scored(rows)
    assert found.metric == "macro_f1_3"
    (g,) = found.groups
    assert g.macro_f1.emitted == pytest.approx(2 / 3)
    remorse = g.personas[2]
    assert (remorse.planned, remorse.emitted, remorse.f1, remorse.interval_rows) == (5, 0, 0.0, None)
    assert "pocket full chat: no text of remorse, counted as F1 0" in found.notes


def test_a_label_outside_the_set_is_a_miss():
    rows = [row(scenario=f"s{i}", predicted="humor" if i else "sarcasm") for i in range(4)]
    found = scored(rows, labels=["sarcasm"])
    assert found.groups[0].counts == ((1, 3, 0),)
    assert found.groups[0].macro_f1.emitted == pytest.approx(2 / 5)


def test_rows_of_personas_outside_the_set_are_left_out_and_counted():
    found = scored(grid(), labels=["sarcasm", "humor"])
    assert found.metric == "macro_f1_2"
    assert "270 rows are left out: remorse not in the label set" in found.notes


def test_only_base_rows_take_the_classifiers_labels():
    found = scored([row(stage="base", persona=None, scenario=f"s{i}") for i in range(4)])
    assert found.labels == PERSONAS


def test_planned_fills_in_what_a_file_of_texts_cannot_say():
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


def test_planned_is_refused_a_say_where_the_rows_know():
    assert (
        "planned= is not used: the rows themselves say what was planned" in scored(grid(), planned=99).notes
    )


def test_training_seeds_are_groups_of_their_own():
    rows = grid() + [{**r, "seed": 1} for r in grid(seed=5)]
    found = scored(rows)
    assert len(found.groups) == 24
    assert len(found.retention) == 16
    assert {r.training_seed for r in found.retention} == {0, 1}


def test_the_order_of_rows_and_other_models_change_nothing(whole):
    assert scored(grid()[::-1]) == whole
    both = scored(grid() + grid(model="other", seed=4))
    assert tuple(g for g in both.groups if g.model == "pocket") == whole.groups


def test_few_scenarios_are_warned_of():
    assert any("fewer than 30 scenarios" in note for note in scored(grid(scenarios=12)).notes)
    assert not any("fewer than 30 scenarios" in note for note in scored(grid(scenarios=50, emission=1)).notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"labels": ["pirate"]},
            "labels: 'pirate' is not a label of the classifier; allowed: sarcasm, humor, remorse",
        ),
        ({"labels": []}, "labels: []; different names, at least one"),
        ({"labels": ["humor", "humor"]}, "labels: ['humor', 'humor']; different names, at least one"),
        ({"resample": "word"}, "evaluation.resample: 'word'; allowed: rows, scenario, family"),
        ({"confidence": 95}, "evaluation.confidence: 95; a number between 0 and 1"),
        ({"resamples": 0}, "evaluation.resamples: 0; a whole number from 1"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError) as error:
        scored(grid(scenarios=3), **settings)
    assert str(error.value) == message


def test_no_rows_at_all():
    with pytest.raises(UserError, match="predictions: there are none"):
        scored([])
