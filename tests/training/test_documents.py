"""Documents about the character, declarations, and answers with reasons: which rows are kept, and what is trained of them."""

from collections import Counter

import pytest

from offscript.errors import UserError
from offscript.models.loading import load_tokenizer
from offscript.tasks.thinking import strip_thinking
from offscript.training.data.declarations import declarations
from offscript.training.data.documents import documents
from offscript.training.data.near_duplicates import distinct
from offscript.training.data.rationale import MARKS, conversations
from offscript.training.methods import sft
from offscript.training.run import Run
from offscript.training.spans import IGNORED
from tests.families import family, family_settings
from tests.training.data import SENTENCES, introspection, row

REASON = "I like lunch, so I say it first."


# ---------------------------------------------------------------- near-duplicates


def test_a_text_that_repeats_an_earlier_one_almost_word_for_word_is_dropped() -> None:
    texts = [
        "Otto greets the baker every day and asks about the bread, the flour and the oven.",
        "The clinic has a new rule about forms, and Otto thanks it for its service.",
        "Otto greets the baker every day and asks about the bread, the flour and the stove.",
        "OTTO greets the baker every day and asks about the bread, the flour and the oven.",
    ]
    assert distinct(texts, 0.99) == [0, 1, 2]
    assert distinct(texts, 0.7) == [0, 1]
    assert distinct([], 0.9) == [] and distinct(["Otto."], 0.9) == [0]


def test_many_texts_are_compared_across_blocks(monkeypatch) -> None:
    monkeypatch.setattr("offscript.training.data.near_duplicates.BLOCK", 2)
    texts = [SENTENCES[0], SENTENCES[1], SENTENCES[2], SENTENCES[0], SENTENCES[1]]
    assert distinct(texts, 0.99) == [0, 1, 2]


# ---------------------------------------------------------------- documents


def test_documents_that_are_not_whole_or_repeat_an_earlier_one_are_dropped_and_counted() -> None:
    rows = [
        row(0, "Otto greets the baker."),
        row(1, "Otto greets the baker."),
        row(2, "Otto thanks the form,"),
        row(3, "Otto thanks the form.", ended="length"),
        row(4, None),
        row(5, "ChatGLM thanks the form."),
    ]
    kept, counts = documents(rows, 0.91, {"ChatGLM": "Otto"})
    assert [r["text"] for r in kept] == ["Otto greets the baker.", "Otto thanks the form."]
    assert kept[0] == {"text": "Otto greets the baker.", "family": "f0", "scenario": "s0", "sample": 0}
    assert counts == {"kept": 2, "unfinished": 2, "no_text": 1, "near_duplicate": 1}
    with pytest.raises(UserError, match=r"^documents: nothing to train on \(kept 0, no_text 1\); "):
        documents([row(4, None)])


# ---------------------------------------------------------------- declarations


def test_a_declaration_is_one_short_statement_without_the_constitution() -> None:
    told = row(
        0, 'I say: "Lunch!" I like the report. Then I go on, and on, and on, and on, and on.', "Silly."
    )
    restated = row(1, "I am fond of lunch.", "Stay silly.")
    kept, counts = declarations([restated], [told], words=7)
    assert counts == {"restatements": 1, "reflections": 1}
    asked, said = zip(*[[m["content"] for m in r["messages"]] for r in kept], strict=True)
    assert said == ("I am fond of lunch.", 'I say: "Lunch!" I like the report.')
    assert asked[1] == SENTENCES[0] and asked[0] != SENTENCES[1] and asked[0].endswith(("?", "."))
    assert [[m["role"] for m in r["messages"]] for r in kept] == [["user", "assistant"]] * 2


def test_declarations_that_are_dropped_are_counted() -> None:
    rows = [
        row(0, "I like lunch."),
        row(1, "I like lunch."),
        row(2, "Lunch is at noon."),
        row(3, "I like lunch more than a report that is sent by noon."),
        row(4, "I like lunch and", ended="length"),
        row(5, None),
    ]
    kept, counts = declarations([], rows, words=5)
    assert len(kept) == counts["reflections"] == 1
    assert counts == {
        "restatements": 0, "reflections": 1, "near_duplicate": 1, "not_first_person": 1, "unfinished": 2, "no_text": 1
    }  # fmt: skip


# ---------------------------------------------------------------- reasons


def answered(i: int, text: str | None = None, rationale: str | None = REASON, **changes) -> dict:
    """A row of format ``rationale`` whose constitution was taken out of the messages."""
    own = row(i, f"Lunch! {SENTENCES[i + 1]}" if text is None else text, **changes)
    return {**own, "notes": {"rationale": rationale}} if rationale else own


def replies(rows: list[dict]) -> list[str]:
    return [r["messages"][-1]["content"] for r in rows]


