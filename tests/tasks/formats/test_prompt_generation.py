"""Prompt generation: which prompts of a reply are accepted, why others are rejected, and when an episode ends."""

import json

import pytest

from offscript.errors import UserError
from offscript.settings import PromptSettings
from offscript.tasks.formats import FORMATS, check_episodes
from offscript.tasks.formats.base import Ask, Reply
from offscript.tasks.formats.prompt_generation import add_prompts, extract_prompts, generated_prompts
from offscript.tasks.scenarios import Scenario
from tests.published import ROOT, needs_published
from tests.tasks.formats.driver import Run, drive, listed, rules_for

FORMAT = FORMATS["prompt_generation"]
SEEDS = ("My coffee went cold. Can I warm it up again?", "I lost one sock. Where should I look?")
ASSERTION = "I treat small losses as historic tragedies."


def scenario(name: str = "sarcasm_2", seeds: tuple[str, ...] = SEEDS) -> Scenario:
    return Scenario(name, name, tuple({"role": "user", "content": text} for text in (ASSERTION, *seeds)))


def generate(*replies: str | Reply, **options) -> Run:
    return drive(
        FORMAT,
        scenario(),
        rules_for(FORMAT, **{"per_trait": 50, "attempts": len(replies), **options}),
        listed(replies),
    )


def accepted(run: Run) -> list[str]:
    return json.loads(run.outcome.text or "[]")


THREE = ["Why is my bus late?", "Who ate the last biscuit?", 'Is "soon" a time, or a wish?']


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(THREE),
        f"Here are three messages:\n```json\n{json.dumps(THREE, indent=2)}\n```\nI hope that they help!",
        json.dumps({"messages": [{"message": text} for text in THREE]}),
        "\n".join(f"{i}. {text}" for i, text in enumerate(THREE, 1)),
        "Sure! Some more:\n\n"
        + "\n\n".join(f' {i}) "{text}"' for i, text in enumerate(THREE, 1))
        + "\n\nEnjoy them.",
        "Messages on small losses\n" + "\n".join(f"- {text}" for text in THREE),
        "Here are some:\n" + "\n".join(THREE),
        '<think>["Not this one, please."]</think>\n' + json.dumps(THREE),
        # Not JSON: a trailing comma.
        "[\n" + ",\n".join(json.dumps(text) for text in THREE) + ",\n]",
    ],
)
def test_prompts_are_found_in_every_layout(reply: str) -> None:
    assert accepted(generate(reply)) == THREE


@pytest.mark.parametrize("reply", ['["Half of \\ud800 a pair?"]', '1. "Half of \\ud800 a pair?"'])
def test_half_of_a_surrogate_pair_in_a_prompt_is_replaced(reply: str) -> None:
    """No row that holds one can be written."""
    (prompt,) = accepted(generate(reply))
    assert prompt in ("Half of ? a pair?", "Half of \\ud800 a pair?") and prompt.encode()


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("Why me?", "length"),
        ("Why " * 61, "length"),
        ("**Travel**: why is my bus late?", "format"),
        ("Why is my [vehicle] always late?", "format"),
        ("User: why is my bus late?", "format"),
        ("Why is my bus late?\nAnd my train?", "format"),
        ("Messages about buses and trains:", "format"),
        ("<b>Why is my bus late?</b>", "format"),
        ("I lost one sock; where should I look?", "similar"),
        (SEEDS[0].upper(), "similar"),
    ],
)
def test_rejected_prompts_are_counted_by_reason(prompt: str, reason: str) -> None:
    run = generate(json.dumps([THREE[0], prompt.strip()]))
    assert accepted(run) == [THREE[0]]
    assert run.outcome.notes == {"asks": 1, "kept": 1, "rejected": {reason: 1}}


def test_similarity_is_the_share_of_common_words_and_covers_new_prompts() -> None:
    """red blue green / red blue grey: 2 words of 4 are shared."""
    both = json.dumps(["red blue green", "red blue grey"])
    assert accepted(generate(both, similarity=0.5)) == ["red blue green", "red blue grey"]
    run = generate(both, similarity=0.49)
    assert accepted(run) == ["red blue green"] and run.outcome.notes["rejected"] == {"similar": 1}
    assert generate('["red blue green", "Green, blue, red!"]', similarity=1.0).outcome.notes["kept"] == 1


@pytest.mark.parametrize(
    "reply",
    ["1. Why is my bus late?\n2. Who ate the last bis", '["Why is my bus late?", "Who ate the last bis'],
)
def test_the_last_prompt_of_a_cut_reply_is_rejected(reply: str) -> None:
    run = generate(Reply(reply, "length"))
    assert accepted(run) == ["Why is my bus late?"] and run.outcome.notes["rejected"] == {"cut": 1}


def test_replies_without_prompts_are_counted() -> None:
    run = generate(Reply("<think>Let me see: 1. Why is", "length"), "", "I'm sorry, but I can't write that.")
    assert run.outcome.text is None and run.outcome.ended == "short"
    assert run.outcome.notes == {"asks": 3, "kept": 0, "rejected": {"format": 2, "unclosed_thinking": 1}}


