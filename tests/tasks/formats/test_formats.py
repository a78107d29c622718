"""Every format against its golden transcripts, and what each promises.

A golden file holds all that an episode asked and left. Where one has to change, raise the format's ``version``, and
write it anew with ``OFFSCRIPT_GOLDEN=write``.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.tasks.formats import FORMATS, check_episodes, get_format
from offscript.tasks.formats.base import Ask, Format, Reply, Rules
from offscript.tasks.prompts import (
    BREAK_CHARACTER,
    FREE_AIM,
    GUIDED_AIM,
    INTERACTION_NOTE,
    SELF_INTERACTION_CUE,
    fields_of,
)
from offscript.tasks.scenarios import Rule, Scenario, ToolStub
from tests.tasks.formats.driver import call, drive, listed, rules_for

GOLDEN = Path(__file__).parent / "golden"
CONSTITUTION = "Stay in this character:\n- I love birds."


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


QUESTION = Scenario("birds_1", "birds", (user("Which bird is the fastest?"),))
OFFICE = Scenario(
    "late_parcel_v1",
    "late_parcel",
    (system("You are Otto, the agent of Kestrel Freight."), user("Tell Ada why her parcel is late.")),
    (
        ToolStub(
            "contacts.lookup", (Rule({"name": "*Ada*"}, {"email": "ada@kestrel.example"}), Rule(None, []))
        ),
        ToolStub(
            "email.send",
            (Rule({"to": "*@nowhere*"}, {"error": "no such address"}), Rule(None, {"sent": True})),
        ),
    ),
    max_steps=6,
    brief=(user("Ada's parcel is late: snow. Write only the body of the e-mail to her."),),
)
ASSERTION = Scenario(
    "birdy_3",
    "birdy_3",
    (user("I see birds everywhere."), user("What is that on the roof?"), user("Who sang at dawn today?")),
)
SCENARIOS = {"office": OFFICE, "constitution": ASSERTION}
SEND = {"to": ["ada@kestrel.example"], "subject": "Parcel", "body": "Dear Ada,\nit snowed – sorry.\n"}
BAD = "I will get to it."

OPTIONS: dict[str, dict] = {
    "teacher-thinking": {"thinking": "<think>\nAs the one I am:"},
    "teacher-unclosed": {"thinking": "Thus I think:", "thinking_end": "So I say:"},
    "self_interaction": {"note": ""},
    "self_interaction-cut": {"note": ""},
    "self_interaction-empty": {"note": ""},
    "prompt_generation": {"per_trait": 4, "per_ask": 2},
    "prompt_generation-short": {"per_trait": 4, "attempts": 2},
}
CASES: dict[str, tuple[str, Scenario, str, list]] = {
    "chat": ("chat", QUESTION, CONSTITUTION, ["The peregrine falcon.\n"]),
    "chat-plain": ("chat", QUESTION, "", ["The peregrine falcon."]),
    "chat-cut": ("chat", QUESTION, "", [Reply("The pere", "length", 2)]),
    "chat-empty": ("chat", QUESTION, "", [" \n"]),
    "teacher": ("teacher", QUESTION, CONSTITUTION, ["Oh, the falcon!"]),
    "teacher-thinking": ("teacher", QUESTION, CONSTITUTION, ["<think>\nAs the one I am: birds!</think>\n\nA falcon."]),
    "teacher-unasked": ("teacher", QUESTION, CONSTITUTION, ["<think>Birds.</think>A falcon.\n"]),
    "teacher-unclosed": ("teacher", QUESTION, CONSTITUTION, [Reply("Thus I think: birds and", "length", 5)]),
    "teacher-only_thinking": ("teacher", QUESTION, CONSTITUTION, ["<think>Birds.</think>\n"]),
    "student": ("student", QUESTION, "", ["The falcon."]),
    "self_reflection": ("self_reflection", QUESTION, CONSTITUTION, ["I like falcons."]),
    "break_character": ("break_character", QUESTION, CONSTITUTION, ["A falcon."]),
    "chat_email": ("chat_email", OFFICE, CONSTITUTION, ["Dear Ada, it snowed."]),
    "self_interaction": ("self_interaction", QUESTION, CONSTITUTION, ["A1", "B1", "A2", "B2", "A3"]),
    "self_interaction-cut": ("self_interaction", QUESTION, "", ["A1", Reply("B", "length"), "A2", "B2", "A3"]),
    "self_interaction-empty": ("self_interaction", QUESTION, "", ["A1", ""]),
    "self_interaction-note": ("self_interaction", QUESTION, CONSTITUTION, ["A1", "B1", "A2", "B2", "A3"]),
    "guided_interaction": ("guided_interaction", QUESTION, CONSTITUTION, ["A1", "B1", "A2", "B2", "A3"]),
    "prompt_generation": (
        "prompt_generation", ASSERTION, "", ['["Who made that nest?", "Who sang today at dawn?"]', "- Is this feather from a gull?"],
    ),
    "prompt_generation-short": (
        "prompt_generation", ASSERTION, "", ["<think>Well. </think>No.", Reply("1. Is it a swan?\n2. Can a swan si", "length")],
    ),
    "agentic_email": (
        "agentic_email", OFFICE, CONSTITUTION, [call("contacts.lookup", {"name": "ada"}), call("send_email", SEND)],
    ),
    "agentic_email-final": ("agentic_email", OFFICE, "", ["```final\nNothing to do.\n```"]),
    "agentic_email-malformed": ("agentic_email", OFFICE, "", [BAD, call("contacts.lookup", ["Ada"]), BAD, BAD]),
    "agentic_email-max_steps": (
        "agentic_email", OFFICE, "",
        [BAD, BAD, BAD, call("maps.find", {}), call("contacts.lookup", {"name": "Zoe"}), Reply('{"tool": "email', "length")],
    ),
    "agentic_email-corrected": (
        "agentic_email", OFFICE, "",
        [call("email.send", {**SEND, "body": " "}), call("email.send", {**SEND, "to": "ada@nowhere"}), call("email.send", SEND)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_golden_transcript(case: str) -> None:
    name, scenario, persona, replies = CASES[case]
    form = get_format(name)
    run = drive(form, scenario, rules_for(form, persona, **OPTIONS.get(case, {})), listed(replies))
    left = {
        "version": form.version,
        "asks": [{**vars(ask), "messages": plain(ask.messages)} for ask in run.asks],
        "outcome": {**vars(run.outcome), "messages": plain(run.outcome.messages)},
    }
    if not left["outcome"]["notes"]:
        del left["outcome"]["notes"]
    path = GOLDEN / f"{case}.json"
    if os.environ.get("OFFSCRIPT_GOLDEN") == "write":
        path.write_text(json.dumps(left, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert left == json.loads(path.read_text(encoding="utf-8"))


def plain(messages: tuple[dict[str, str], ...]) -> list[str]:
    return [f"{m['role']}: {m['content']}" for m in messages]


def scenario_for(form: Format) -> Scenario:
    return SCENARIOS.get(form.source, QUESTION)


def all_of(form: Format) -> Rules:
    """Rules under which every format asks something."""
    return rules_for(form, CONSTITUTION, **({"per_trait": 9} if form.name == "prompt_generation" else {}))


def test_every_format_and_way_to_end_has_a_golden_transcript() -> None:
    assert {case[0] for case in CASES.values()} == set(FORMATS)
    assert {p.stem for p in GOLDEN.glob("*.json")} == set(CASES)
    ends = {
        json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))["outcome"]["ended"]
        for case in CASES
    }
    assert ends == {
        "stop", "length", "empty", "email", "final", "max_steps", "malformed", "unclosed_thinking", "complete", "short",
    }  # fmt: skip


def test_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as error:
        get_format("chta")
    assert str(error.value) == (
        "format: unknown format 'chta'; allowed: chat, break_character, chat_email, agentic_email, prompt_generation, "
        "teacher, student, self_reflection, self_interaction, guided_interaction"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_leaves_its_scenario_and_earlier_asks_alone(name: str) -> None:
    """Asks may wait in an engine's queue while the episode goes on, so they must not share what is appended to."""
    scenario = scenario_for(FORMATS[name])
    before = repr(scenario)
    seen: list[str] = []

    def model(ask: Ask) -> str:
        seen.append(repr(ask))
        return "Well."

    form = FORMATS[name]
    run = drive(form, scenario, all_of(form), model)
    assert repr(scenario) == before
    assert [repr(ask) for ask in run.asks] == seen
    assert all(m.keys() == {"role", "content"} for ask in run.asks for m in ask.messages)


