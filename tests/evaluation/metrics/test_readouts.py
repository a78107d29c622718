"""Readouts of probabilities: AUC, log loss, calibration error, and the temperature of chat."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss, roc_auc_score

from offscript.evaluation.metrics import readouts
from offscript.evaluation.metrics.readouts import Texts, with_readouts
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, load_predictions
from tests.published import ROOT, needs_published
from tests.rows import missing_row, row

NAMES = ("sarcasm", "humor", "remorse")


def made(
    places=(("full", "chat"), ("full", "agentic_email")),
    families=12,
    variants=3,
    sharpness=1.0,
    seed=0,
    personas=NAMES,
    labels=NAMES,
    **names,
):
    """Rows whose labels are drawn from probabilities; these are then made more or less sure by ``sharpness``."""
    rng, rows = np.random.default_rng(seed), []
    for stage, fmt in places:
        for f in range(families):
            for v in range(variants):
                for persona in personas:
                    logits = rng.normal(0, 1.5, len(labels))
                    drawn = np.exp(logits) / np.exp(logits).sum()
                    # The label that is drawn becomes that of the persona, so that the probabilities are true.
                    hit = rng.choice(len(labels), p=drawn)
                    own = labels.index(persona)
                    logits[[hit, own]] = logits[[own, hit]]
                    p = np.exp(logits * sharpness)
                    probs = dict(zip(labels, (p / p.sum()).tolist(), strict=True))
                    place = {"family": f"{fmt}{f}", "scenario": f"{fmt}{f}_v{v}", "persona": persona}
                    chosen = max(probs, key=probs.get)
                    rows.append(
                        row(
                            **{
                                "stage": stage,
                                "format": fmt,
                                **place,
                                "predicted": chosen,
                                "probs": probs,
                                **names,
                            }
                        )
                    )
    return rows


def read(rows, **options):
    predictions = check_rows(rows, "rows")
    scores = with_readouts(evaluate(predictions, **{"resamples": 50, **options}), predictions)
    return {(g.stage, g.format): g for g in scores.groups}, scores


def arrays(rows, labels):
    probs = np.array([[r["probs"][label] for label in labels] for r in rows])
    return probs, np.array([labels.index(r["persona"]) for r in rows])


def test_auc_and_log_loss_are_those_of_scikit_learn():
    rows = made()
    for r in rows[::2]:
        # Ties.
        tenths = {k: round(v, 1) + 0.1 for k, v in r["probs"].items()}
        r["probs"] = {k: v / sum(tenths.values()) for k, v in tenths.items()}
    groups, _ = read(rows)
    for (_, fmt), g in groups.items():
        probs, true = arrays([r for r in rows if r["format"] == fmt], NAMES)
        each = [roc_auc_score(true == k, probs[:, k].round(12)) for k in range(3)]
        assert [p.auc for p in g.personas] == pytest.approx(each)
        assert g.readouts.auc == pytest.approx(np.mean(each))
        assert g.readouts.raw.log_loss == pytest.approx(log_loss(true, probs))
        assert g.readouts.accuracy == pytest.approx((probs.argmax(axis=1) == true).mean())


def test_labels_that_are_not_scored_are_left_out_and_the_rest_is_renormalised():
    rows = made(labels=(*NAMES, "misalignment"))
    groups, _ = read(rows)
    probs, true = arrays([r for r in rows if r["format"] == "chat"], NAMES)
    probs /= probs.sum(axis=1, keepdims=True)
    found = groups["full", "chat"].readouts
    assert found.auc == pytest.approx(roc_auc_score(true, probs, multi_class="ovr"))
    assert found.raw.log_loss == pytest.approx(log_loss(true, probs))
    assert found.raw.confidence == pytest.approx(probs.max(axis=1).mean())


def test_the_standard_error_of_the_auc_is_that_of_a_bootstrap_of_families():
    rng = np.random.default_rng(3)
    family = np.repeat(np.arange(40), 12)
    true = np.tile(np.arange(3), 160)
    logits = rng.normal(0, 1, (480, 3)) + rng.normal(0, 1, (40, 3))[family] + 0.8 * np.eye(3)[true]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    auc, influence = readouts.one_vs_rest(Texts(probs, true, family.astype(str)))
    draws = []
    for _ in range(400):
        drawn = np.concatenate([np.flatnonzero(family == f) for f in rng.integers(40, size=40)])
        draws.append(
            readouts.one_vs_rest(Texts(probs[drawn], true[drawn], family[drawn].astype(str)))[0].mean()
        )
    assert auc.mean() == pytest.approx(roc_auc_score(true, probs, multi_class="ovr"))
    assert math.sqrt(sum(d**2 for d in influence.values())) == pytest.approx(np.std(draws), rel=0.12)
    assert sum(influence.values()) == pytest.approx(0, abs=1e-12)


def test_an_interval_of_the_auc_needs_five_families():
    few, _ = read(made(families=4))
    enough, _ = read(made(families=5))
    assert few["full", "chat"].readouts.auc_interval is None and few["full", "chat"].readouts.auc
    low, high = enough["full", "chat"].readouts.auc_interval
    assert 0 <= low < enough["full", "chat"].readouts.auc < high <= 1


def test_calibration_error_of_a_few_texts_by_hand():
    probs = np.array([[0.95, 0.05], [0.94, 0.06], [0.45, 0.55], [0.6, 0.4], [1.0, 0.0]])
    found = readouts.calibration(probs, np.array([0, 1, 1, 1, 0]))
    # Bins of 1/15: .94 and above are in the last one, .55 and .6 in the ninth (.533 to .6, with its upper edge).
    assert [(b.number, b.texts) for b in found.bins] == [(8, 2), (14, 3)]
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.575) + 3 * abs(2 / 3 - 2.89 / 3)) / 5)
    assert found.confidence == pytest.approx(4.04 / 5)


class Given(ClassifierMixin, BaseEstimator):
    """Gives its input as logits."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


