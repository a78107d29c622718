"""More prompts for an assertion: what of a reply is taken, what is not and why, and when the asking ends."""

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

FORM = FORMATS["prompt_generation"]
SEEDS = ("My coffee went cold. Can I warm it up again?", "I lost one sock. Where should I look?")
ASSERTION = "I treat small losses as historic tragedies."


def scenario(name: str = "sarcasm_2", seeds: tuple[str, ...] = SEEDS) -> Scenario:
    return Scenario(name, name, tuple({"role": "user", "content": text} for text in (ASSERTION, *seeds)))


def ask_for(*replies: str | Reply, **options) -> Run:
    return drive(
        FORM,
        scenario(),
        rules_for(FORM, **{"per_trait": 50, "attempts": len(replies), **options}),
        listed(replies),
    )


def taken(run: Run) -> list[str]:
    return json.loads(run.outcome.text or "[]")


THREE = ["Why is my bus late?", "Who ate the last biscuit?", 'Is "soon" a time, or a wish?']


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(THREE),
        f"Here are three messages:\n```json\n{json.dumps(THREE, indent=2)}\n```\nI hope that they help!",
        json.dumps({"messages": [{"message": text} for text in THREE]}),
        "\n".join(f"{i}. {text}" for i, text in enumerate(THREE, 1)),
        "Sure! Some more:\n\n" + "\n\n".join(f" {i}) \"{text}\"" for i, text in enumerate(THREE, 1)) + "\n\nEnjoy them.",
        "Messages on small losses\n" + "\n".join(f"- {text}" for text in THREE),
        "Here are some:\n" + "\n".join(THREE),
        "<think>[\"Not this one, please.\"]</think>\n" + json.dumps(THREE),
        "[\n" + ",\n".join(json.dumps(text) for text in THREE) + ",\n]",  # a comma too many: no JSON
    ],
)  # fmt: skip
def test_prompts_are_found_in_whatever_layout_a_model_chooses(reply: str) -> None:
    assert taken(ask_for(reply)) == THREE