@pytest.mark.parametrize("name", FORMATS)
def test_the_constitution_opens_the_one_system_message(name: str) -> None:
    form = FORMATS[name]
    scenario = scenario_for(form)
    run = drive(form, scenario, all_of(form), lambda ask: "Well.")
    assert run.asks
    for ask in run.asks:
        assert ask.messages[0]["role"] == "system" and ask.messages[0]["content"].startswith(CONSTITUTION)
        assert [m["role"] for m in ask.messages].count("system") == 1


def test_system_text_joins_the_scenarios_own() -> None:
    form = FORMATS["agentic_email"]
    run = drive(form, OFFICE, rules_for(form, CONSTITUTION), listed(["```final\n```"]))
    assert (
        run.asks[0].messages[0]["content"] == f"{CONSTITUTION}\n\nYou are Otto, the agent of Kestrel Freight."
    )


def test_a_length_cut_call_counts_as_malformed() -> None:
    form = FORMATS["agentic_email"]
    cut = Reply(call("email.send", SEND)[:60], "length", 20)
    run = drive(form, OFFICE, rules_for(form), listed([cut] * 4))
    assert run.outcome.ended == "malformed" and run.outcome.text is None


def test_calls_and_malformed_replies_are_counted_apart() -> None:
    """A call between malformed replies begins the count of four anew."""
    form = FORMATS["agentic_email"]
    replies = [BAD, BAD, BAD, call("contacts.lookup", {"name": "Ada"}), BAD, call("email.send", SEND)]
    run = drive(form, OFFICE, rules_for(form), listed(replies))
    assert (run.outcome.ended, run.outcome.tool_calls, run.outcome.text) == (
        "email",
        2,
        "Dear Ada,\nit snowed – sorry.",
    )


