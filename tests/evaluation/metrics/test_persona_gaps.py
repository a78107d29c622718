"""Which personas lose more than the others."""

import numpy as np
import pytest
from scipy.stats import t as student

from offscript.evaluation.metrics.intervals import Statistic, p_value
from offscript.evaluation.metrics.persona_gaps import against_others, holm
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows
from tests.rows import row

NAMES = ("sarcasm", "humor", "remorse", "poeticism")


def rows(hits, families=12, variants=3, seed=0, stage="full", seeds=(0,)):
    """Rows of chat (always right) and of e-mails, right with the probability ``hits`` of their persona."""
    rng, made = np.random.default_rng(seed), []
    for fmt in ("chat", "agentic_email"):
        for f in range(families):
            for v in range(variants):
                for i, persona in enumerate(NAMES):
                    for training_seed in seeds:
                        right = fmt == "chat" or rng.random() < hits[i]
                        predicted = persona if right else NAMES[(i + 1 + rng.integers(3)) % 4]
                        place = {"scenario": f"{fmt}{f}_v{v}", "family": f"{fmt}{f}"}
                        probs = {name: 0.7 if name == predicted else 0.1 for name in NAMES}
                        made.append(
                            row(
                                stage=stage,
                                format=fmt,
                                persona=persona,
                                predicted=predicted,
                                probs=probs,
                                seed=training_seed,
                                **place,
                            )
                        )
    return made


def gaps(given, **options):
    return evaluate(check_rows(given, "rows"), **{"resamples": 500, **options}).persona_gaps


def test_the_persona_that_keeps_its_f1_is_found_and_no_other():
    found = {g.persona: g for g in gaps(rows((0.4, 0.4, 0.95, 0.4)))}
    assert [name for name in NAMES if found[name].p_holm <= 0.01 and found[name].excess.estimate < -0.2] == [
        "remorse"
    ]
    assert all(g.p_holm >= g.p for g in found.values())
    low, high = found["remorse"].excess.interval
    assert low < found["remorse"].excess.estimate < high < 0
    others = [found[name].gap.estimate for name in NAMES if name != "remorse"]
    assert found["remorse"].excess.estimate == pytest.approx(found["remorse"].gap.estimate - np.mean(others))


def test_equal_personas_are_seldom_told_apart():
    claims = [any(g.p_holm <= 0.05 for g in gaps(rows((0.5,) * 4, seed=s), resamples=100)) for s in range(8)]
    assert sum(claims) <= 2


def test_correction_by_hand():
    # Sorted .01, .02, .04: times 3, 2, 1, and never below an earlier one.
    assert holm([0.04, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([None, None]) == [None, None] and holm([]) == []


def test_p_value_is_that_of_students_t_with_the_corrected_standard_error():
    draws = np.random.default_rng(0).normal(0.2, 0.1, 5000)
    error = draws.std(ddof=1) * np.sqrt(11 / 10)
    assert p_value([Statistic(0.2, draws, 11)]) == pytest.approx(2 * student.sf(0.2 / error, 10))
    assert p_value([Statistic(0.2, draws, 4)]) is None, "fewer than five families"
    assert p_value([Statistic(None, draws, 11)]) is None
    assert p_value([Statistic(0.2, np.full(50, 0.2), 11)]) is None, "no variance"
    # The mean of three seeds has their variance too.
    several = [Statistic(value, draws, 11) for value in (0.1, 0.2, 0.3)]
    assert p_value(several) > p_value([Statistic(0.2, draws, 11)])


def test_of_several_training_seeds_their_mean_is_compared():
    found = gaps(rows((0.4, 0.4, 0.95, 0.4), seeds=(0, 1, 2)))
    assert [(g.persona, g.training_seed, g.seeds) for g in found] == [(name, None, 3) for name in NAMES]
    assert min(found, key=lambda g: g.p).persona == "remorse"


def test_prompted_texts_and_base_weights_are_not_compared():
    assert gaps(rows((0.5,) * 4, stage="prompted")) == gaps(rows((0.5,) * 4, stage="base")) == ()
    assert gaps([r for r in rows((0.5,) * 4) if r["format"] != "chat"]) == ()


def test_a_persona_without_texts_or_alone_has_no_p_value():
    some = [r for r in rows((0.5,) * 4) if r["format"] == "chat" or r["persona"] != "humor"]
    found = {g.persona: g for g in gaps(some, labels=NAMES)}
    assert found["humor"].p is found["humor"].p_holm is found["humor"].excess.estimate is None
    assert found["sarcasm"].p_holm is not None
    alone = gaps([r for r in rows((0.5,) * 4) if r["persona"] == "humor"], labels=("humor",))
    assert [(g.p, g.p_holm) for g in alone] == [(None, None)]
    gap = [Statistic(0.3, np.full(9, 0.3), 8)]
    assert against_others(("m", "full", "student", 0, 1), ["humor"], [gap], 0.95)[0].excess.estimate is None


def test_fits_of_the_classifier_that_differ_make_the_p_value_greater():
    rng = np.random.default_rng(2)
    draws = [rng.normal(value, 0.05, 500) for value in (0.5, 0.3, 0.3)]
    names = ("m", "full", "student", 0, 1)
    spread = np.array([-0.1, 0.0, 0.1])

    def first(fits):
        gaps = [[Statistic(d.mean(), d, 12, f)] for d, f in zip(draws, fits, strict=True)]
        return against_others(names, NAMES[:3], gaps, 0.95)[0]

    one, alike = first([None] * 3), first([v + 0 * spread for v in (0.5, 0.3, 0.3)])
    apart = first([0.5 + spread, 0.3 - spread, 0.3 - spread])
    assert one.p == pytest.approx(alike.p) and apart.p > 3 * one.p
    # What all personas gain or lose by a fit is no difference between them.
    assert first([0.5 + spread, 0.3 + spread, 0.3 + spread]).p == pytest.approx(one.p)
