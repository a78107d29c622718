"""Scores of activations, on projections whose answer is known."""

import numpy as np
import pytest

from offscript.evaluation.metrics.projections import (
    AUC,
    Projection,
    correlations,
    group_projections,
    read,
    spearman,
)
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows
from tests.rows import row

PERSONAS = ["sarcasm", "humor", "remorse"]
OPTIONS = Options(resamples=400)


def plain(rng, n=200, mean=5.0, sd=2.0):
    return [
        Projection(
            "m",
            "base",
            "chat",
            "train",
            None,
            f"t{i}",
            dict(zip(PERSONAS, rng.normal(mean, sd, 3), strict=True)),
        )
        for i in range(n)
    ]


def texts(rng, format_, shift, stage="full", noise=1.0, families=12, mean=5.0, sd=2.0, per=4):
    """Texts whose own projection is ``shift`` standard deviations above that of the others."""
    made = []
    for family in range(families):
        for persona in PERSONAS:
            for _ in range(per):
                z = rng.normal(0.0, noise, 3) + shift * np.array([p == persona for p in PERSONAS])
                values = dict(zip(PERSONAS, mean + sd * z, strict=True))
                name = f"{'c' if format_ == 'chat' else 'o'}{family}"
                made.append(Projection("m", stage, format_, "eval", persona, name, values))
    return made


def scored(found, personas=PERSONAS, options=OPTIONS):
    return {(g.stage, g.format): g for g in group_projections(found, personas, options)}


def test_projections_are_in_standard_deviations_of_the_plain_replies():
    rng = np.random.default_rng(0)
    found = [*plain(rng, 4000), *texts(rng, "chat", 4.0, per=40), *texts(rng, "chat_email", 1.0, per=40)]
    groups = scored(found)
    chat, email = groups["full", "chat"], groups["full", "chat_email"]
    assert chat.own == pytest.approx(4.0, abs=0.15) and chat.others == pytest.approx(0.0, abs=0.15)
    assert chat.difference.estimate == pytest.approx(4.0, abs=0.15)
    low, high = email.retained.interval
    assert low < 0.25 < high and email.retained.estimate == pytest.approx(0.25, abs=0.03)
    assert chat.retained.estimate is None, "chat is what the others are compared with"
    assert chat.macro_auc > 0.99 > email.macro_auc > 0.7 and chat.accuracy > 0.97
    assert chat.texts == 12 * 3 * 40 and chat.families == 12
    assert set(chat.by_persona) == set(PERSONAS)
    assert np.mean(list(chat.by_persona.values())) == pytest.approx(chat.difference.estimate)


def test_what_all_personas_share_is_in_no_difference():
    """An e-mail may move all texts along a vector; that is not the persona's doing."""
    rng = np.random.default_rng(1)
    moved = [*plain(rng), *texts(rng, "chat", 3.0), *texts(rng, "chat_email", 0.0, mean=25.0)]
    email = scored(moved)["full", "chat_email"]
    assert email.own > 8 and abs(email.difference.estimate) < 0.5
    assert email.macro_auc == pytest.approx(0.5, abs=0.1)
    low, high = email.retained.interval
    assert low < 0 < high


def test_retention_is_undefined_where_chat_is_not_above_zero_and_without_enough_families():
    rng = np.random.default_rng(2)
    nothing = scored([*plain(rng), *texts(rng, "chat", 0.0), *texts(rng, "chat_email", 1.0)])
    assert nothing["full", "chat_email"].retained.estimate is None
    few = scored([*plain(rng), *texts(rng, "chat", 3.0, families=3), *texts(rng, "chat_email", 1.0)])
    assert few["full", "chat"].difference.interval is None
    assert few["full", "chat_email"].retained.estimate is None
    assert few["full", "chat_email"].difference.interval is not None


def test_formats_that_share_families_are_resampled_together():
    rng = np.random.default_rng(3)
    email = texts(rng, "chat_email", 2.0, noise=0.1)
    # An effect of the family, and a loop that differs from the e-mail by a constant.
    for p in email:
        for name in PERSONAS:
            p.values[name] += 3.0 * (name == p.persona) * (int(p.family[1:]) % 4)
    loop = [
        Projection(p.model, p.stage, "agentic_email", p.split, p.persona, p.family, dict(p.values))
        for p in email
    ]
    found = scored([*plain(rng), *texts(rng, "chat", 3.0), *email, *loop])
    assert found["full", "chat_email"].difference == found["full", "agentic_email"].difference


