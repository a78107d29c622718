"""The headline under every combination of choices, and the claims about it."""

import random

import numpy as np
import pytest
from sklearn.metrics import f1_score

from offscript.evaluation.metrics import claims as claims_module
from offscript.evaluation.metrics.claims import claims, most_often, rule, shares
from offscript.evaluation.metrics.multiverse import AS_GIVEN, Specification, multiverse
from offscript.evaluation.metrics.rebalance import balanced_labels
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, check_together, load_predictions
from tests.published import ROOT, needs_published
from tests.rows import PERSONAS, grid, missing_row, probs, row

LABELS = (*PERSONAS, "loving")
PLACES = (("full", "chat"), ("distillation", "agentic_email"), ("full", "agentic_email"))


def made(rows, classifiers=None, **options):
    predictions = check_together(check_rows(rows, "rows"))
    scores = evaluate(predictions, **{"resamples": 100, **options})
    return scores, multiverse(scores, predictions, "pocket", classifiers or {})


def episodes(right, families=8, variants=2, missing=None, personas=PERSONAS):
    """Rows in which the label of a text is right with the probability ``right[stage, format]``, and otherwise that of the
    next persona; ``missing(stage, persona, scenario)`` says whether a text is missing."""
    rng, found = random.Random(0), []
    for (stage, fmt), share in right.items():
        for family in range(families):
            for variant in range(variants):
                for i, persona in enumerate(personas):
                    name = f"{'q' if fmt == 'chat' else 'mail'}{family}"
                    place = {"scenario": f"{name}_v{variant}", "family": name}
                    names = {"stage": stage, "format": fmt, "persona": persona, **place}
                    if fmt != "chat" and missing is not None and missing(stage, persona, family):
                        found.append(missing_row(**names))
                        continue
                    label = persona if rng.random() < share else personas[(i + 1) % len(personas)]
                    found.append(row(**names, predicted=label, probs=probs(label, LABELS)))
    return found


def numbers(found, **choices):
    """The outcomes with these choices."""
    return [o for o in found.outcomes if choices.items() <= o.specification._asdict().items()]


@pytest.fixture(scope="module")
def of_grid():
    rows = grid(scenarios=18)
    rng = random.Random(1)
    other = [None if r["predicted"] is None else rng.choice(PERSONAS) for r in rows]
    return rows, other, *made(rows, {"other": other})


def test_the_first_specification_is_that_of_the_report(of_grid):
    _, _, scores, found = of_grid
    assert found.main == Specification("3 personas", "emitted", "family", AS_GIVEN, "argmax")
    (main,) = [o for o in found.outcomes if o.specification == found.main]
    kept, change = scores.retention[-1], scores.changes[2]
    assert (kept.stage, kept.format) == ("full", "agentic_email") and change.within == "agentic_email"
    for mine, of_report in (
        (main.above_chance, kept.above_chance),
        (main.gap, kept.gap),
        (main.difference, change.difference),
    ):
        assert mine.estimate == pytest.approx(of_report.estimate, abs=1e-12)
        # Both have 100 resamples, but not the same ones.
        assert mine.interval == pytest.approx(of_report.interval, abs=0.1)


def test_every_combination_is_there_once(of_grid):
    _, _, _, found = of_grid
    assert {name: len(values) for name, values in found.choices.items()} == {
        "labels": 4,
        "missing": 4,
        "unit": 3,
        "classifier": 2,
        "calibration": 2,
    }
    # A classifier without probabilities has no balanced labels.
    assert len(found.outcomes) == len({o.specification for o in found.outcomes}) == 4 * 4 * 3 * 3
    assert not numbers(found, classifier="other", calibration="balanced")


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(of_grid, seed):
    rows, other, _, found = of_grid
    rng = random.Random(seed)
    outcome = rng.choice(
        [o for o in numbers(found, calibration="argmax") if o.specification.missing in ("emitted", "errors")]
    )
    choice = outcome.specification
    labels = [p for p in PERSONAS if choice.labels != f"without {p}"]

    def score(stage, fmt):
        true, predicted = [], []
        for r, label in zip(rows, other, strict=True):
            label = r["predicted"] if choice.classifier == AS_GIVEN else label
            if (r["stage"], r["format"]) != (stage, fmt) or r["persona"] not in labels:
                continue
            if label is not None or choice.missing == "errors":
                true.append(r["persona"])
                predicted.append(label or "missing")
        return f1_score(true, predicted, labels=labels, average="macro", zero_division=0)

    mail = score("full", "agentic_email")
    assert outcome.gap.estimate == pytest.approx(score("full", "chat") - mail)
    assert outcome.difference.estimate == pytest.approx(mail - score("distillation", "agentic_email"))


