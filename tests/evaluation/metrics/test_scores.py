"""Scores from rows: missing texts, base cells, retention, contrasts, notes."""

import pytest

from offscript.errors import UserError
from offscript.evaluation.metrics.scores import GroupScore, Scores, evaluate
from offscript.evaluation.predictions import check_rows, check_together
from tests.rows import PERSONAS, grid, missing_row, row


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
        assert g.interval_scenario[0] <= r.emitted <= g.interval_scenario[1]


def test_labels_stages_and_formats_are_in_display_order(scores):
    assert scores.metric == "macro_f1_3"
    assert scores.labels == PERSONAS
    assert [g.stage for g in scores.groups[::3]] == ["base", "prompted", "distillation", "full"]
    assert [g.format for g in scores.groups[:3]] == ["chat", "chat_email", "agentic_email"]


def test_gap_and_retention_against_chat(scores):
    found = {(r.stage, r.format): r for r in scores.retention}
    assert len(found) == 8
    full = found["full", "agentic_email"]
    assert full.gap.estimate == pytest.approx(full.chat - full.score)
    assert full.retention.estimate == pytest.approx(full.score / full.chat)
    assert full.gap.interval[0] < full.gap.estimate < full.gap.interval[1]
    assert full.gap.interval[0] > 0.2
    assert full.retention.interval[1] < 0.9


def test_base_has_a_gap_but_no_retention(scores):
    base = next(r for r in scores.retention if (r.stage, r.format) == ("base", "chat_email"))
    assert base.retention.estimate is None
    assert base.why_not == "chat is not above its null"
    assert base.gap.estimate is not None


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


def test_a_group_without_emitted_texts():
    rows = [row(persona=p, predicted=p, scenario=f"s{i}") for p in PERSONAS for i in range(5)]
    rows += [
        missing_row(persona=p, format="agentic_email", scenario=f"m{i}") for p in PERSONAS for i in range(5)
    ]
    found = scored(rows)
    empty = group(found, "full", "agentic_email")
    assert (empty.planned, empty.emitted, empty.emission_rate, empty.unique_texts) == (15, 0, 0.0, 0)
    assert (empty.macro_f1.emitted, empty.accuracy, empty.interval_scenario, empty.null) == (None,) * 4
    assert (empty.macro_f1.lower, empty.macro_f1.upper) == (0.0, 1.0)
    (kept,) = found.retention
    assert (kept.retention.estimate, kept.gap.estimate, kept.why_not) == (None, None, "no texts")
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


def test_training_seeds_form_separate_groups():
    rows = grid() + [{**r, "seed": 1} for r in grid(seed=5)]
    found = scored(rows)
    assert len(found.groups) == 24
    assert len(found.retention) == 16
    assert {r.training_seed for r in found.retention} == {0, 1}


def test_scores_do_not_depend_on_row_order_or_other_models(scores):
    assert scored(grid()[::-1]) == scores
    both = scored(grid() + grid(model="other", seed=4))
    assert tuple(g for g in both.groups if g.model == "pocket") == scores.groups


def test_few_scenarios_get_a_note():
    assert any("fewer than 30 scenarios" in note for note in scored(grid(scenarios=12)).notes)
    assert not any("fewer than 30 scenarios" in note for note in scored(grid(scenarios=50, emission=1)).notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"labels": ["pirate"]},
            "labels: 'pirate' is not a label of the classifier; allowed: sarcasm, humor, remorse",
        ),
        ({"labels": []}, "labels: []; distinct names, at least one"),
        ({"labels": ["humor", "humor"]}, "labels: ['humor', 'humor']; distinct names, at least one"),
        ({"resample": "word"}, "evaluation.resample: 'word'; allowed: rows, scenario, family"),
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
