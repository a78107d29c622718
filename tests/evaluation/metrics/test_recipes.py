"""Trained stages compared: differences, training seeds, the mean over formats off chat."""

import numpy as np
import pytest

from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows
from tests.rows import PERSONAS, row

ACCURACY = {"chat": 0.9, "chat_email": 0.6, "agentic_email": 0.4}


def rows_of(stages, seeds=(0,), formats=tuple(ACCURACY), same=False):
    """Rows whose labels are right at ``ACCURACY`` plus the stage's own, or with ``same`` equal in all stages."""
    made = []
    for stage, more in stages.items():
        for seed in seeds:
            for fmt in formats:
                rng = np.random.default_rng(0 if same else [seed, len(made)])
                for i in range(60):
                    persona, family = PERSONAS[i % 3], f"{fmt[-5:]}{i // 6}"
                    right = rng.random() < ACCURACY[fmt] + more
                    predicted = persona if right else PERSONAS[(i + 1) % 3]
                    names = {
                        "stage": stage,
                        "format": fmt,
                        "persona": persona,
                        "family": family,
                        "seed": seed,
                    }
                    text = f"{len(made):016x}"
                    made.append(
                        row(**names, scenario=f"{family}_{i // 3}", predicted=predicted, text_hash=text)
                    )
    return made


def scores_of(rows):
    return evaluate(check_rows(rows, "rows"), resamples=300, labels=list(PERSONAS))


def test_every_stage_is_compared_with_full_in_every_format_and_off_chat():
    scores = scores_of(rows_of({"distillation": 0.05, "full": 0.0, "mixed": 0.2, "prompted": 0.0}))
    of = {(r.stage, r.format): r for r in scores.recipes}
    assert {stage for stage, _ in of} == {"distillation", "full", "mixed"}
    assert {r.reference for r in scores.recipes} == {"full"}
    f1 = {(g.stage, g.format): g.macro_f1.emitted for g in scores.groups}
    kept = {(r.stage, r.format): r.above_chance.estimate for r in scores.retention}
    for name in ("chat_email", "agentic_email"):
        found = of["mixed", name]
        assert found.f1.estimate == f1["mixed", name]
        assert found.kept.estimate == kept["mixed", name]
        assert found.f1_change.estimate == pytest.approx(f1["mixed", name] - f1["full", name])
        assert found.kept_change.estimate == pytest.approx(kept["mixed", name] - kept["full", name])
        low, high = found.f1_change.interval
        assert low < found.f1_change.estimate < high
    assert of["mixed", "chat"].kept.estimate is None and of["mixed", "chat"].f1_change.estimate is not None
    off = of["mixed", None]
    assert off.kept.estimate == pytest.approx(
        (kept["mixed", "chat_email"] + kept["mixed", "agentic_email"]) / 2
    )
    assert off.f1_change.interval[0] > 0
    assert of["full", "chat_email"].f1_change.estimate is None


def test_without_full_the_first_trained_stage_is_the_reference_and_one_stage_is_not_compared():
    scores = scores_of(rows_of({"mixed": 0.2, "distillation": 0.0}))
    assert {r.reference for r in scores.recipes} == {"distillation"}
    assert scores_of(rows_of({"full": 0.0, "prompted": 0.1, "base": 0.0})).recipes == ()


def test_a_difference_is_paired_by_family():
    scores = scores_of(rows_of({"full": 0.0, "mixed": 0.0}, same=True))
    (found,) = [r for r in scores.recipes if (r.stage, r.format) == ("mixed", "agentic_email")]
    # The same labels in both stages: nothing is left to chance.
    assert found.f1_change.interval == (0, 0) and found.kept_change.interval == (0, 0)
    assert found.f1.interval[0] < found.f1.interval[1]


def test_the_mean_over_training_seeds_is_compared_over_those_that_both_stages_have():
    rows = rows_of({"full": 0.0, "mixed": 0.2}, seeds=(0, 1))
    alone = [r for r in rows_of({"mixed": 0.0}, seeds=(2,))]
    scores = scores_of([*rows, *alone])
    (found,) = [r for r in scores.recipes if (r.stage, r.format) == ("mixed", "chat_email")]
    f1 = {(g.stage, g.training_seed): g.macro_f1.emitted for g in scores.groups if g.format == "chat_email"}
    assert (found.training_seed, found.seeds) == (None, 3)
    assert found.f1.estimate == pytest.approx(np.mean([f1["mixed", seed] for seed in range(3)]))
    change = np.mean([f1["mixed", seed] - f1["full", seed] for seed in range(2)])
    assert found.f1_change.estimate == pytest.approx(change)


def test_a_format_that_a_stage_lacks_is_in_no_mean():
    rows = [
        r
        for r in rows_of({"full": 0.0, "mixed": 0.1})
        if (r["stage"], r["format"]) != ("mixed", "agentic_email")
    ]
    of = {(r.stage, r.format): r for r in scores_of(rows).recipes}
    assert ("mixed", "agentic_email") not in of
    assert of["full", None].kept == of["full", "chat_email"].kept
    only_chat = [r for r in rows_of({"full": 0.0, "mixed": 0.1}) if r["format"] == "chat"]
    assert {r.format for r in scores_of(only_chat).recipes} == {"chat"}