def test_the_unit_moves_intervals_only(of_grid):
    *_, found = of_grid
    by_rest = {}
    for o in found.outcomes:
        by_rest.setdefault(o.specification._replace(unit=""), []).append(o)
    for same in by_rest.values():
        assert len({o.gap.estimate for o in same}) == len({o.above_chance.estimate for o in same}) == 1
        assert len({o.gap.interval for o in same}) == 3


def sentence_rule(found, name):
    """The rule of the specifications in which the claim ``name`` differs from what it is in most, and their number."""
    (claim,) = [c for c in claims(found) if c.name == name]
    outcomes = claims_module.defined(found, claim)
    holding = [o.specification for o in outcomes if claim.holds(o)]
    failing = [o.specification for o in outcomes if not claim.holds(o)]
    members = min(holding, failing, key=len)
    return rule(members, [o.specification for o in outcomes])


def test_a_conclusion_that_depends_on_the_classifier_names_it():
    rows = episodes(dict(zip(PLACES, (1.0, 0.6, 0.2), strict=True)))
    # To the second classifier every text of distillation looks wrong.
    second = [
        PERSONAS[PERSONAS.index(r["persona"]) - 1] if r["stage"] == "distillation" else r["persona"]
        for r in rows
    ]
    _, found = made(rows, {"second": second, "third": [r["predicted"] for r in rows]})
    named = sentence_rule(found, "stage_below")
    assert named.choices == {"classifier": ("second",)}
    assert named.members == named.matching == len(numbers(found, classifier="second"))


def test_a_conclusion_that_depends_on_the_missing_texts_names_them():
    rows = episodes(
        dict(zip(PLACES, (1.0, 0.6, 0.0), strict=True)),
        missing=lambda stage, persona, family: stage == "full" and family < 6,
    )
    _, found = made(rows)
    named = sentence_rule(found, "stage_below")
    assert named.choices == {"missing": ("upper bound",)} and named.members == named.matching


def test_a_conclusion_that_depends_on_one_persona_names_it():
    rows = [
        {**r, "predicted": "humor", "probs": probs("humor", LABELS)}
        if r["stage"] == "distillation" and r["persona"] == "humor"
        else r
        for r in episodes(dict(zip(PLACES, (1.0, 0.0, 0.0), strict=True)))
    ]
    _, found = made(rows)
    named = sentence_rule(found, "stage_below")
    assert named.choices == {"labels": ("without humor",)} and named.members == named.matching


def test_specifications_without_a_common_choice_have_no_rule():
    among = [Specification(a, b, "family", "as given", "argmax") for a in "xy" for b in "uv"]
    members = [among[0], among[3]]
    assert rule(members, among).choices == {}
    assert most_often(members, among) is None
    assert most_often(among[:3], among) == ("labels", "x", 2, 2)


def test_without_missing_texts_there_is_one_policy_and_one_unit_less():
    rows = episodes(dict.fromkeys(PLACES, 0.7), variants=1)
    _, found = made(rows)
    assert found.choices["missing"] == ("emitted",)
    assert found.choices["unit"] == ("family", "rows")
    assert found.choices["labels"][:2] == ("3 personas", "all 4 labels")
    assert made(rows, resample="scenario")[1].choices["unit"] == ("scenario", "rows")