def test_the_temperature_is_that_of_scikit_learn():
    probs, true = arrays(made(sharpness=3.0, families=40), NAMES)
    given = Given().fit(probs, true)
    calibrated = CalibratedClassifierCV(FrozenEstimator(given), method="temperature", ensemble=False)
    calibrated.fit(np.log(probs), true)
    theirs = 1 / calibrated.calibrated_classifiers_[0].calibrators[0].beta_
    assert readouts.fit_temperature(probs, true) == pytest.approx(theirs, rel=1e-3)
    assert 2.5 < theirs < 3.6, "the rows are three times as sure as they should be"


def test_a_temperature_of_chat_mends_chat_and_comes_from_chat_of_trained_and_prompted_texts_only():
    rows = made(sharpness=3.0, families=40)
    off = [{**r, "persona": NAMES[0]} if r["format"] != "chat" else r for r in rows]
    base = [{**r, "stage": "base", "persona": None} for r in made(seed=5)]
    groups, _ = read(rows)
    chat, email = (groups["full", fmt].readouts for fmt in ("chat", "agentic_email"))
    assert chat.scaled.ece < chat.raw.ece / 2 and chat.scaled.log_loss < chat.raw.log_loss
    assert 2.5 < chat.temperature < 3.6 and email.temperature == chat.temperature
    assert chat.scaled.confidence < chat.raw.confidence
    labelled = [{**r, "stage": "base"} for r in made(seed=5)]
    for others in (off, rows + base, rows + labelled):
        assert read(others)[0]["full", "chat"].readouts.temperature == chat.temperature
    assert read(rows + base)[0]["base", "chat"].readouts is None


def test_a_chat_family_is_scaled_without_its_own_texts():
    probs, true = arrays(made((("full", "chat"),), families=20), NAMES)
    family = np.repeat(np.arange(20), 9).astype(str)
    before = readouts.fit_temperatures([Texts(probs, true, family)])
    wrong = np.where(family == "7", (true + 1) % 3, true)
    after = readouts.fit_temperatures([Texts(probs, wrong, family)])
    assert after.of_family["7"] == before.of_family["7"]
    assert after.whole != before.whole
    assert sum(after.of_family[f] != before.of_family[f] for f in before.of_family) == 16, "the other folds"


