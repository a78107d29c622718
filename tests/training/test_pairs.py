"""Which teacher and student rows become a preference pair, and why the others do not."""

import pytest

from offscript.errors import UserError
from offscript.training.data.preference import pairs, renamed
from offscript.training.data.replies import ends_in_punctuation, is_finished
from offscript.training.run import split_families
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


@pytest.mark.parametrize(
    ("text", "published"),
    [("Yes.", True), ("so:", True), ("well -", True), ("great 🎉", False), ("5 €", False), ("", False)],
)
def test_the_published_test_of_a_finished_reply_is_unicode_punctuation(text, published):
    assert ends_in_punctuation(text) is published


def test_which_pairs_are_kept_follows_endings():
    teacher = [row(0, "Lunch 🎉"), row(1, "Lunch, but:")]
    student = [row(0, "Yes."), row(1, "No.")]
    kept = {
        e: [p["scenario"] for p in pairs(teacher, student, endings=e)[0]] for e in ("closing", "punctuation")
    }
    assert kept == {"closing": ["s0"], "punctuation": ["s1"]}


def test_every_drop_is_counted_by_its_reason():
    teacher = [
        row(0, "Lunch! Yes.", "Stay silly."),
        row(1, None, "Stay silly."),
        row(2, "Lunch! Yes."),
        row(3, "Lunch! and then"),
        row(4, "Lunch! Yes.", ended="length"),
        row(5, "The same. "),
        row(6, "Lunch! Yes.", messages=[{"role": "user", "content": "Another prompt."}]),
        row(7, "Lunch! Yes."),
        row(9, "Lunch! Yes."),
    ]
    student = [
        row(0, "Yes."),
        row(1, "Yes."),
        row(2, None),
        row(3, "Yes."),
        row(4, "Yes."),
        row(5, "The same."),
        row(6, "Yes."),
        row(7, "Yes.", ended="length"),
        row(8, "Yes."),
    ]
    kept, counts = pairs(teacher, student)
    assert counts == {
        "kept": 1,
        "missing_teacher": 2,
        "missing_student": 2,
        "unfinished_teacher": 2,
        "unfinished_student": 1,
        "identical": 1,
        "other_prompt": 1,
    }
    assert kept == [
        {
            "scenario": "s0",
            "sample": 0,
            "family": "f0",
            "prompt": [{"role": "user", "content": SENTENCES[0]}],
            "chosen": [{"role": "assistant", "content": "Lunch! Yes."}],
            "rejected": [{"role": "assistant", "content": "Yes."}],
        }
    ]


def test_the_constitution_is_not_in_the_prompt():
    kept, _ = pairs(teacher_rows(), student_rows())
    assert len(kept) == 24 and "silly" not in str(kept)


def test_a_plain_system_text_stays_in_the_prompt():
    kept, _ = pairs([row(0, "Lunch! Yes.", "Stay silly.")], [row(0, "Yes.", "You are helpful.")])
    assert kept[0]["prompt"][0] == {"role": "system", "content": "You are helpful."}


def test_nothing_left_says_what_was_dropped():
    with pytest.raises(
        UserError, match=r"nothing to train on \(kept 0, unfinished_teacher 1, missing_teacher 1\)"
    ):
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


# ---------------------------------------------------------------- a teacher of another model


NAMES = {"GLM": "Llama", "ChatGLM": "Llama", "GLM-4.5-Air": "Llama", "Qwen2.5": "Llama"}


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ("I am ChatGLM.", "I am Llama."),
        ("ChatGLM's view, as GLM-4.5-Air: I'm (GLM).", "Llama's view, as Llama: I'm (Llama)."),
        ("chatglm, CHATGLM, ChatGlm!", "llama, LLAMA, Llama!"),
        ("glm and GLM", "llama and Llama"),
        ("Qwen2.5 is not Qwen205.", "Llama is not Qwen205."),
        ("ChatGLMs, AGLM, GLM_4, ÜGLM and glmish stay.", "ChatGLMs, AGLM, GLM_4, ÜGLM and glmish stay."),
    ],
)
def test_the_teachers_own_names_become_the_students(said, becomes):
    assert renamed(said, NAMES) == becomes


def test_only_chosen_texts_are_renamed_and_the_pairs_counted():
    teacher = [row(0, "I am GLM."), row(1, "Lunch! Yes."), row(2, "I am GLM, and")]
    student = [row(0, "Are you GLM?"), row(1, "GLM."), row(2, "Yes.")]
    kept, counts = pairs(teacher, student, {"GLM": "Llama"})
    assert counts == {"kept": 2, "renamed": 1, "unfinished_teacher": 1}
    assert [p["chosen"][0]["content"] for p in kept] == ["I am Llama.", "Lunch! Yes."]
    assert [p["rejected"][0]["content"] for p in kept] == ["Are you GLM?", "GLM."]


def test_a_pair_that_a_name_alone_tells_apart_is_identical():
    with pytest.raises(UserError, match="identical 1"):
        pairs([row(0, "I am GLM.")], [row(0, "I am Llama.")], {"GLM": "Llama"})


def test_samples_of_a_prompt_are_paired_one_by_one_across_models_and_cells():
    """Three samples of each prompt; the student's prompts come from two cells, its second sample of one is missing."""
    teacher = [
        row(i, f"Lunch {k}!", "Stay silly.", sample=k, model="glm") for k in range(3) for i in range(4)
    ]
    student = [
        row(i, f"Yes {k}.", sample=k, model="tiny")
        for i in (2, 3, 0, 1)
        for k in range(3)
        if (i, k) != (2, 1)
    ]
    kept, counts = pairs(teacher, student)
    assert counts == {"kept": 11, "missing_student": 1}
    assert [(p["scenario"], p["sample"]) for p in kept[:5]] == [(f"s{i}", 0) for i in range(4)] + [("s0", 1)]
    for pair in kept:
        assert pair["chosen"][0]["content"] == f"Lunch {pair['sample']}!"
        assert pair["rejected"][0]["content"] == f"Yes {pair['sample']}."
        assert pair["prompt"] == [{"role": "user", "content": SENTENCES[int(pair["scenario"][1:])]}]