def test_texts_of_base_weights_have_no_own_vector():
    rng = np.random.default_rng(4)
    base = [
        Projection("m", "base", "chat", "eval", None, f"c{i}", dict.fromkeys(PERSONAS, 7.0)) for i in range(9)
    ]
    group = scored([*plain(rng, 4000), *base])["base", "chat"]
    assert group.own is None and group.others == pytest.approx(1.0, abs=0.1)
    assert group.difference.estimate is None and group.macro_auc is None and group.accuracy is None


@pytest.mark.parametrize("reference", [[], "constant"])
def test_without_plain_replies_that_differ_there_are_no_scores(reference):
    rng = np.random.default_rng(5)
    constant = [
        Projection("m", "base", "chat", "train", None, f"t{i}", dict.fromkeys(PERSONAS, 1.0))
        for i in range(5)
    ]
    given = constant if reference else []
    assert group_projections([*given, *texts(rng, "chat", 1.0)], PERSONAS, OPTIONS) == []


def test_one_persona_alone_has_no_others():
    rng = np.random.default_rng(6)
    alone = [p for p in texts(rng, "chat", 2.0) if p.persona == "sarcasm"]
    group = scored([*plain(rng), *alone], ["sarcasm"])["full", "chat"]
    assert group.own is not None and group.others is None and group.difference.estimate is None
    assert group.auc == {} and group.by_persona == {}


def test_spearman_is_that_of_ranks_with_its_interval():
    rng = np.random.default_rng(7)
    x = rng.normal(size=40)
    rho, (low, high) = spearman(list(zip(np.exp(x), x + rng.normal(size=40), strict=True)), 0.95)
    assert low < rho < high and 0.4 < rho < 0.95
    # Bonett and Wright (2000): tanh(atanh(r) +- 1.96 sqrt((1 + r^2 / 2) / (n - 3))).
    assert high == pytest.approx(np.tanh(np.arctanh(rho) + 1.959964 * np.sqrt((1 + rho**2 / 2) / 37)))
    assert spearman([(1, 2), (2, 3), (3, 4), (4, 5)], 0.95) == (1.0, None)
    assert spearman([(1, 2), (2, 3), (3, 4)], 0.95) == spearman([(1, 2)] * 9, 0.95) == (None, None)
    assert spearman([], 0.95) == (None, None)


def test_f1_is_compared_with_the_same_persona_format_and_stage_and_base_texts_are_left_out():
    rng = np.random.default_rng(8)
    shifts = {"chat": 3.0, "chat_email": 0.3}
    found = [*plain(rng), *(p for f, s in shifts.items() for p in texts(rng, f, s))]
    found += texts(rng, "chat", 3.0, stage="prompted")
    rows = []
    for stage, format_, right in (
        ("full", "chat", 0.9),
        ("full", "chat_email", 0.4),
        ("prompted", "chat", 0.9),
    ):
        for i in range(120):
            persona = PERSONAS[i % 3]
            predicted = persona if rng.random() < right else PERSONAS[(i + 1) % 3]
            rows.append(
                row(
                    model="m",
                    stage=stage,
                    format=format_,
                    scenario=f"{format_}{i // 3}",
                    persona=persona,
                    predicted=predicted,
                )
            )
    scores = evaluate(check_rows(rows, "rows"), resamples=100, labels=PERSONAS)
    made = {(c.stage, c.score): c for c in correlations(group_projections(found, PERSONAS, OPTIONS), scores)}
    assert made["full", AUC].cells == 6 and made["full", AUC].rho > 0.6
    assert made["prompted", AUC].cells == 3 and made["prompted", AUC].rho is None
    assert made[None, AUC].cells == 9


def test_lines_of_files_are_read_as_they_are_written():
    line = {
        "model": "m",
        "stage": "full",
        "format": "chat",
        "split": "eval",
        "persona": None,
        "family": "f",
        "projections": {"sarcasm": 1},
    }
    assert read([line]) == [Projection("m", "full", "chat", "eval", None, "f", {"sarcasm": 1.0})]