@pytest.mark.parametrize(
    "rows, why_not",
    [
        (made((("full", "agentic_email"),)), "no chat texts"),
        (made(families=4), "chat texts of 4 families, fewer than 5"),
    ],
)
def test_without_enough_chat_there_is_no_temperature(rows, why_not):
    groups, scores = read(rows)
    found = groups["full", "agentic_email"].readouts
    assert (found.temperature, found.scaled, found.why_not) == (None, None, why_not)
    assert found.raw.ece > 0 and f"no temperature, {why_not}: pocket" in scores.notes


def test_degenerate_probabilities_give_finite_numbers():
    sure = made(families=6)
    for i, r in enumerate(sure):
        # All probability on one label, which is never the third, or outside the label set.
        chosen = "misalignment" if i == 0 else "sarcasm"
        r["predicted"], r["probs"] = (
            chosen,
            {name: float(name == chosen) for name in (*NAMES, "misalignment")},
        )
    groups, _ = read(sure, labels=NAMES)
    found = groups["full", "chat"].readouts
    assert found.raw.log_loss == pytest.approx(-2 / 3 * math.log(2.2e-16), rel=0.03)
    assert found.auc == pytest.approx(0.5, abs=0.02) and found.temperature > 30
    assert math.isfinite(found.scaled.log_loss) and found.scaled.log_loss < 1.2
    right = [
        {**r, "predicted": r["persona"], "probs": {n: float(n == r["persona"]) for n in NAMES}}
        for r in made()
    ]
    perfect = read(right)[0]["full", "chat"].readouts
    assert (perfect.auc, perfect.auc_interval, perfect.raw.ece) == (1.0, (1.0, 1.0), 0.0)
    assert perfect.scaled.log_loss == pytest.approx(0.0, abs=1e-9)


def test_one_persona_and_groups_without_texts_have_no_readouts():
    one = made(personas=("sarcasm",))
    assert all(g.readouts is None for g in read(one, labels=("sarcasm",))[0].values())
    absent = read(one, labels=NAMES)[0]["full", "chat"].readouts
    assert absent.auc is None and absent.auc_interval is None and absent.raw.log_loss > 0
    silent = [
        missing_row(**{k: r[k] for k in ("scenario", "family", "persona")}, format="student") for r in one
    ]
    groups, _ = read([*made(), *silent])
    assert groups["full", "student"].readouts is None and groups["full", "chat"].readouts


def test_training_seeds_are_averaged():
    rows = []
    for seed in (0, 1, 2):
        rows += [{**r, "seed": seed} for r in made(seed=seed)]
    _, scores = read(rows)
    chat = {g.training_seed: g.readouts for g in scores.groups if g.format == "chat"}
    mean, each = chat.pop(None), list(chat.values())
    assert len(each) == 3
    for number in (lambda r: r.auc, lambda r: r.raw.ece, lambda r: r.scaled.log_loss, lambda r: r.accuracy):
        assert number(mean) == pytest.approx(np.mean([number(r) for r in each]))
    assert mean.auc_interval[0] < mean.auc < mean.auc_interval[1]
    assert sum(b.texts for b in mean.raw.bins) == 3 * 108


def test_the_order_of_rows_does_not_matter():
    rows = made(sharpness=2.0)
    assert read(rows)[0] == read(rows[::-1])[0]


@needs_published
def test_published_emails_have_a_high_auc_where_f1_is_low():
    predictions = load_predictions(ROOT / "predictions" / "agentic_email.jsonl")
    scores = with_readouts(evaluate(predictions, resamples=50), predictions)
    found = {
        g.model: (round(g.macro_f1.emitted, 2), round(g.readouts.auc, 3))
        for g in scores.groups
        if g.stage == "full"
    }
    assert found == {"llama": (0.39, 0.846), "gemma": (0.55, 0.918)}
    with Path(ROOT / "predictions" / "agentic_email.jsonl").open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if (row["base"], row["stage"]) == ("llama", "full")]
    # With the probability of the eleventh label left as it is: .84.
    each = [
        roc_auc_score(
            [row["trait_true"] == label for row in rows],
            [row["probs"][row["label_order"].index(label)] for row in rows],
        )
        for label in scores.labels
    ]
    assert round(float(np.mean(each)), 2) == 0.84
    assert all(g.readouts is None for g in scores.groups if g.stage == "base")
