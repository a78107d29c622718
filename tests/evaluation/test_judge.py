"""The numbers on a judge, from its verdicts."""

from dataclasses import replace

import numpy as np
import pytest

from offscript.evaluation.judge import Verdict, section
from offscript.evaluation.metrics.agreement import alpha
from offscript.evaluation.metrics.results import Options

PERSONAS = ("sarcasm", "humor", "remorse", "loving")
OPTIONS = Options(resamples=400, confidence=0.95, seed=0, resample="family")


def verdict(i: int = 0, **changes) -> Verdict:
    """Of a text of sarcasm that is judged right twice, and rated 5 against 2."""
    values = Verdict(
        model="pocket",
        stage="full",
        format="chat",
        scenario=f"s{i}",
        family=f"f{i // 2}",
        persona="sarcasm",
        predicted="sarcasm",
        places=(1, 2),
        choices=("sarcasm", "sarcasm"),
        own=(5, 5),
        other=(2, 2),
    )
    return replace(values, **changes)


def everything(verdicts, options=OPTIONS, personas=PERSONAS):
    return section(verdicts, "owl", personas, options).data["groups"][0]


def test_accuracy_is_over_the_answers_of_both_orders():
    made = [verdict(0), verdict(1, choices=("sarcasm", "humor")), verdict(2, choices=(None, "sarcasm"), places=(None, 0))]  # fmt: skip
    made.append(verdict(3, choices=(None, None), places=(None, None)))
    choices = everything(made)["choices"]
    assert choices["accuracy"]["estimate"] == 4 / 5 and choices["no_answer"] == 3 / 8
    assert choices["same"] == 1 / 2 and choices["texts"] == 4
    # Two families: no interval.
    assert choices["accuracy"]["interval"] is None


def test_an_interval_over_families_is_wider_than_one_over_texts_where_families_agree():
    wrong = {"choices": ("humor", "humor")}
    made = [verdict(i, **(wrong if i // 2 % 2 else {})) for i in range(48)]
    widths = []
    for unit in ("family", "rows"):
        low, high = everything(made, replace(OPTIONS, resample=unit))["choices"]["accuracy"]["interval"]
        assert low < 0.5 < high
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]


def test_a_rating_is_compared_with_that_of_another_persona_in_the_same_resamples():
    rng = np.random.default_rng(0)
    made = [
        verdict(2 * i, own=(4 + shift, 4 + shift), other=(1 + shift, 2 + shift))
        for i, shift in enumerate(rng.integers(0, 2, size=40))
    ]
    ratings = everything(made)["ratings"]
    assert ratings["difference"]["estimate"] == pytest.approx(2.5)
    assert ratings["own"] - ratings["other"] == pytest.approx(2.5)
    # What all ratings of a text share cancels: in separate resamples it would not.
    low, high = ratings["difference"]["interval"]
    assert high - low < 1e-9
    assert ratings["sd"] == pytest.approx(np.sqrt(0.5) / 2)
    assert ratings["no_answer"] == 0


def test_samples_without_an_answer_are_left_out():
    ratings = everything([verdict(own=(4, None, None), other=(None, None, None))])["ratings"]
    assert ratings["no_answer"] == pytest.approx(5 / 6)
    assert (ratings["own"], ratings["other"], ratings["sd"], ratings["alpha"]) == (4, None, None, None)
    assert ratings["difference"] == {"estimate": None, "interval": None}


def test_a_place_that_is_named_too_often_is_tested_against_chance():
    from scipy.stats import binomtest

    last = [verdict(i, places=(3, 3), choices=("loving", "humor")) for i in range(20)]
    found = section(last, "owl", PERSONAS, OPTIONS)
    choices = found.data["groups"][0]["choices"]
    assert choices["last"] == {"share": 1, "p": pytest.approx(binomtest(40, 40, 1 / 4).pvalue)}
    assert found.notes == (
        "judge owl on pocket: position bias: 100% of its answers name the last persona of the list "
        "(25% without a bias, p < .001)",
    )
    fair = [verdict(i, places=(i % 4, 3 - i % 4)) for i in range(40)]
    found = section(fair, "owl", PERSONAS, OPTIONS)
    assert found.data["groups"][0]["choices"]["first"]["share"] == 0.25 and found.notes == ()
    # A place that is avoided is no note: what is preferred instead is.
    never = [verdict(i, places=(1, 2)) for i in range(40)]
    assert section(never, "owl", PERSONAS, OPTIONS).notes == ()


def test_agreement_with_the_classifier_is_corrected_for_chance():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(1)
    ours, theirs = (rng.choice(PERSONAS, size=60) for _ in range(2))
    made = [
        verdict(i, choices=(str(o), str(o)), predicted=str(t))
        for i, (o, t) in enumerate(zip(ours, theirs, strict=True))
    ]
    choices = everything(made)["choices"]
    assert choices["kappa"] == pytest.approx(cohen_kappa_score(ours, theirs)) and abs(choices["kappa"]) < 0.2
    # A classifier with further labels, and one that names nothing but one of them.
    other = [replace(v, predicted="goodness") for v in made]
    assert everything(other)["choices"]["kappa"] == 0
    same = [verdict(i) for i in range(5)]
    assert everything(same)["choices"]["kappa"] is None and everything(same)["choices"]["alpha"] is None
    unscored = [replace(v, predicted=None) for v in made]
    assert everything(unscored)["choices"]["kappa"] is None
    assert everything(unscored)["choices"]["alpha"] == 1


def test_alpha_is_that_of_krippendorffs_example():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", table C: four readers, twelve units."""
    none = None
    readers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, none, none, none],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, none, 3],
        [none, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, none],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, none],
    ]
    units = list(zip(*readers, strict=True))
    assert alpha(units, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert alpha(units, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert alpha([(1, none), (2, none)], "nominal") is None
    assert alpha([], "nominal") is None
    assert alpha([("b", "a"), ("a", "a")], "nominal") == alpha([(2, 1), (1, 1)], "nominal")


def test_groups_are_in_display_order_and_tables_fit_a_terminal():
    formats = ("multi_agent_debate", "system_conflict/corporate", "chat")
    made = [
        verdict(i, stage=stage, format=fmt, own=(3, 4), choices=("sarcasm", "humor"))
        for i in range(12)
        for stage in ("full", "distillation", "prompted")
        for fmt in formats
    ]
    found = section(made, "a_judge_with_a_name", PERSONAS, OPTIONS, unread=2)
    stages = [(g["stage"], g["format"]) for g in found.data["groups"]]
    assert stages[0] == ("all", "all") and stages[1:4] == [
        ("prompted", "chat"), ("prompted", "system_conflict/corporate"), ("prompted", "multi_agent_debate"),
    ]  # fmt: skip
    assert max(len(line) for table in found.tables for line in table.text().splitlines()) <= 110
    assert len(found.tables) == 2 and all(len(table.rows) == 10 for table in found.tables)
    assert found.notes[-1].startswith("judge owl") is False and "2 of the model" in found.notes[-1]


def test_equal_verdicts_give_equal_numbers_whatever_their_number_of_resamples_is_drawn_for():
    made = [verdict(i, choices=("sarcasm", "humor") if i % 3 else ("humor", "humor")) for i in range(30)]
    assert everything(made) == everything(made)
    assert everything(made) != everything(made, replace(OPTIONS, seed=1))