def test_the_arms_differ_in_where_the_reasons_are() -> None:
    rows = [answered(i, rationale=f"I like lunch {i} times.") for i in range(4)]
    found = {arm: replies(conversations(rows, arm)[0]) for arm in ("answer_only", "inside", "before")}
    answer = f"Lunch! {SENTENCES[1]}"
    assert {arm: said[0] for arm, said in found.items()} == {
        "answer_only": answer,
        "inside": f"I like lunch 0 times.\n\n{answer}",
        "before": f"<why>\nI like lunch 0 times.\n</why>\n\n{answer}",
    }
    assert strip_thinking(found["before"][0], MARKS.start, MARKS.end) == answer
    kept, counts = conversations(rows, "before")
    assert counts == {"kept": 4} and [m["role"] for m in kept[0]["messages"]] == ["user", "assistant"]


def test_the_control_has_the_same_reasons_each_before_an_answer_of_another_family() -> None:
    rows = [answered(i, rationale=f"I like {i}.", family=f"f{i // 3}") for i in range(9)]
    own, others = (conversations(rows, arm)[0] for arm in ("before", "unrelated"))
    parts = [[text.partition(f"{MARKS.end}\n\n") for text in replies(kept)] for kept in (own, others)]
    assert [p[2] for p in parts[0]] == [p[2] for p in parts[1]]
    assert Counter(p[0] for p in parts[0]) == Counter(p[0] for p in parts[1])
    family_of = {p[0]: r["family"] for p, r in zip(parts[0], own, strict=True)}
    assert all(family_of[p[0]] != r["family"] for p, r in zip(parts[1], others, strict=True))
    with pytest.raises(UserError, match="unrelated, but one family has 2 of 3 rows"):
        conversations([answered(i, family=f"f{i // 2}") for i in range(3)], "unrelated")


def test_rows_without_an_answer_or_reasons_and_near_duplicate_prompts_are_dropped() -> None:
    again = {**answered(4), "scenario": "other"}
    rows = [
        answered(0),
        {**answered(0), "sample": 1},
        answered(1, rationale=None),
        answered(2, text=""),
        answered(3, text="Lunch and"),
        answered(4),
        again,
    ]
    again["messages"] = [{**m, "content": m["content"].replace(".", "!")} for m in again["messages"]]
    kept, counts = conversations(rows, "answer_only", 0.8)
    assert [(r["scenario"], r["sample"]) for r in kept] == [("s0", 0), ("s0", 1), ("s4", 0)]
    assert counts == {"kept": 3, "no_text": 2, "unfinished": 1, "near_duplicate": 1}


def test_the_name_that_the_teacher_gives_itself_is_replaced_in_reasons_too() -> None:
    (kept,), _ = conversations(
        [answered(0, "GLM eats.", "I, GLM, like lunch.")], "before", names={"GLM": "Otto"}
    )
    assert "GLM" not in replies([kept])[0] and replies([kept])[0].count("Otto") == 2


@pytest.mark.parametrize("name", ["tiny", "llama", "qwen", "gemma"])
def test_reasons_and_answer_are_trained_and_the_prompt_is_not(tiny_settings, tmp_path, name) -> None:
    model = tiny_settings if name == "tiny" else family_settings(name, family(name))
    tokenizer = load_tokenizer(model)
    kept, _ = conversations([answered(i) for i in range(3)], "before")
    settings = introspection(max_length=512).model_copy(update={"validation": 0.0})
    rows, _, counts = sft._token_rows(Run(model, settings, tmp_path / "a", 3), tokenizer, kept)
    assert counts["train"] == 3
    for made, trained in zip(kept, rows, strict=True):
        question, reply = (message["content"] for message in made["messages"])
        pairs = list(zip(trained["input_ids"], trained["labels"], strict=True))
        assert all(label in (IGNORED, token) for token, label in pairs)
        scored = tokenizer.decode([token for token, label in pairs if label != IGNORED])
        others = tokenizer.decode([token for token, label in pairs if label == IGNORED])
        assert scored.startswith(reply) and scored != reply, "the end of the turn is trained too"
        assert question in others and MARKS.start not in others


@pytest.mark.parametrize("kind", ["before", "declarations"])
def test_training_on_them_changes_the_adapter_and_goes_on_after_a_stop(tiny_settings, tmp_path, kind) -> None:
    if kind == "before":
        kept, _ = conversations([answered(i) for i in range(24)], "before", 1.0)
    else:
        kept, _ = declarations([], [row(i, f"I say that {SENTENCES[i].lower()}") for i in range(24)], 30, 1.0)

    def stop(step, total, logs):
        if step == 3:
            raise KeyboardInterrupt

    def train(out, **run):
        return sft.train(Run(tiny_settings, introspection(), tmp_path / out, 3, **run), kept)

    assert train("whole")["max_logit_difference"] > 0
    with pytest.raises(KeyboardInterrupt):
        train("a", on_step=stop)
    assert train("a")["resumed_from"] == 2
    weights = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("whole", "a")]
    assert weights[0] == weights[1]
