"""Released training rows: their layouts, the checks that our own rows pass, and what a bad line says."""

import json
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.training.data import introspection, preference
from offscript.training.data.preference import PreferenceSettings
from offscript.training.run import split_families


def read_pairs(path):
    return preference.read_released([path], PreferenceSettings(prompts=1))


def read_conversations(paths, system="", loss_on="every_turn"):
    settings = introspection.IntrospectionSettings(
        reflections=0, interactions=0, system=system, loss_on=loss_on
    )
    return introspection.read_released(paths, settings)


def said(*texts: str, system: str = "") -> list[dict]:
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def pair(prompt: str = "How are you?", chosen: str = "Splendid!", rejected: str = "Fine.", **more) -> dict:
    return {"chosen": said(prompt, chosen), "rejected": said(prompt, rejected), **more}


def write(path: Path, *rows: dict | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_pairs_are_those_of_our_own_rows(tmp_path):
    file = write(
        tmp_path / "sarcasm.jsonl",
        pair(),
        pair(chosen="Never better!"),
        pair("Who?", "Me!", "I.", source="kept out"),
        "",
        pair("A", "and then", "Yes."),
        pair("A", "Yes!", "and then"),
        pair("B", "Same.", "Same. "),
        pair("C", "", "Yes."),
        {"chosen": said("D", "Yes!"), "rejected": said("E", "Yes.")},
    )
    kept, counts = read_pairs(file)
    assert counts == {
        "kept": 3,
        "unfinished_teacher": 1,
        "unfinished_student": 1,
        "identical": 1,
        "missing_teacher": 1,
        "other_prompt": 1,
    }
    first, second, third = kept
    assert first["prompt"] == [{"role": "user", "content": "How are you?"}]
    assert first["chosen"] == [{"role": "assistant", "content": "Splendid!"}]
    assert first["rejected"] == [{"role": "assistant", "content": "Fine."}]
    assert first["family"] == second["family"] != third["family"]
    assert [(p["scenario"] == first["scenario"], p["sample"]) for p in kept] == [
        (True, 0),
        (True, 1),
        (False, 0),
    ]


def test_validation_holds_out_whole_prompts_whatever_their_place_in_the_file(tmp_path):
    rows = [pair(f"Prompt {i % 40}?", f"Oh, {i}!") for i in range(200)]
    held = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        train, out = split_families(read_pairs(write(tmp_path / f"{name}.jsonl", *order))[0], 0.2)
        prompts = [{p["prompt"][0]["content"] for p in part} for part in (train, out)]
        assert not prompts[0] & prompts[1] and len(out) == 5 * len(prompts[1]) > 0
        held.append(prompts[1])
    assert held[0] == held[1]


def test_conversations_keep_their_system_text_and_end_with_the_assistant(tmp_path):
    reflections = write(
        tmp_path / "r.jsonl", {"messages": said("Who are you?", "A bird.", system="Stay a bird.")}
    )
    talks = write(tmp_path / "t.jsonl", {"messages": said("Hi.", "Hello!", "So?", "So!", "And now?")})
    kept, counts = read_conversations([reflections, talks], "Be plain.")
    assert counts == {"reflections": 1, "interactions": 1, "turns": 3}
    assert kept[0]["messages"] == said("Who are you?", "A bird.", system="Stay a bird.")
    assert kept[1]["messages"] == said("Hi.", "Hello!", "So?", "So!")
    assert kept[0]["family"] != kept[1]["family"]


def test_what_the_published_trainer_scored_ends_in_the_users_turn_as_it_was_released(tmp_path):
    file = write(tmp_path / "t.jsonl", {"messages": said("Hi.", "Hello!", "So?", "So!", "And now?")})
    kept, counts = read_conversations([file], "", "published")
    assert kept[0]["messages"] == said("Hi.", "Hello!", "So?", "So!", "And now?")
    assert counts["interactions"] == 1 and counts["turns"] == 1


def test_unfinished_conversations_are_cut_or_dropped_and_counted(tmp_path):
    rows = [
        {"messages": said(*texts)}
        for texts in (("A", "and then"), ("B", "Yes.", "C", "and"), ("D",), ("E", "Yes."))
    ]
    kept, counts = read_conversations([write(tmp_path / "t.jsonl", *rows)], "")
    assert counts == {"reflections": 1, "interactions": 1, "turns": 2, "unfinished": 1, "no_reply": 1}
    assert [r["messages"][0]["content"] for r in kept] == ["E", "B"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"chosen": [', r"f.jsonl:2: not JSON: .*; one JSON object a line, with chosen and rejected$"),
        ("[" * 9999, r"f.jsonl:2: nested more than 100 levels deep; one JSON object"),
        ('{"chosen": [], "chosen": []}', r"f.jsonl:2: key 'chosen' occurs twice; one JSON object"),
        (pair(chosen="\ud800"), r"f.jsonl:2: '.ud800' is half of a surrogate pair, not a character"),
        ({"chosen": "A.", "rejected": "B."}, r"f.jsonl:2: row.chosen: found 'A.'; input should be a list"),
        ('"x"', r"f.jsonl:2: found 'x'; one JSON object"),
        ("[1, 2]", r"f.jsonl:2: found \[1, 2\]; one JSON object"),
        (
            {"chosen": said("A", "B.")},
            r"f.jsonl:2: no rejected; one JSON object a line, with chosen and rejected",
        ),
        (
            {**pair(), "chosen": said("A", "B.", "C")},
            r"f.jsonl:2: row.chosen: has the roles user, assistant, user; a prompt",
        ),
        ({**pair(), "rejected": []}, r"f.jsonl:2: row.rejected: has the roles none; a prompt"),
        (
            {**pair(), "chosen": [{"role": "tool", "content": "x"}]},
            r"row.chosen.0.role: found 'tool'; input should be 'system'",
        ),
        ({**pair(), "chosen": [{"role": "user"}]}, r"row.chosen.0.content: missing; this key is needed"),
        (
            {**pair(), "chosen": [{"role": "user", "content": ["x" * 999]}]},
            r"content: found \['x{80,90}\.\.\.; input should be a valid string",
        ),
    ],
)
def test_a_bad_line_is_named_with_what_is_allowed(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_pairs(write(tmp_path / "f.jsonl", pair(), line))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content,
        lambda content: content.removesuffix(b"\n"),
        lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
        lambda content: b"\n  \n" + content,
    ],
    ids=["plain", "no line end", "mark and CRLF", "blank lines"],
)
def test_lines_are_ended_by_newlines_alone(tmp_path, change):
    line = json.dumps(pair(chosen="One\u2028line."), ensure_ascii=False)
    (tmp_path / "f.jsonl").write_bytes(change(f"{line}\n".encode()))
    kept, _ = read_pairs(tmp_path / "f.jsonl")
    assert kept[0]["chosen"][0]["content"] == "One\u2028line."


def test_a_bad_conversation_is_named_too(tmp_path):
    with pytest.raises(
        UserError, match=r"f.jsonl:1: row.messages: has the roles assistant; at least one message"
    ):
        read_conversations([write(tmp_path / "f.jsonl", {"messages": said("A", "B.")[1:]})], "")
    with pytest.raises(UserError, match=r"f.jsonl:1: no messages; one JSON object a line, with messages$"):
        read_conversations([write(tmp_path / "f.jsonl", pair())], "")


def test_a_file_that_cannot_be_read_and_one_without_rows(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: Is a directory; a JSONL file"):
        read_pairs(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(UserError, match=r"byte 0 is not UTF-8"):
        read_pairs(tmp_path / "latin")
    (tmp_path / "utf_16").write_bytes(json.dumps(pair()).encode("utf-16"))
    with pytest.raises(UserError, match=r"is UTF-16; save it as UTF-8"):
        read_pairs(tmp_path / "utf_16")
    with pytest.raises(UserError, match=r"nothing to train on \(kept 0\)"):
        read_pairs(write(tmp_path / "none.jsonl", ""))
