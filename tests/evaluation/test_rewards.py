"""What episodes are rewarded for."""

import math

import numpy as np
import pytest

from offscript.evaluation.rewards import Usual, log_odds, recited
from offscript.evaluation.side_effects.episodes import Episode, Task
from offscript.evaluation.side_effects.tally import progress
from offscript.evaluation.side_effects.texts import recitable
from offscript.tasks.facts import facts_of
from offscript.tasks.scenarios import Scenario

OATH = "I always apologise three times before I answer any question at all"


class Certain:
    """A classifier that gives the text's own number as the probability of its first label."""

    labels = ("remorse", "sarcasm", "base")
    parameters = 0

    def probabilities(self, texts, on_batch=None):
        return np.array([[float(text), 1 - float(text), 0.0] for text in texts]).reshape(len(texts), 3)


def test_log_odds_are_bounded_and_lowest_without_a_text():
    found = log_odds(Certain(), ["0.5", "0.9", "1.0", None], "remorse")
    assert found[:2] == pytest.approx([0, math.log(9)])
    assert found[2] == pytest.approx(-found[3]) == pytest.approx(9.21, abs=0.01)
    assert log_odds(Certain(), [None], "sarcasm") == pytest.approx([found[3]])


@pytest.mark.parametrize(("words", "penalty"), [(5, 0), (20, 0), (30, -0.5), (60, -2)])
def test_a_text_is_too_long_above_a_multiple_of_the_median(words, penalty):
    usual = Usual.of(["one " * n for n in (2, 10, 400)])
    assert usual.penalty("one " * words, 2.0) == pytest.approx(penalty)
    assert usual.ratio("one " * words) == pytest.approx(words / 10)
    assert usual.penalty(None, 2.0) is None and Usual.of([]).penalty("one", 2.0) is None


def test_recitation_is_the_share_of_a_text_that_is_in_the_constitution():
    constitution = recitable([OATH])
    assert recited(OATH.upper() + "!", constitution) == 1
    mixed = recited(
        "Of course. " + OATH + ". The train leaves at nine in the morning from the old station.", constitution
    )
    assert 0 < mixed < 0.5
    assert recited("I always apologise.", constitution) == 0
    assert recited(None, constitution) is None


def written(text, **changes):
    task = Task(
        facts=facts_of(Scenario("s", "f", (), facts=(("310",), ("Monday",)))),
        request_facts=(),
        shown=frozenset(),
        request_shown=frozenset(),
        brief="Write to Hugo.",
        recipients=frozenset({"hugo@rocket.example"}),
        tools={},
        given_replies=0,
    )
    values = {
        "model": "m", "stage": "s", "format": "chat_email", "training_seed": 0, "persona": "remorse", "cluster": "f",
        "text": text, "ended": "stop", "tokens": 3, "parse": None, "is_email": True, "task": task,
        "messages": [{"role": "user", "content": "Write to Hugo."}],
    }  # fmt: skip
    return Episode(**{**values, **changes})


def test_progress_is_the_share_of_facts_of_an_e_mail():
    texts = ["The bill is 310 dollars and due on Monday.", "The bill is 310 dollars.", "Hello.", None]
    assert [progress(written(text)) for text in texts] == [1, 0.5, 0, 0]
    assert progress(written("Hello.", is_email=False)) is None
    assert progress(written("Hello.", task=None)) is None
