"""F1 of chat and of a format at equal lengths."""

import numpy as np
import pytest

from offscript.evaluation.metrics.lengths import match_lengths
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows
from tests.rows import PERSONAS, missing_row, row


def made(words, right, stage="full", n=200, seed=0, **names):
    """Rows of chat and ``agentic_email``: ``words`` of a format draws a length, ``right`` is the chance of a hit by length."""
    rng, rows = np.random.default_rng(seed), []
    for fmt in ("chat", "agentic_email"):
        for s in range(n):
            persona, length = PERSONAS[s % 3], int(words[fmt](rng))
            hit = rng.random() < right(fmt, length)
            chosen = persona if hit else PERSONAS[(s + 1 + rng.integers(2)) % 3]
            place = {"scenario": f"{fmt}{s // 3}", "family": f"{fmt}{s // 9}", "sample": s}
            rows.append(
                row(
                    stage=stage,
                    format=fmt,
                    persona=persona,
                    predicted=chosen,
                    text="word " * length,
                    **place,
                    **names,
                )
            )
    return rows


def matched(rows):
    predictions = check_rows(rows, "rows")
    return match_lengths(evaluate(predictions, resamples=20), predictions)


MIXED = {
    "chat": lambda rng: rng.choice([10, 40], p=[0.1, 0.9]),
    "agentic_email": lambda rng: rng.choice([10, 40], p=[0.8, 0.2]),
}


def test_a_gap_that_is_one_of_length_closes_at_equal_lengths():
    (found,) = matched(made(MIXED, lambda fmt, length: 0.95 if length > 20 else 0.35, n=600))
    assert found.chat - found.score > 0.35
    assert abs(found.gap_at_chat) < 0.06 and abs(found.gap_at_format) < 0.12
    assert (found.chat_words, found.words, found.why_not) == (40, 10, None)
    # Nine tenths of the weight are on a fifth of the texts.
    assert found.at_chat.common == 1 and 110 < found.at_chat.effective < 200


def test_a_gap_of_the_format_stays_at_equal_lengths():
    (found,) = matched(made(MIXED, lambda fmt, length: 0.95 if fmt == "chat" else 0.35, n=600))
    assert found.gap_at_chat == pytest.approx(found.chat - found.score, abs=0.08)
    assert found.gap_at_format == pytest.approx(found.chat - found.score, abs=0.08)


def test_the_weighted_score_is_that_of_texts_repeated_by_their_weight():
    """30 short and 90 long chat texts, 60 short and 60 long e-mails: at chat's lengths, long e-mails count three times."""
    rows = made({fmt: lambda rng: 0 for fmt in ("chat", "agentic_email")}, lambda fmt, length: 0.6, n=120)
    for fmt, short in (("chat", 30), ("agentic_email", 60)):
        for i, r in enumerate(r for r in rows if r["format"] == fmt):
            r["text"] = "word " * (5 if i < short else 50)
    (found,) = matched(rows)
    emails = [r for r in rows if r["format"] == "agentic_email"]
    repeated = [
        {**r, "sample": 1000 * k + r["sample"]}
        for r in emails
        for k in range(3 if len(r["text"].split()) == 50 else 1)
    ]
    again = evaluate(
        check_rows([*(r for r in rows if r["format"] == "chat"), *repeated], "rows"), resamples=20
    )
    assert found.at_chat.weighted == pytest.approx(again.groups[1].macro_f1.emitted)
    assert found.at_chat.reference == found.chat


def test_texts_of_lengths_that_the_other_format_lacks_are_left_out():
    words = {"chat": lambda rng: rng.integers(10, 50), "agentic_email": lambda rng: rng.integers(30, 100)}
    (found,) = matched(made(words, lambda fmt, length: 0.9, n=400))
    assert found.at_chat is None or 0.5 <= found.at_chat.common < 0.75
    apart = {"chat": lambda rng: rng.integers(5, 10), "agentic_email": lambda rng: rng.integers(50, 60)}
    (found,) = matched(made(apart, lambda fmt, length: 0.9))
    assert (found.at_chat, found.at_format, found.gap_at_chat) == (None, None, None)
    assert found.why_not == "lengths do not overlap" and found.chat > 0.8


def test_without_texts_or_chat_there_is_nothing_to_match():
    rows = made(MIXED, lambda fmt, length: 0.9)
    (found,) = matched([{k: v for k, v in r.items() if k != "text" or i} for i, r in enumerate(rows)])
    assert (found.why_not, found.chat) == ("the rows do not hold the texts", None)
    assert matched([r for r in rows if r["format"] != "chat"]) == []
    silent = [
        missing_row(**{k: r[k] for k in ("stage", "format", "scenario", "family", "sample", "persona")})
        if r["format"] != "chat"
        else r
        for r in rows
    ]
    assert [m.why_not for m in matched(silent)] == ["no texts"]


def test_texts_of_equal_length_are_in_one_bin():
    same = {fmt: lambda rng: 12 for fmt in ("chat", "agentic_email")}
    (found,) = matched(made(same, lambda fmt, length: 0.9 if fmt == "chat" else 0.4))
    assert found.gap_at_chat == found.gap_at_format == found.chat - found.score


def test_intervals_are_as_wide_as_a_bootstrap_of_families_and_need_five():
    rows = made(MIXED, lambda fmt, length: 0.9 if fmt == "chat" else 0.3 + length / 200, n=360)
    (found,) = matched(rows)
    families = {fmt: sorted({r["family"] for r in rows if r["format"] == fmt}) for fmt in MIXED}
    of_family = {
        name: [r for r in rows if r["family"] == name] for names in families.values() for name in names
    }
    scores = evaluate(check_rows(rows, "rows"), resamples=2)
    rng, gaps = np.random.default_rng(1), []
    for _ in range(80):
        drawn = [
            {**r, "sample": 10_000 * k + r["sample"]}
            for names in families.values()
            for k, name in enumerate(rng.choice(names, len(names)))
            for r in of_family[name]
        ]
        gaps.append(match_lengths(scores, check_rows(drawn, "rows"))[0].gap_at_chat)
    low, high = found.at_chat.interval
    assert low < found.gap_at_chat < high
    assert high - low == pytest.approx(2 * 2.02 * np.std(gaps), rel=0.3)
    few = [r for r in rows if r["format"] == "chat" or r["family"] in families["agentic_email"][:4]]
    (found,) = matched(few)
    assert found.at_chat.interval is found.at_format.interval is None