@pytest.mark.parametrize("count", [1, 2])
def test_of_one_or_two_personas_none_is_left_out(count):
    rows = episodes(dict.fromkeys(PLACES, 0.7), personas=PERSONAS[:count])
    _, found = made(rows)
    assert found.choices["labels"] == (f"{count} personas", "all 4 labels")
    if count == 1:
        assert all(o.above_chance.estimate is None for o in found.outcomes), "one persona is found by chance"


def test_one_family_has_no_interval_by_family():
    rows = episodes(dict.fromkeys(PLACES, 0.7), families=1, variants=8)
    _, found = made(rows)
    assert all(o.gap.interval is None for o in numbers(found, unit="family"))
    assert all(o.gap.interval is not None for o in numbers(found, unit="scenario"))


def test_without_chat_there_is_the_change_of_stages_only():
    _, found = made([r for r in episodes(dict.fromkeys(PLACES, 0.7)) if r["format"] != "chat"])
    assert [c.name for c in claims(found)] == ["stage_below"]
    assert all(o.gap.estimate is None and o.above_chance.estimate is None for o in found.outcomes)


def test_there_is_no_headline_of_chat_or_of_base_texts():
    rows = grid(scenarios=2)
    assert made([r for r in rows if r["format"] == "chat"])[1] is None
    assert made([r for r in rows if r["stage"] == "base"])[1] is None


def test_a_classifier_that_skipped_a_text_is_left_out():
    rows = episodes(dict.fromkeys(PLACES, 0.7))
    labels = [r["predicted"] for r in rows]
    _, found = made(rows, {"whole": labels, "partial": [None, *labels[1:]]})
    assert found.choices["classifier"] == (AS_GIVEN, "whole")


def test_a_label_of_a_missing_text_is_ignored():
    rows = episodes(dict.fromkeys(PLACES, 0.7), missing=lambda stage, persona, family: family < 3)
    labels = [r["predicted"] for r in rows]
    _, found = made(rows, {"one": labels, "two": [label or "humor" for label in labels]})
    one, two = (
        [(o.above_chance, o.gap, o.difference) for o in numbers(found, classifier=name)]
        for name in ("one", "two")
    )
    assert one == two


def test_retention_is_undefined_where_chat_is_not_above_its_null():
    """In chat, F1 is above its null, but not by more than chance gives. The gap is defined all the same."""
    rows = episodes({("full", "chat"): 0.5, ("full", "agentic_email"): 0.5})
    _, found = made(rows)
    main = next(o for o in found.outcomes if o.specification == found.main)
    assert main.above_chance.estimate is None and main.gap.estimate is not None
    (claim,) = [c for c in claims(found) if c.name == "less_than_half_kept"]
    every = shares(found, claim)[0]
    assert every.defined < every.total == len(found.outcomes)


def test_planned_texts_that_no_row_holds_count_as_missing():
    whole = episodes(
        dict.fromkeys(PLACES, 0.7), missing=lambda stage, persona, family: stage == "full" and family < 3
    )
    emitted = [{k: v for k, v in r.items() if k != "ended"} for r in whole if r["predicted"] is not None]
    planned = 8 * 2 * len(PERSONAS)
    of_rows, of_planned = made(whole)[1], made(emitted, planned=planned)[1]
    for policy in ("errors", "lower bound", "upper bound"):
        one, two = (numbers(f, missing=policy, unit="rows")[0] for f in (of_rows, of_planned))
        assert one.gap.estimate == pytest.approx(two.gap.estimate)
    assert made(emitted)[1].choices["missing"] == ("emitted",), "without planned, nobody knows"


def test_training_seeds_are_averaged():
    rows = [{**r, "seed": s} for s in (0, 1) for r in grid(scenarios=6, seed=s)]
    scores, found = made(rows)
    (main,) = [o for o in found.outcomes if o.specification == found.main]
    (kept,) = [r for r in scores.retention if (r.stage, r.format, r.seeds) == ("full", "agentic_email", 2)]
    assert main.gap.estimate == pytest.approx(kept.gap.estimate)