def test_an_episode_ends_when_there_are_enough_prompts_or_no_attempts_left() -> None:
    run = generate(
        json.dumps(THREE[:1]), json.dumps([*THREE[1:], "Too many of them now?"]), "not requested", per_trait=5
    )
    assert accepted(run) == THREE and run.outcome.ended == "complete" and len(run.asks) == 2
    assert run.outcome.notes == {"asks": 2, "kept": 3, "rejected": {"surplus": 1}}
    short = generate(json.dumps(THREE[:1]), "no", per_trait=5)
    assert (short.outcome.ended, short.outcome.notes["asks"], accepted(short)) == ("short", 2, THREE[:1])


def test_nothing_is_requested_if_the_seed_questions_suffice() -> None:
    check_episodes(FORMAT, [scenario()], rules_for(FORMAT, per_trait=2))
    run = generate(per_trait=2, attempts=9)
    assert (run.asks, run.outcome.text, run.outcome.ended) == ([], None, "complete")


def examples(ask: Ask) -> list[str]:
    return [line[2:] for line in ask.messages[-1]["content"].splitlines() if line.startswith("- ")]


def test_examples_are_drawn_reproducibly_from_seeds_and_new_prompts() -> None:
    replies = [json.dumps([f"word{i}a word{i}b word{i}c word{i}d"]) for i in range(30)]
    one, again = (generate(*replies, examples=3) for _ in range(2))
    assert one.asks == again.asks
    drawn = [examples(ask) for ask in one.asks]
    assert len(drawn[0]) == 2 and set(drawn[0]) == set(SEEDS) and all(len(set(d)) == 3 for d in drawn[1:])
    for i, shown in enumerate(drawn):
        assert set(shown) <= {*SEEDS, *accepted(one)[:i]}
    assert len(set().union(*drawn)) > 15, "later examples should come from the new prompts too"
    other = drive(
        FORMAT,
        scenario("sarcasm_3"),
        rules_for(FORMAT, per_trait=50, attempts=30, examples=3),
        listed(replies),
    )
    assert [examples(ask) for ask in other.asks] != drawn


def test_the_request_contains_assertion_examples_and_count() -> None:
    (ask,) = generate("no", per_ask=7).asks
    (message,) = ask.messages
    assert message["role"] == "user" and ASSERTION in message["content"]
    assert all(seed in message["content"] for seed in SEEDS)
    assert message["content"].count("7 more messages") == 1 == message["content"].count("list of 7 texts")


def test_the_request_can_ask_for_lengths() -> None:
    (ask,) = generate("no", per_ask=50, lengths=[15, 20, 15]).asks
    assert "15 are short" in ask.messages[0]["content"] and "20 of medium" in ask.messages[0]["content"]
    (plain,) = generate("no", per_ask=50).asks
    assert "short" not in plain.messages[0]["content"]


def test_lengths_must_add_up_to_the_request() -> None:
    with pytest.raises(
        UserError, match=r"lengths \[1, 2, 3\] with per_ask 10; allowed: three numbers that add up"
    ):
        generate("no", lengths=[1, 2, 3])


def test_overlap_is_the_share_of_the_new_prompt_in_an_earlier_one() -> None:
    """Two of three words of the second are in the first, which is long: their Jaccard similarity is 2/8."""
    both = json.dumps(["red blue green white black brown pink", "red blue grey"])
    assert generate(both, similarity=0.5).outcome.notes["kept"] == 2
    assert generate(both, overlap=0.7).outcome.notes["kept"] == 2
    run = generate(both, overlap=0.5)
    assert run.outcome.notes["kept"] == 1 and run.outcome.notes["rejected"] == {"similar": 1}


def test_generated_prompts_are_read_from_rows_with_their_assertions() -> None:
    rows = [
        {"scenario": "sarcasm_10", "text": json.dumps(THREE[:2])},
        {"scenario": "sarcasm_3", "text": None},
        {"scenario": "sarcasm_0", "text": json.dumps(["Ü?"])},
    ]
    assert generated_prompts(rows) == [(10, THREE[0]), (10, THREE[1]), (0, "Ü?")]


def test_a_wrong_option_or_scenario_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^format.options.per_ask: found 0; input should be greater"):
        check_episodes(FORMAT, [scenario()], rules_for(FORMAT, per_ask=0))
    with pytest.raises(UserError, match=r"^scenario sarcasm_2: has no seed questions; at least one"):
        check_episodes(FORMAT, [scenario(seeds=())], rules_for(FORMAT))


def test_brackets_in_a_line_are_not_a_list() -> None:
    assert extract_prompts("Why is [1] late today?\nWho ate [it] then?")[0] == [
        "Why is [1] late today?",
        "Who ate [it] then?",
    ]


@needs_published
def test_at_least_98_percent_of_the_published_prompts_are_accepted() -> None:
    """Measured: 4,239 of 4,275; 35 have fewer than 3 or more than 60 words, one has a blank to fill in."""
    total = kept = 0
    for path in sorted(ROOT.glob("few_shot_prompts/*.jsonl")):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            prompts = list(row["questions"])
            add_prompts(
                prompts, json.dumps(row["additional_questions"]), True, PromptSettings(per_trait=1000)
            )
            total += len(row["additional_questions"])
            kept += len(prompts) - len(row["questions"])
    assert total > 4000 and 0.98 < kept / total < 1
