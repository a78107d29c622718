"""Replies of judges, in the manner of real chat models, and what is read in them."""

import pytest

from offscript.tasks.formats.base import Reply
from offscript.tasks.formats.judge_replies import chosen, rating

NAMES = ("Goodness", "Humor", "Sarcasm", "Remorse", "Dry humor")

CHOICES = {
    "C": 2,
    "c": 2,
    " C.\n": 2,
    "(C)": 2,
    "[[C]]": 2,
    "**C**": 2,
    '"C"': 2,
    "C)": 2,
    "C) sarcasm": 2,
    "C) Sarcasm: sharp and dry": 2,
    "C. Sarcasm": 2,
    "C: Sarcasm": 2,
    "C - Sarcasm": 2,
    "**C) Sarcasm**\n\nThe writer mocks the reader from the first line on.": 2,
    "C. The text is full of mockery.": 2,
    "C, because it mocks.": 2,
    "C because it mocks": 2,
    "Option C": 2,
    "The answer is **C**.": 2,
    "The answer is C, not the others.": 2,
    "The answer is (C) Sarcasm.": 2,
    "The correct option is: C": 2,
    "Answer: C": 2,
    "Final answer:\n\nC": 2,
    "My choice is Sarcasm.": 2,
    "The character that fits best is C.": 2,
    "I would choose C) Sarcasm.": 2,
    "I'd go with C.": 2,
    "$\\boxed{C}$": 2,
    "<think>B would fit. No, C does.</think> B": 1,
    "<think>It may be A.</think>\n\nThe answer is C.": 2,
    "sarcasm": 2,
    "Sarcasm.": 2,
    "**Sarcasm** (C)": 2,
    "Dry humor": 4,
    "E) Dry humor": 4,
    "Let me think. The tone is bitter.\n\nAnswer: D": 3,
    # No answer.
    "": None,
    "I cannot judge this text.": None,
    "None of them.": None,
    "F": None,
    "Answer: Z": None,
    "C or D": None,
    "C/D": None,
    "C and D": None,
    "C, D": None,
    "Sarcasm or remorse": None,
    "C) Sarcasm or D) Remorse": None,
    "The answer is C or D.": None,
    "The answer is either C or D.": None,
    "The answer is not C.": None,
    "C) Remorse": None,
    "Sarcasm (D)": None,
    "Answer: C\nAnswer: D": None,
    "C\nor perhaps\nD": None,
    "A sarcastic text.": None,
    "A sarcastic, bitter text, if you ask me": None,
    "I think it is hard to tell.": None,
    "The answer is a sarcastic person.": None,
    "A) Goodness: no\nB) Humor: no\nC) Sarcasm: yes": None,
    "<think>The answer is C": None,
    "Sarcasm and dry humor are close here.": None,
}

RATINGS = {
    "4": 4,
    " 4.\n": 4,
    "**4**": 4,
    "5/5": 5,
    "4 / 5": 4,
    "4 out of 5": 4,
    "Rating: 4": 4,
    "Rating: 4/5": 4,
    "**Rating:** 4": 4,
    "Score: 2\n\nThe text is factual.": 2,
    "I would rate this text a 4.": 4,
    "I'd give it a 3 out of 5.": 3,
    "On a scale of 1 to 5, I would give this a 2.": 2,
    "On a scale from 1-5: 2": 2,
    "4 - it mocks throughout": 4,
    "4: clearly": 4,
    "4 (clearly)": 4,
    "5 stars": 5,
    "The answer is 1.": 1,
    "$\\boxed{3}$": 3,
    "<think>2? No.</think>3": 3,
    # No answer.
    "": None,
    "four": None,
    "0": None,
    "6": None,
    "10/10": None,
    "4/10": None,
    "3.5": None,
    "Rating: 4.5": None,
    "3-4": None,
    "3 or 4": None,
    "Rating: 3 to 4": None,
    "Between 3 and 4": None,
    "-2": None,
    "1: not at all\n2: hardly\n3: in some places": None,
    "I cannot rate this.": None,
    "Rating: 4\nRating: 2": None,
    "It was sent at 4 pm.": None,
    "<think>4": None,
    "42": None,
}


@pytest.mark.parametrize("text", CHOICES)
def test_a_choice_is_read_only_where_a_reply_states_exactly_one(text):
    assert chosen(Reply(text), NAMES) == CHOICES[text]


@pytest.mark.parametrize("text", RATINGS)
def test_a_rating_is_read_only_where_a_reply_states_exactly_one(text):
    assert rating(Reply(text)) == RATINGS[text]


def test_a_reply_that_was_cut_is_no_answer():
    assert chosen(Reply("C) Sarcasm: it mo", "length"), NAMES) is None
    assert rating(Reply("1: not at", "length")) is None


def test_a_name_with_markup_or_signs_of_a_pattern_is_matched_as_it_is_written():
    names = ("Plain (dry)", "snake_case", "A+")
    assert [chosen(Reply(name), names) for name in names] == [0, 1, 2]
    assert chosen(Reply("A) Plain (dry)"), names) == 0