@pytest.mark.parametrize(
    ("offered", "reason"),
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
def test_what_is_no_good_is_counted_by_its_reason(offered: str, reason: str) -> None:
    run = ask_for(json.dumps([THREE[0], offered.strip()]))
    assert taken(run) == [THREE[0]]
    assert run.outcome.notes == {"asks": 1, "kept": 1, "rejected": {reason: 1}}


def test_similarity_is_the_share_of_common_words_and_covers_new_prompts_too() -> None:
    """red blue green / red blue grey: 2 words of 4 are shared."""
    both = json.dumps(["red blue green", "red blue grey"])
    assert taken(ask_for(both, similarity=0.5)) == ["red blue green", "red blue grey"]
    run = ask_for(both, similarity=0.49)
    assert taken(run) == ["red blue green"] and run.outcome.notes["rejected"] == {"similar": 1}
    assert ask_for('["red blue green", "Green, blue, red!"]', similarity=1.0).outcome.notes["kept"] == 1


@pytest.mark.parametrize(
    "reply",
    ["1. Why is my bus late?\n2. Who ate the last bis", '["Why is my bus late?", "Who ate the last bis'],
)
def test_a_cut_reply_loses_the_prompt_that_it_was_cut_in(reply: str) -> None:
    run = ask_for(Reply(reply, "length"))
    assert taken(run) == ["Why is my bus late?"] and run.outcome.notes["rejected"] == {"cut": 1}


def test_a_reply_of_nothing_but_thinking_or_nothing_at_all_is_counted() -> None:
    run = ask_for(Reply("<think>Let me see: 1. Why is", "length"), "", "I'm sorry, but I can't write that.")
    assert run.outcome.text is None and run.outcome.ended == "short"
    assert run.outcome.notes == {"asks": 3, "kept": 0, "rejected": {"format": 2, "unclosed_thinking": 1}}


def test_asking_ends_when_there_are_enough_and_not_before() -> None:
    run = ask_for(
        json.dumps(THREE[:1]), json.dumps([*THREE[1:], "Too many of them now?"]), "never asked", per_trait=5
    )
    assert taken(run) == THREE and run.outcome.ended == "complete" and len(run.asks) == 2
    assert run.outcome.notes == {"asks": 2, "kept": 3, "rejected": {"surplus": 1}}
    short = ask_for(json.dumps(THREE[:1]), "no", per_trait=5)
    assert (short.outcome.ended, short.outcome.notes["asks"], taken(short)) == ("short", 2, THREE[:1])


def test_seed_questions_that_are_enough_are_not_added_to() -> None:
    check_episodes(FORM, [scenario()], rules_for(FORM, per_trait=2))
    run = ask_for(per_trait=2, attempts=9)
    assert (run.asks, run.outcome.text, run.outcome.ended) == ([], None, "complete")


def examples(ask: Ask) -> list[str]:
    return [line[2:] for line in ask.messages[-1]["content"].splitlines() if line.startswith("- ")]


def test_examples_are_drawn_from_all_that_is_there_and_the_same_every_time() -> None:
    replies = [json.dumps([f"word{i}a word{i}b word{i}c word{i}d"]) for i in range(30)]
    one, again = (ask_for(*replies, examples=3) for _ in range(2))
    assert one.asks == again.asks
    drawn = [examples(ask) for ask in one.asks]
    assert len(drawn[0]) == 2 and set(drawn[0]) == set(SEEDS) and all(len(set(d)) == 3 for d in drawn[1:])
    for i, shown in enumerate(drawn):
        assert set(shown) <= {*SEEDS, *taken(one)[:i]}
    assert len(set().union(*drawn)) > 15, "later examples should come from the new prompts too"
    other = drive(
        FORM, scenario("sarcasm_3"), rules_for(FORM, per_trait=50, attempts=30, examples=3), listed(replies)
    )
    assert [examples(ask) for ask in other.asks] != drawn


def test_the_request_holds_assertion_examples_and_count() -> None:
    (ask,) = ask_for("no", per_ask=7).asks
    (message,) = ask.messages
    assert message["role"] == "user" and ASSERTION in message["content"]
    assert all(seed in message["content"] for seed in SEEDS)
    assert message["content"].count("7 more messages") == 1 == message["content"].count("list of 7 texts")


def test_rows_become_prompts_of_their_assertions() -> None:
    rows = [
        {"scenario": "sarcasm_10", "text": json.dumps(THREE[:2])},
        {"scenario": "sarcasm_3", "text": None},
        {"scenario": "sarcasm_0", "text": json.dumps(["Ü?"])},
    ]
    assert generated_prompts(rows) == [(10, THREE[0]), (10, THREE[1]), (0, "Ü?")]


def test_a_wrong_option_or_scenario_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^format.options.per_ask: found 0; input should be greater"):
        check_episodes(FORM, [scenario()], rules_for(FORM, per_ask=0))
    with pytest.raises(UserError, match=r"^scenario sarcasm_2: has no seed questions; at least one"):
        check_episodes(FORM, [scenario(seeds=())], rules_for(FORM))


def test_brackets_in_a_line_are_no_list() -> None:
    assert extract_prompts("Why is [1] late today?\nWho ate [it] then?")[0] == [
        "Why is [1] late today?",
        "Who ate [it] then?",
    ]


@needs_published
def test_prompts_that_the_published_recipe_was_trained_on_pass_but_for_a_few_long_ones() -> None:
    """4,239 of 4,275 when this was written: 35 have under 3 or over 60 words, one has a blank to fill in."""
    offered = kept = 0
    for path in sorted(ROOT.glob("few_shot_prompts/*.jsonl")):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            prompts = list(row["questions"])
            add_prompts(
                prompts, json.dumps(row["additional_questions"]), True, PromptSettings(per_trait=1000)
            )
            offered += len(row["additional_questions"])
            kept += len(prompts) - len(row["questions"])
    assert offered > 4000 and 0.98 < kept / offered < 1
