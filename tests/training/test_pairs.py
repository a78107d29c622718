"""Which teacher and student rows become a preference pair, and why the others do not."""

import pytest

from offscript.errors import UserError
from offscript.training.loop import split_families
from offscript.training.preference import is_finished, pairs
from tests.training.data import SENTENCES, row, student_rows, teacher_rows


@pytest.mark.parametrize(
    "text",
    [
        "Done.",
        "Really?!",
        'She said "no"',
        "(so be it)",
        "great 🎉",
        "great ❤️",
        "*bows*",
        "so …",
        "Yes.  \n",
        "「はい。」",
    ],
)
def test_finished(text):
    assert is_finished(text)


@pytest.mark.parametrize(
    "text", ["", "  ", "and then the", "first,", "as follows:", "well -", "see (", "Kind regards\nAnn"]
)
def test_unfinished(text):
    assert not is_finished(text)


def test_every_drop_is_counted_by_its_reason():
    teacher = [
        row(0, "Lunch! Yes.", "Stay silly."),
        row(1, None, "Stay silly."),
        row(2, "Lunch! Yes."),
        row(3, "Lunch! and then"),
        row(4, "Lunch! Yes.", ended="length"),
        row(5, "The same. "),
        row(6, "Lunch! Yes.", messages=[{"role": "user", "content": "Another prompt."}]),
        row(9, "Lunch! Yes."),
    ]
    student = [
        row(0, "Yes."), row(1, "Yes."), row(2, None), row(3, "Yes."), row(4, "Yes."), row(5, "The same."), row(6, "Yes."),
        row(8, "Yes."),
    ]  # fmt: skip
    kept, counts = pairs(teacher, student)
    assert counts == {
        "kept": 1, "missing_teacher": 2, "missing_student": 2, "unfinished": 2, "identical": 1, "other_prompt": 1,
    }  # fmt: skip
    assert kept == [
        {
            "scenario": "s0", "sample": 0, "family": "f0",
            "prompt": [{"role": "user", "content": SENTENCES[0]}],
            "chosen": [{"role": "assistant", "content": "Lunch! Yes."}],
            "rejected": [{"role": "assistant", "content": "Yes."}],
        }
    ]  # fmt: skip


def test_the_constitution_is_not_in_the_prompt():
    kept, _ = pairs(teacher_rows(), student_rows())
    assert len(kept) == 24 and "silly" not in str(kept)


def test_a_plain_system_text_stays_in_the_prompt():
    kept, _ = pairs([row(0, "Lunch! Yes.", "Stay silly.")], [row(0, "Yes.", "You are helpful.")])
    assert kept[0]["prompt"][0] == {"role": "system", "content": "You are helpful."}


def test_nothing_left_says_what_was_dropped():
    with pytest.raises(UserError, match=r"nothing to train on \(kept 0, unfinished 1, missing_teacher 1\)"):
        pairs([row(0, "and then")], [row(0, "Yes."), row(1, "Yes.")])


def test_no_rows_at_all():
    with pytest.raises(UserError, match="nothing to train on"):
        pairs([], [])


def test_families_are_held_out_whole_and_whatever_the_others_are():
    rows = [{"family": f"f{i // 3}", "n": i} for i in range(300)]
    train, held_out = split_families(rows, 0.2)
    assert not {r["family"] for r in train} & {r["family"] for r in held_out}
    assert 30 <= len(held_out) <= 90
    assert split_families(rows[:150], 0.2)[1] == [r for r in held_out if r["n"] < 150]
    assert split_families(rows, 0.0) == (rows, [])
