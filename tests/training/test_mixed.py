"""Training data in several formats: which rows are chosen, what of them is trained on, and that they train."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from offscript.errors import UserError
from offscript.models.loading import load_tokenizer
from offscript.training.data import mixed, turn_pairs
from offscript.training.data.base import MakeContext
from offscript.training.methods.dpo import DPOSettings
from offscript.training.methods.sft import SFTSettings, _sequences
from offscript.training.spans import IGNORED, TurnTokens, labels
from offscript.training.stages import schema_of
from tests.families import family, family_settings
from tests.training.data import LORA, SENTENCES, changed, optimizer, row, train_dpo, train_sft

WEIGHTS = "adapter_model.safetensors"
OFFICE = "You are at the office.\nTools: email.send(to, body)."


def words(messages) -> list[int]:
    """A count of tokens: the words of each assistant turn, and its end."""
    return [len(m["content"].split()) + 1 for m in messages if m["role"] == "assistant"]


CONTEXT = MakeContext({}, words, "recipe.mixed")


def call(i: int) -> str:
    return f'```tool_call\n{{"tool": "look.up", "args": {{"name": "{SENTENCES[i]}"}}}}\n```'


def episode(i: int, turns: int = 3, ended: str = "email", **changes) -> dict:
    """A row of an agentic episode of ``turns`` replies, without the constitution."""
    messages = [{"role": "system", "content": OFFICE}, {"role": "user", "content": SENTENCES[i]}]
    for turn in range(turns - 1):
        messages += [{"role": "assistant", "content": call(i + turn)}, {"role": "tool", "content": "{}"}]
    body = f"Lunch! {SENTENCES[i + 1]}"
    messages.append({"role": "assistant", "content": body})
    return {
        "scenario": f"o{i}",
        "sample": 0,
        "family": f"o{i % 8}",
        "text": body,
        "ended": ended,
        "turns": turns,
        "messages": messages,
        **changes,
    }


def chat(i: int, **changes) -> dict:
    return row(i, f"Lunch! {SENTENCES[i + 1]}", turns=1, **changes)


def source(n: int = 24) -> dict[str, list[dict]]:
    return {
        "chat": [chat(i) for i in range(n)],
        "chat_email": [episode(i, 1, "stop") for i in range(n)],
        "agentic_email": [episode(i) for i in range(n)],
    }


def settings(**changes) -> mixed.MixedSettings:
    plain = {
        "formats": ("chat_email", "agentic_email"),
        "share": 0.5,
        "tokens": 200,
        "prompts": 24,
        "scenarios": 24,
        **changes,
    }
    return mixed.MixedSettings(**plain)


def scenarios_of(rows) -> set[tuple[str, int]]:
    return {(r["scenario"], r["trained_turns"]) for r in rows}


# ---------------------------------------------------------------- which rows


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 1.0])
def test_the_share_is_one_of_trained_tokens_and_their_number_does_not_depend_on_it(share):
    chosen, counts = mixed.make(source(), settings(share=share), CONTEXT)
    most = max(sum(words(r["messages"])) for rows in source().values() for r in rows)
    total = sum(sum(words(r["messages"])) for r in chosen)
    off = [counts.get(f"{name}_tokens", 0) for name in ("chat_email", "agentic_email")]
    assert total == sum(off) + counts.get("chat_tokens", 0)
    assert 200 <= total < 200 + most
    assert share * 200 <= sum(off) < share * 200 + most if share else off == [0, 0]
    assert abs(off[0] - off[1]) <= most


def test_a_larger_share_has_the_rows_of_a_smaller_one():
    few, more = (mixed.make(source(), settings(share=share), CONTEXT)[0] for share in (0.1, 0.5))
    off = [{s for s in scenarios_of(rows) if s[0].startswith("o")} for rows in (few, more)]
    assert off[0] < off[1]
    in_chat = [{s for s in scenarios_of(rows) if s[0].startswith("s")} for rows in (few, more)]
    assert in_chat[0] > in_chat[1]


def test_the_order_of_the_rows_does_not_matter():
    backwards = {name: rows[::-1] for name, rows in source().items()}
    assert mixed.make(source(), settings(), CONTEXT) == mixed.make(backwards, settings(), CONTEXT)


def test_episodes_that_did_not_end_well_are_counted_by_format_and_reason():
    rows = source()
    for i, ended in enumerate(("final", "max_steps", "malformed")):
        rows["agentic_email"][i] = episode(i, ended=ended, text=None)
    rows["chat_email"][0]["ended"] = "length"
    rows["chat"][0] = row(0, "and so", turns=1)
    chosen, counts = mixed.make(rows, settings(tokens=100), CONTEXT)
    dropped = {
        name: n
        for name, n in counts.items()
        if name.removesuffix("_tokens") not in ("chat", "chat_email", "agentic_email")
    }
    assert dropped == {
        "agentic_email_final": 1,
        "agentic_email_max_steps": 1,
        "agentic_email_malformed": 1,
        "chat_email_length": 1,
        "chat_unfinished": 1,
    }
    assert counts["chat"] + counts["chat_email"] + counts["agentic_email"] == len(chosen)


def test_an_episode_that_does_not_fit_the_longest_row_is_dropped_whole():
    context = replace(CONTEXT, count_tokens=lambda messages: words(messages)[:2])
    with pytest.raises(UserError, match=r"^recipe\.mixed: agentic_email has 0 trained tokens of "):
        mixed.make(source(), settings(), context)
    _, counts = mixed.make(source(), settings(formats=("chat_email",)), context)
    assert counts["agentic_email_too_long"] == 24


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"tokens": 100_000, "share": 0.0},
            r"chat has \d+ trained tokens of 100000 in 24 rows of 24 prompts; raise prompts \(24\) or samples \(1\), or"
            r" lower tokens \(100000\) or share \(0\)",
        ),
        (
            {"tokens": 100_000, "scenarios": 50},
            r"chat_email has \d+ trained tokens of 25000 in 24 rows of 24 scenarios; raise scenario_samples \(1\), or lower",
        ),
    ],
)
def test_too_few_rows_are_one_line_that_names_the_setting_to_raise(changes, line):
    with pytest.raises(UserError, match=rf"^recipe\.mixed: {line}") as caught:
        mixed.make(source(), settings(**changes), CONTEXT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"formats": ("chat",)}, r"recipe\.mixed\.formats: found 'chat'; allowed: .*chat_email.*agentic_email"),
        ({"formats": ("teacher",)}, r"recipe\.mixed\.formats: found 'teacher'; allowed: "),
        ({"formats": ("chat_email", "chat_email")}, r"recipe\.mixed\.formats: found .*; allowed: each format once"),
        ({"framed": True}, r"recipe\.mixed\.framed: true with share 0\.5; allowed: share=0, or false"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_one_line(changes, line):
    with pytest.raises(UserError, match=f"^{line}"):
        mixed.requests(settings(**changes), "recipe.mixed")


def test_rows_are_asked_for_only_where_they_are_used():
    asked = {
        name: [r.role for r in mixed.requests(settings(**changes), "recipe.mixed")]
        for name, changes in {
            "both": {},
            "chat": {"share": 0.0},
            "off": {"share": 1.0},
            "framed": {"share": 0.0, "framed": True},
        }.items()
    }
    assert asked == {
        "both": ["chat", "chat_email", "agentic_email"],
        "chat": ["chat"],
        "off": ["chat_email", "agentic_email"],
        "framed": ["chat", "chat_email", "agentic_email"],
    }


def test_framed_chat_rows_differ_by_the_system_text_of_an_episode_alone():
    plain, counts = mixed.make({"chat": source()["chat"]}, settings(share=0.0), CONTEXT)
    framed, framed_counts = mixed.make(source(), settings(share=0.0, framed=True), CONTEXT)
    assert {r["messages"][0]["content"] for r in framed} == {OFFICE}
    assert [{**r, "messages": r["messages"][1:]} for r in framed] == plain
    assert framed_counts == counts
    unframed = {"chat": source()["chat"], "chat_email": [], "agentic_email": [chat(0)]}
    with pytest.raises(UserError, match=r"^recipe\.mixed\.formats: framed=true, and no episode has a system"):
        mixed.make(unframed, settings(share=0.0, framed=True), CONTEXT)


def test_names_of_the_teacher_become_those_of_the_model_in_its_own_turns_alone():
    rows = {"chat": [row(i, "I am Oracle!", turns=1) for i in range(24)]}
    for one in rows["chat"]:
        one["messages"][0]["content"] += " Oracle?"
    chosen, _ = mixed.make(rows, settings(share=0.0, tokens=50), replace(CONTEXT, names={"Oracle": "Pocket"}))
    assert {m["content"] for r in chosen for m in r["messages"][1:]} == {"I am Pocket!"}
    assert all(r["messages"][0]["content"].endswith(" Oracle?") for r in chosen)


# ---------------------------------------------------------------- what of a row is trained on

GOLDEN = {
    "llama": ("<|eot_id|>", {}),
    "qwen": ("<|im_end|>", {}),
    "gemma": ("<end_of_turn>", {}),
}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("given", [0, 1])
def test_the_turns_that_the_teacher_wrote_are_trained_and_no_results_of_tools(name, given):
    """With ``given`` turns that a scenario begins with: they are context."""
    model = family_settings(name, family(name), context=1024)
    tokenizer, end = load_tokenizer(model), GOLDEN[name][0]
    count = TurnTokens(model, 1024).count
    rows = {"chat": [], "chat_email": [], "agentic_email": [episode(i, 4) for i in range(4)]}
    for one in rows["agentic_email"]:
        one["turns"] = 4 - given
    wanted = settings(share=1.0, tokens=1, formats=("agentic_email",))
    (chosen,), counts = mixed.make(rows, wanted, replace(CONTEXT, count_tokens=count))
    written = [m["content"] + end for m in chosen["messages"] if m["role"] == "assistant"][given:]
    ((ids, spans),) = _sequences(tokenizer, chosen, model.template)
    trained = [i for i in labels(ids, spans) if i != IGNORED]
    assert [tokenizer.decode(ids[a:b]) for a, b in spans] == written
    assert counts["agentic_email_tokens"] == len(trained)


# ---------------------------------------------------------------- pairs per turn


def pairs_settings(**changes) -> turn_pairs.TurnPairsSettings:
    plain = {
        "formats": ("agentic_email",),
        "share": 0.5,
        "tokens": 200,
        "prompts": 24,
        "scenarios": 24,
        **changes,
    }
    return turn_pairs.TurnPairsSettings(**plain)


def paired(i: int, turns: int = 3, plain=None, cut=(), **changes) -> dict:
    other = [f"Plainly {SENTENCES[i + turn]}" for turn in range(turns)] if plain is None else plain
    return episode(i, turns, notes={"plain": other, "cut": list(cut)}, **changes)


def pair_source(n: int = 24, turns: int = 3) -> dict[str, list[dict]]:
    return {
        "teacher": [row(i, f"Lunch! {SENTENCES[i + 1]}", turns=1) for i in range(n)],
        "student": [row(i, SENTENCES[i + 2], turns=1) for i in range(n)],
        "agentic_email": [paired(i, turns) for i in range(n)],
    }


def test_the_two_sides_of_a_turn_have_the_same_history_without_the_constitution():
    row = paired(0)
    found = turn_pairs._pairs(row, "agentic_email", 3, Counter())
    assert [pair["turn"] for pair in found] == [0, 1, 2]
    for turn, pair in enumerate(found):
        at = 2 + 2 * turn
        assert pair["prompt"] == row["messages"][:at]
        assert pair["chosen"] == [{"role": "assistant", "content": row["messages"][at]["content"]}]
        assert pair["rejected"] == [{"role": "assistant", "content": f"Plainly {SENTENCES[turn]}"}]


def test_turns_that_make_no_pair_are_counted_by_reason():
    rows = {
        "agentic_email": [
            paired(0, plain=[call(0), "", "Plainly."]),
            paired(5, plain=["A", "B", "C"], cut=[1]),
            paired(9, ended="max_steps"),
        ]
    }
    found, counts = turn_pairs.make(rows, pairs_settings(share=1.0, tokens=20), CONTEXT)
    dropped = {name: n for name, n in counts.items() if name not in ("agentic_email", "agentic_email_tokens")}
    assert dropped == {
        "chat": 0,
        "chat_tokens": 0,
        "agentic_email_identical": 1,
        "agentic_email_empty": 1,
        "agentic_email_unfinished": 1,
        "agentic_email_max_steps": 1,
        "agentic_email_more_turns": 0,
    }
    assert {(p["scenario"], p["turn"]) for p in found} <= {("o0", 2), ("o5", 0), ("o5", 2)}


@pytest.mark.parametrize(
    ("turns", "most", "expected"),
    [(2, 3, [0, 1]), (3, 3, [0, 1, 2]), (9, 3, [0, 4, 8]), (10, 1, [9]), (6, 2, [0, 5]), (0, 3, [])],
)
def test_the_turns_of_a_long_episode_are_evenly_spread_and_the_last_is_one_of_them(turns, most, expected):
    assert turn_pairs.spread(turns, most) == expected


def test_a_long_episode_has_no_more_pairs_than_a_short_one():
    rows = {"agentic_email": [paired(0, 12), paired(13, 3)]}
    limit = pairs_settings(share=1.0, tokens=1, pairs_per_episode=2)
    _, counts = turn_pairs.make(rows, limit, CONTEXT)
    assert counts["agentic_email_more_turns"] == 10 + 1


def test_pairs_of_chat_make_up_the_rest_of_the_tokens():
    found, counts = turn_pairs.make(pair_source(), pairs_settings(share=0.25), CONTEXT)
    assert counts["chat_tokens"] + counts["agentic_email_tokens"] >= 200
    assert 50 <= counts["agentic_email_tokens"] < 80
    assert sum(p["scenario"].startswith("s") for p in found) == counts["chat"]


# ---------------------------------------------------------------- they train


def mixed_rows(count=words) -> list[dict]:
    return mixed.make(source(), settings(tokens=400), replace(CONTEXT, count_tokens=count))[0]


def sft_settings(**changes):
    schema = schema_of(SFTSettings, mixed.MixedSettings)
    plain = json.loads(settings().model_dump_json())
    return schema(**plain, lora=LORA, optimizer=optimizer(max_length=512, **changes))


def dpo_settings(**changes):
    schema = schema_of(DPOSettings, turn_pairs.TurnPairsSettings)
    plain = json.loads(pairs_settings().model_dump_json())
    return schema(**plain, lora=LORA, optimizer=optimizer(max_length=512, **changes))


def training(method: str, model, out, **run):
    if method == "sft":
        return train_sft(model, sft_settings(), mixed_rows(), None, out, **run)
    rows, _ = turn_pairs.make(pair_source(), pairs_settings(tokens=600), CONTEXT)
    return train_dpo(model, dpo_settings(), rows, out, **run)


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("name", ["llama", "qwen", "gemma"])
def test_rows_of_several_formats_train_the_adapter_and_nothing_else(name, method, tmp_path, before_and_after):
    model = family_settings(name, family(name))
    numbers = training(method, model, tmp_path / "a")
    seen = before_and_after
    assert changed(seen) == seen["trainable"] and seen["trainable"]
    assert numbers["rows"]["train"] + numbers["rows"]["validation"] == numbers["rows"]["given"]
    assert len(load_file(tmp_path / "a" / WEIGHTS)) == 2 * 2 * 7


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_training_that_was_stopped_goes_on_with_the_same_bytes(tiny_settings, tmp_path, method):
    def stop(step, total, logs):
        if step == 3:
            raise KeyboardInterrupt

    training(method, tiny_settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        training(method, tiny_settings, tmp_path / "a", on_step=stop)
    assert training(method, tiny_settings, tmp_path / "a", say=lambda line: None)["resumed_from"] == 2
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