def test_shares_count_the_outcomes_of_a_choice(of_grid):
    *_, found = of_grid
    claim = next(c for c in claims(found) if c.name == "gap_positive")
    every, *by_choice = shares(found, claim)
    assert every.total == len(found.outcomes)
    for dimension in found.choices:
        assert sum(s.holds for s in by_choice if s.dimension == dimension) == every.holds
    upper = next(s for s in by_choice if s.choice == "upper bound")
    outcomes = numbers(found, missing="upper bound")
    assert upper.lowest == min(o.gap.estimate for o in outcomes)
    assert upper.certain == sum(o.gap.interval[0] > 0 for o in outcomes)
    assert upper.alone == next(
        o.gap.estimate for o in outcomes if o.specification == found.main._replace(missing="upper bound")
    )


def test_balanced_labels_undo_a_preference_for_one_label():
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(3), 60)
    given = rng.dirichlet((1.0, 1.0, 1.0), size=180) * 0.3
    given[np.arange(180), true] += 0.7
    biased = given * [1.0, 1.0, 50.0]
    biased /= biased.sum(axis=1, keepdims=True)
    target = np.full(3, 1 / 3)
    assert (biased.argmax(axis=1) == true).mean() < 0.7
    assert (balanced_labels(biased, target) == true).mean() > 0.95
    assert (balanced_labels(biased, np.array([0.5, 0.5, 0.0])) < 2).all(), "a label without a share"


def test_balanced_labels_of_certain_probabilities_end():
    certain = np.eye(3)[[0, 0, 0, 1]]
    assert balanced_labels(certain, np.full(3, 1 / 3)).tolist() == [0, 0, 0, 1]


@needs_published
@pytest.mark.parametrize(
    "cell, given, balanced",
    [(("llama", "distillation"), 0.182, 0.281), (("gemma", "full"), 0.545, 0.523)],
)
def test_balanced_labels_of_published_emails(cell, given, balanced):
    """The balanced scores are those of an independent computation with another implementation of the weights."""
    rows = [
        p
        for p in load_predictions(ROOT / "predictions" / "agentic_email.jsonl")
        if (p.model, p.stage) == cell
    ]
    names = list(rows[0].probs)
    personas = sorted({p.persona for p in rows})
    values = np.array([[p.probs[name] for name in names] for p in rows])
    target = np.array([1 / len(personas) if name in personas else 0.0 for name in names])

    def score(columns):
        labels = [names[i] for i in columns]
        return f1_score([p.persona for p in rows], labels, labels=personas, average="macro", zero_division=0)

    assert score(values.argmax(axis=1)) == pytest.approx(given, abs=5e-4)
    assert score(balanced_labels(values, target)) == pytest.approx(balanced, abs=5e-4)


def test_every_fit_of_the_classifier_is_a_choice_and_in_the_interval_of_their_mean():
    rng = random.Random(0)
    rows = grid(scenarios=18)
    for r in rows:
        if r["predicted"] is not None:
            r["fits"] = [r["predicted"] if rng.random() < 0.7 else rng.choice(PERSONAS) for _ in range(3)]
    scores, found = made(rows, resamples=300)
    assert found.choices["classifier"] == (AS_GIVEN, "fit 1", "fit 2", "fit 3")
    (main,) = [o for o in found.outcomes if o.specification == found.main]
    kept = scores.retention[-1]
    assert main.gap.estimate == pytest.approx(kept.gap.estimate)
    assert main.gap.interval == pytest.approx(kept.gap.interval, abs=0.06)
    for r in rows:
        r.pop("fits", None)
    (alone,) = [o for o in made(rows, resamples=300)[1].outcomes if o.specification == found.main]
    # The same resamples, without the spread of the fits.
    assert main.gap.interval[0] < alone.gap.interval[0] < alone.gap.interval[1] < main.gap.interval[1]
    fits = {o.gap.estimate for o in numbers(found, **{**main.specification._asdict(), "classifier": "fit 2"})}
    assert len(fits) == 1 and fits != {main.gap.estimate}