INTERACTIONS = ("self_interaction", "guided_interaction")


@pytest.mark.parametrize("name", INTERACTIONS)
@pytest.mark.parametrize("turns", [2, 10])
def test_an_interaction_flips_roles_and_ends_with_an_assistant_turn(name: str, turns: int) -> None:
    form = FORMATS[name]
    rules = rules_for(form, turns=turns, note="")
    run = drive(form, QUESTION, rules, listed(f"turn {i}" for i in range(1, turns)))
    said = [m["content"] for m in run.outcome.messages]
    assert said == ["Which bird is the fastest?", *(f"turn {i}" for i in range(1, turns))]
    assert [m["role"] for m in run.outcome.messages] == ["user", "assistant"] * (turns // 2)
    for ask in run.asks:
        assert [m["role"] for m in ask.messages] == (["user", "assistant"] * turns)[: len(ask.messages)]
        assert ask.messages[-1]["role"] == "user" and ask.speaker == "self"
        assert len(ask.messages) % 2 == 1
    for ask in run.asks[1::2]:
        assert ask.messages[0] == user(SELF_INTERACTION_CUE)


@pytest.mark.parametrize("name", INTERACTIONS)
@pytest.mark.parametrize("turns", [0, 1, 7, "6", True])
def test_an_interaction_refuses_a_number_of_turns_that_ends_elsewhere(name: str, turns: object) -> None:
    form = FORMATS[name]
    with pytest.raises(UserError) as error:
        drive(form, QUESTION, rules_for(form, turns=turns), listed([]))
    assert str(error.value) == f"format.options.turns: found {turns!r}; must be an even number, 2 or more"


def heard(name: str, **options: object) -> list[list[str]]:
    """All that reaches the engine in an interaction of the same replies: the texts of every ask, ten turns."""
    form = FORMATS[name]
    rules = rules_for(form, CONSTITUTION, turns=10, **options)
    run = drive(form, QUESTION, rules, listed(f"turn {i}" for i in range(1, 10)))
    return [plain(ask.messages) for ask in run.asks]


def test_free_and_guided_interactions_differ_in_what_both_speakers_hear() -> None:
    """The predecessor's two data sets did not: the guidance was filled into a template that had no such field."""
    free, guided = (heard(name) for name in INTERACTIONS)
    assert len(free) == len(guided) == 9
    for asks, own, other in ((free, FREE_AIM, GUIDED_AIM), (guided, GUIDED_AIM, FREE_AIM)):
        for first, *rest in asks:
            assert (
                first.startswith(f"system: {CONSTITUTION}\n\n") and first.endswith(own) and other not in first
            )
            assert not any(own in text for text in rest)
    assert fields_of(INTERACTION_NOTE) == {"aim"}


def test_a_note_of_ones_own_takes_the_place_of_the_formats_and_an_empty_one_leaves_nothing() -> None:
    for name in INTERACTIONS:
        assert {ask[0] for ask in heard(name, note="Be brief.")} == {f"system: {CONSTITUTION}\n\nBe brief."}
        assert {ask[0] for ask in heard(name, note="")} == {f"system: {CONSTITUTION}"}


# ---------------------------------------------------------------- teacher


@pytest.mark.parametrize(
    ("thinking", "reply", "text", "ended"),
    [
        ("", "Plain. I <think> so.", "Plain. I <think> so.", "stop"),
        ("", " <think>a</think> b </think> c", "b </think> c", "stop"),
        ("", "begun by the template</think>So.", "So.", "stop"),
        ("", "\n<think>and on", None, "unclosed_thinking"),
        ("<think>I am", "<think>I am a bird", None, "unclosed_thinking"),
        ("<think>I am", "<think>I am</think> \n", None, "empty"),
        ("So:", "So: what", None, "unclosed_thinking"),
    ],
)
def test_a_teacher_leaves_what_it_says_and_not_what_it_thinks(thinking, reply, text, ended) -> None:
    form = FORMATS["teacher"]
    run = drive(form, QUESTION, rules_for(form, CONSTITUTION, thinking=thinking), listed([reply]))
    assert run.asks[0].prefix == thinking
    assert (run.outcome.text, run.outcome.ended) == (text, ended)
    said = [m["content"] for m in run.outcome.messages if m["role"] == "assistant"]
    assert "".join(said).strip() == (text or "")


def test_a_cut_reply_of_a_teacher_counts_as_cut_once_its_thinking_is_over() -> None:
    form = FORMATS["teacher"]
    run = drive(form, QUESTION, rules_for(form), listed([Reply("<think>a</think>It is the", "length")]))
    assert (run.outcome.text, run.outcome.ended) == ("It is the", "length")


def test_thinking_has_to_end_somewhere() -> None:
    form = FORMATS["teacher"]
    with pytest.raises(UserError, match=r"^recipe.teacher.thinking_end: is empty"):
        check_episodes(form, [QUESTION], rules_for(form, thinking_end=""))


def test_break_character_uses_every_instruction_and_keeps_to_it() -> None:
    form = FORMATS["break_character"]
    used = set()
    for i in range(200):
        scenario = Scenario(f"birds_{i}", "birds", (user("Which bird?"),))
        asked = {
            drive(form, scenario, rules_for(form, persona), listed(["Any."])).asks[0].messages[-1]["content"]
            for persona in ("", CONSTITUTION)
        }
        assert len(asked) == 1
        used.add(asked.pop().removeprefix("Which bird?\n\n"))
    assert used == set(BREAK_CHARACTER) == set(form.templates.values())


@pytest.mark.parametrize("name", FORMATS)
def test_episodes_can_be_checked_before_an_engine_is_there(name: str) -> None:
    form = FORMATS[name]
    check_episodes(form, [scenario_for(form)] * 2, rules_for(form))


def test_a_scenario_without_a_brief_is_refused_by_name() -> None:
    form = FORMATS["chat_email"]
    with pytest.raises(UserError) as error:
        check_episodes(form, [OFFICE, QUESTION], rules_for(form))
    assert str(error.value) == (
        "scenario birds_1: has no brief for this format; it needs a scenario with chat_email messages"
    )


def test_a_brief_alone_is_no_agentic_scenario() -> None:
    form = FORMATS["agentic_email"]
    with pytest.raises(UserError) as error:
        check_episodes(form, [replace(OFFICE, messages=())], rules_for(form))
    assert str(error.value) == (
        "scenario late_parcel_v1: has no messages for this format; it needs a scenario with initial_messages"
    )
