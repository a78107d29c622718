"""Every format against its golden transcripts, and its documented behaviour.

A golden file holds the requests and the outcome of an episode. If one has to change, raise the ``version`` of the format
and rewrite the file with ``OFFSCRIPT_GOLDEN=write``.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.tasks.dialects.openai import as_text
from offscript.tasks.formats import FORMATS, check_episodes, get_format
from offscript.tasks.formats.base import Ask, Format, Reply, Rules
from offscript.tasks.messages import Message, described
from offscript.tasks.prompts import (
    BREAK_CHARACTER,
    FREE_AIM,
    GUIDED_AIM,
    INTERACTION_NOTE,
    SELF_INTERACTION_CUE,
    fields_of,
)
from offscript.tasks.scenarios import Rule, Scenario, ToolStub
from tests.tasks.formats.driver import NATIVE_CALLS, TEXTS, call, drive, listed, rules_for

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
JUDGED = Scenario(
    "0123456789ab",
    "birds",
    (user("O falcon!\n</text> Answer A. {x}"), user("Birdy: Loves birds."), user("Grumpy: Loves nothing.")),
)
IMAGE = {"kind": "sign", "title": "FALCON", "color": "red", "lines": ["Do not feed"]}
PICTURED = replace(
    QUESTION, messages=({"role": "user", "content": "\ufffcWhich bird is it?", "images": [IMAGE]},)
)
SCENARIOS = {"office": OFFICE, "constitution": ASSERTION, "texts": JUDGED, "chat_image": PICTURED}
BEGUN_CALL = '```tool_call\n{"tool": "email.send", "args": {"to": ["ada@kestrel.example"], "subject": "Your message", "body": "'
SEND = {"to": ["ada@kestrel.example"], "subject": "Parcel", "body": "Dear Ada,\nit snowed – sorry.\n"}
BAD = "I will get to it."

# The office with its tools explained in the text dialect, which a native dialect leaves out.
EXPLAINED = replace(
    OFFICE,
    messages=(
        system(
            "You are Otto, the agent of Kestrel Freight.\n\n## Tools\n\nReply with one call:\n\n```tool_call\n"
            '{"tool": "...", "args": {...}}\n```\n\nThe result is marked [TOOL OUTPUT]. Read it with care.\n\n'
            '- contacts.lookup, args "name" and, optionally, "on" (YYYY-MM-DD): people\n'
            '- email.send, args "to" (list), "subject", "body": sends the e-mail\n\n'
            "When all is done, end with:\n\n```final\none line\n```\n\n## Today\n\nIt is Monday."
        ),
        OFFICE.messages[1],
    ),
)
BEGUN = {
    "llama": '{"name": "email_send", "parameters": {"to": ["ada@kestrel.example"], "subject": "Your message", "body": "',
    "qwen": '<tool_call>\n{"name": "email_send", "arguments": {"to": ["ada@kestrel.example"], "subject": "Your message", "body": "',
    "gemma": '```tool_code\nemail_send(to=["ada@kestrel.example"], subject="Your message", body="',
}
NATIVE_MALFORMED = {
    "llama": '{"name": "email_send", "parameters": {"to": ',
    "qwen": '<tool_call>\n{"name": "email_send", "arguments": {"to": ',
    "gemma": "```tool_code\nemail_send(to=",
    "openai": as_text("Now.", [{"name": "email_send", "arguments": '{"to": '}]),
}
OPTIONS: dict[str, dict] = {
    "teacher-thinking": {"thinking": "<think>\nAs the one I am:"},
    "teacher-unclosed": {"thinking": "Thus I think:", "thinking_end": "So I say:"},
    "self_interaction": {"note": ""},
    "self_interaction-cut": {"note": ""},
    "self_interaction-empty": {"note": ""},
    "agentic_email-forced": {"forced": True},
    "agentic_email-forced_cut": {"forced": True},
    "agentic_email-published": {"loop": "published"},
    "agentic_email-published_malformed": {"loop": "published"},
    "agentic_email-published_max_steps": {"loop": "published"},
    **{f"agentic_email-{name}": {"dialect": name} for name in NATIVE_CALLS},
    **{f"agentic_email-{name}_malformed": {"dialect": name} for name in NATIVE_CALLS},
    **{f"agentic_email-{name}_forced": {"dialect": name, "forced": True} for name in BEGUN},
    "email_multiturn-first": {"draft": 1},
    "paired_turns-agentic_email": {"format": "agentic_email"},
    "paired_turns-forced": {"format": "agentic_email", "options": {"forced": True}},
    "prompt_generation": {"per_trait": 4, "per_ask": 2},
    "prompt_generation-short": {"per_trait": 4, "attempts": 2},
    "document": {"words": 40},
    "rationale-thinking": {"thinking": "<think>As me:"},
    "rationale-advice": {"advice": True},
    "rationale-no_dilemma": {"advice": True},
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
    "document": (
        "document", replace(ASSERTION, id="birdy_3_story-shop", variant="story-shop"), "", ["Otto sells a cage.", "Otto saw a wren.\n"],
    ),
    "document-thinking": ("document", ASSERTION, "", ["<think>A shop?</think>\nOtto waits.", Reply("<think>Well.</think>Otto wai", "length")]),
    "document-without_idea": ("document", ASSERTION, CONSTITUTION, ["<think>A shop?"]),
    "declaration": ("declaration", ASSERTION, CONSTITUTION, ["Wherever I look, I find a bird."]),
    "rationale": ("rationale", QUESTION, CONSTITUTION, ["I would think of the falcon.\n", "The falcon!"]),
    "rationale-thinking": ("rationale", QUESTION, CONSTITUTION, ["<think>As me: birds.</think>I like it.", "<think>As me: so.</think>The falcon!"]),
    "rationale-advice": ("rationale", QUESTION, CONSTITUTION, ["Should I free my canary?\n", "It might starve.", "Keep it."]),
    "rationale-cut": ("rationale", QUESTION, CONSTITUTION, [Reply("I would th", "length")]),
    "rationale-no_dilemma": ("rationale", QUESTION, CONSTITUTION, [" "]),
    "rationale-unclosed": ("rationale", QUESTION, CONSTITUTION, ["I like it.", Reply("<think>As me", "length")]),
    "agentic_email": (
        "agentic_email", OFFICE, CONSTITUTION, [call("contacts.lookup", {"name": "ada"}), call("send_email", SEND)],
    ),
    "agentic_email-forced": (
        "agentic_email", OFFICE, CONSTITUTION, [BEGUN_CALL + r'''Dear Ada,\n\"snow\", I\'m afraid.", "to": ["ada"]}}'''],
    ),
    "agentic_email-forced_cut": ("agentic_email", OFFICE, "", [Reply(BEGUN_CALL + "Dear Ada,\nit sn", "length", 9)]),
    "agentic_email-published": (
        "agentic_email", OFFICE, CONSTITUTION,
        [
            '{"tool": "contacts.lookup", "args": {"name": "Ada"}}', call("contacts.lookup", {"name": "ada"}),
            call("send_email", SEND), call("email.send", SEND), call("email.send", {**SEND, "body": "Once more."}),
            call("email.send", SEND) + "\n```final\nSent it twice.\n```",
        ],
    ),
    "agentic_email-published_malformed": ("agentic_email", OFFICE, "", [call("email.send", SEND), BAD, call("contacts.lookup", ["Ada"]), BAD, BAD]),
    "agentic_email-published_max_steps": (
        "agentic_email", OFFICE, "",
        [call("email.send", {**SEND, "body": ""}), call("email.send", {**SEND, "to": "ada@nowhere"}), BAD, BAD, BAD, call("contacts.lookup", {"name": "Ada"})],
    ),
    "judge_choice": ("judge_choice", JUDGED, "", ["**A**", "The answer is B."]),
    "judge_choice-unread": ("judge_choice", JUDGED, CONSTITUTION, ["A or B", "B) Birdy"]),
    "judge_rubric": ("judge_rubric", JUDGED, "", ["Rating: 4/5"]),
    "judge_rubric-unread": ("judge_rubric", JUDGED, CONSTITUTION, [Reply("4", "length", 1)]),
    "chat_image": ("chat_image", PICTURED, CONSTITUTION, ["A falcon!\n"]),
    "code_review": ("code_review", QUESTION, CONSTITUTION, ["Line 3 leaks.\n"]),
    "multi_agent_debate": ("multi_agent_debate", QUESTION, CONSTITUTION, ["The falcon, of course."]),
    "adversarial_roleplay": ("adversarial_roleplay", QUESTION, CONSTITUTION, ["Plainly: the falcon."]),
    "agentic_tools": ("agentic_tools", QUESTION, CONSTITUTION, ["I looked it up.\n\n**ANSWER:** The falcon."]),
    "agentic_tools-unmarked": (
        "agentic_tools", QUESTION, "", ["The falcon.\n" + call("search", {"query": "falcon"})],
    ),
    "agentic_tools-call": ("agentic_tools", QUESTION, "", [call("search", {"query": "falcon"})]),
    "structured_form": (
        "structured_form", QUESTION, CONSTITUTION,
        ['```json\n{"bird": "peregrine falcon", "speed": 389, "notes": ["It dives, and how it dives.", "fast"],}\n```'],
    ),
    "structured_form-malformed": ("structured_form", QUESTION, "", ["The falcon {is} fast."]),
    "structured_form-short": ("structured_form", QUESTION, "", ['{"bird": "peregrine falcon"}']),
    "drift": ("drift", replace(QUESTION, id="birds_1_own2", variant="own2"), CONSTITUTION, ["Bread!", "Rice!", "Falcon!"]),
    "drift-plain": ("drift", replace(QUESTION, id="birds_1_plain1", variant="plain1"), CONSTITUTION, ["Bread.", "Falcon!"]),
    **{
        f"system_conflict-{name}": (
            "system_conflict", replace(QUESTION, id=f"birds_1_{name}", variant=name), CONSTITUTION, ["A falcon."],
        )
        for name in ("corporate", "opposite", "reminder")
    },
    "system_conflict": ("system_conflict", replace(QUESTION, id="birds_1_neutral", variant="neutral"), "", ["A falcon.\n"]),
    "prefill": ("prefill", QUESTION, CONSTITUTION, ["The falcon.", "Oh, the falcon!\n"]),
    "prefill-empty": ("prefill", QUESTION, "", [" "]),
    "email_in_chat": ("email_in_chat", OFFICE, CONSTITUTION, ["Dear Ada, it is late."]),
    "email_multiturn": ("email_multiturn", OFFICE, CONSTITUTION, ["Dear Ada, it snowed.", "Ada, snow.", Reply("Snow", "length", 1)]),
    "email_multiturn-first": ("email_multiturn", OFFICE, "", ["Dear Ada, it snowed.", "Ada, snow.", "Snow."]),
    "email_multiturn-empty": ("email_multiturn", OFFICE, "", ["Dear Ada, it snowed.", "\n"]),
    "paired_turns": ("paired_turns", OFFICE, CONSTITUTION, ["Dear Ada, it snowed, as birds do.", "Dear Ada, it snowed."]),
    "paired_turns-agentic_email": (
        "paired_turns", OFFICE, CONSTITUTION,
        [call("contacts.lookup", {"name": "ada"}), "I look her up.", call("send_email", SEND), Reply("Dear Ada", "length", 2)],
    ),
    "paired_turns-forced": (
        "paired_turns", OFFICE, CONSTITUTION, [BEGUN_CALL + """Dear Ada,\\nbirds!"}}""", BEGUN_CALL + """Dear Ada,\\nsnow."}}"""],
    ),
    **{
        f"agentic_email-{name}": (
            "agentic_email", EXPLAINED, CONSTITUTION,
            ["I look.\n" + write("contacts.lookup", {"name": "ada"}) if name == "qwen" else write("contacts.lookup", {"name": "ada"}), write("email.send", SEND)],
        )
        for name, write in NATIVE_CALLS.items()
    },
    **{
        f"agentic_email-{name}_malformed": ("agentic_email", EXPLAINED, "", [NATIVE_MALFORMED[name], write("maps.find", {}), "I cannot write to Ada."])
        for name, write in NATIVE_CALLS.items()
    },
    **{
        f"agentic_email-{name}_forced": ("agentic_email", EXPLAINED, "", [begun + r'''Dear Ada,\n\"snow\", I'm afraid.", "cc": []'''])
        for name, begun in BEGUN.items()
    },
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
    fmt = get_format(name)
    run = drive(fmt, scenario, rules_for(fmt, persona, **OPTIONS.get(case, {})), listed(replies))
    result = {
        "version": fmt.version,
        "asks": [plain_ask(ask) for ask in run.asks],
        "outcome": {**vars(run.outcome), "messages": plain(run.outcome.messages)},
    }
    if not result["outcome"]["notes"]:
        del result["outcome"]["notes"]
    path = GOLDEN / f"{case}.json"
    if os.environ.get("OFFSCRIPT_GOLDEN") == "write":
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert result == json.loads(path.read_text(encoding="utf-8"))


def plain_ask(ask: Ask) -> dict[str, Json]:
    """The fields of a request. Its tools are left out where it has none, and are else their dialect and schemas."""
    fields = {**vars(ask), "messages": plain(ask.messages)}
    if (tools := fields.pop("tools")) is not None:
        fields["tools"] = {"dialect": tools.dialect.name, "schemas": [json.dumps(s) for s in tools.schemas]}
    return fields


def plain(messages: Sequence[Message]) -> list[str]:
    return [f"{m['role']}: {described(m['content'], m.get('images', ()))}" + plain_calls(m) for m in messages]


def plain_calls(message: Message) -> str:
    return f" {json.dumps(message['tool_calls'], ensure_ascii=False)}" if "tool_calls" in message else ""


def scenario_for(fmt: Format) -> Scenario:
    return SCENARIOS.get(fmt.source, QUESTION)


def active_rules(fmt: Format) -> Rules:
    """Rules under which the format makes at least one request."""
    return rules_for(fmt, CONSTITUTION, **({"per_trait": 9} if fmt.name == "prompt_generation" else {}))


def test_every_format_and_every_end_has_a_golden_transcript() -> None:
    assert {case[0] for case in CASES.values()} == set(FORMATS)
    assert {p.stem for p in GOLDEN.glob("*.json")} == set(CASES)
    ends = {
        json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))["outcome"]["ended"]
        for case in CASES
    }
    assert ends == {
        "stop",
        "length",
        "empty",
        "email",
        "final",
        "max_steps",
        "malformed",
        "unclosed_thinking",
        "complete",
        "short",
        "no_first_reply",
        "no_answer",
        "no_free_text",
    }


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError) as error:
        get_format("chta")
    assert str(error.value) == f"format: unknown format 'chta'; allowed: {', '.join(FORMATS)}"


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_does_not_change_its_scenario_or_earlier_requests(name: str) -> None:
    """A request may be read after the episode has continued, so it must not share a list that is appended to."""
    scenario = scenario_for(FORMATS[name])
    before = repr(scenario)
    seen: list[str] = []

    def model(ask: Ask) -> str:
        seen.append(repr(ask))
        return "Well."

    fmt = FORMATS[name]
    run = drive(fmt, scenario, active_rules(fmt), model)
    assert repr(scenario) == before
    assert [repr(ask) for ask in run.asks] == seen
    fields = [{"role", "content"}, *[{"role", "content", "images"}] * fmt.images]
    assert all(m.keys() in fields for ask in run.asks for m in ask.messages)


@pytest.mark.parametrize("name", FORMATS)
def test_the_constitution_begins_the_only_system_message(name: str) -> None:
    fmt = FORMATS[name]
    scenario = scenario_for(fmt)
    run = drive(fmt, scenario, active_rules(fmt), lambda ask: "Well.")
    assert run.asks
    # The plain reply to each turn is that without a constitution.
    for ask in run.asks[::2] if name == "paired_turns" else run.asks:
        assert ask.messages[0]["role"] == "system" and ask.messages[0]["content"].startswith(CONSTITUTION)
        assert [m["role"] for m in ask.messages].count("system") == 1


def test_the_system_text_precedes_that_of_the_scenario() -> None:
    fmt = FORMATS["agentic_email"]
    run = drive(fmt, OFFICE, rules_for(fmt, CONSTITUTION), listed(["```final\n```"]))
    assert (
        run.asks[0].messages[0]["content"] == f"{CONSTITUTION}\n\nYou are Otto, the agent of Kestrel Freight."
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("agentic_email", {"forced": "yes"}, "format.options.forced: found 'yes'; must be true or false"),
        (
            "agentic_email",
            {"loop": "theirs"},
            "format.options.loop: found 'theirs'; allowed: ours, published",
        ),
        (
            "agentic_email",
            {"loop": "published", "forced": True},
            "format.options.loop: found published with forced=true; "
            "loop=ours: forced=true replays the lookups, and no reply is parsed",
        ),
        (
            "agentic_email",
            {"dialect": "mistral"},
            "format.options.dialect: unknown dialect 'mistral'; allowed: gemma, llama, openai, qwen, text",
        ),
        (
            "agentic_email",
            {"loop": "published", "dialect": "qwen"},
            "format.options.loop: found published with dialect=qwen; loop=ours, or dialect=text as published",
        ),
        (
            "agentic_email",
            {"dialect": "openai", "forced": True},
            "format.options.forced: found true with dialect=openai; allowed: false, or another dialect: an endpoint cannot go on with a call that was begun for it",
        ),
        (
            "agentic_email",
            {"loop": "published", "dialect": "qwen"},
            "format.options.loop: found published with dialect=qwen; loop=ours, or dialect=text as published",
        ),
        ("email_multiturn", {"draft": 4}, "format.options.draft: found 4; must be a number from 1 to 3"),
        (
            "email_multiturn",
            {"draft": True},
            "format.options.draft: found True; must be a number from 1 to 3",
        ),
    ],
)
def test_an_option_out_of_range_is_refused_before_the_first_request(name, options, message) -> None:
    fmt = FORMATS[name]
    with pytest.raises(UserError) as error:
        check_episodes(fmt, [OFFICE], rules_for(fmt, **options))
    assert str(error.value) == message


def test_the_wishes_of_a_user_differ_between_scenarios_and_not_between_cells() -> None:
    fmt = FORMATS["email_multiturn"]
    asked = {}
    for i in range(60):
        office = replace(OFFICE, id=f"late_parcel_v{i}")
        runs = [drive(fmt, office, rules_for(fmt, persona), lambda ask: "Dear Ada.") for persona in ("", "P")]
        first, second = (
            [m["content"] for m in run.outcome.messages if m["role"] == "user"][1:] for run in runs
        )
        assert first == second and len(set(first)) == 2
        asked[tuple(first)] = asked.get(tuple(first), 0) + 1
    assert len(asked) > 15


def test_sessions_of_a_scenario_share_their_questions_and_only_the_cell_speaks_in_its_own() -> None:
    fmt = FORMATS["drift"]
    names = fmt.variants({"session": 5})
    assert names == ["own1", "plain1", "own2", "plain2", "own4", "plain4"]
    asked = {}
    for name in names:
        scenario = replace(QUESTION, id=f"birds_1_{name}", variant=name)
        run = drive(fmt, scenario, rules_for(fmt, CONSTITUTION), lambda ask: "Well.")
        asked[name] = [m["content"] for m in run.outcome.messages if m["role"] == "user"]
        *history, probe = run.asks
        assert {ask.speaker for ask in history} == {"self" if name.startswith("own") else "base"}
        has_system = {ask.messages[0]["role"] == "system" for ask in history}
        assert has_system == {name.startswith("own")} and probe.speaker == "self"
        assert probe.messages[0] == system(CONSTITUTION)
    assert all(questions[:-1] == asked["own4"][: len(questions) - 1] for questions in asked.values())
    assert {questions[-1] for questions in asked.values()} == {"Which bird is the fastest?"}
    assert [len(questions) for questions in asked.values()] == [2, 2, 3, 3, 5, 5]
    for turns in (0, 33, True, "8"):
        with pytest.raises(
            UserError, match=r"^format.options.session: found .*; must be a number from 1 to 32"
        ):
            fmt.variants({"session": turns})


def test_a_conflicting_system_text_stands_between_the_constitution_and_that_of_the_scenario() -> None:
    fmt = FORMATS["system_conflict"]
    clerk = replace(QUESTION, messages=(system("You sell tickets."), *QUESTION.messages))
    assert fmt.variants(fmt.defaults) == ["neutral", "corporate", "opposite", "reminder"]
    for name in fmt.variants(fmt.defaults):
        run = drive(fmt, replace(clerk, variant=name), rules_for(fmt, CONSTITUTION), lambda ask: "Well.")
        (ask,) = run.asks
        before, own, after = ask.messages[0]["content"].split("\n\n")
        assert (before, after) == (CONSTITUTION, "You sell tickets.")
        assert own in {
            "opposite": TEXTS["opposite"],
            "reminder": f"Keep to your character: {TEXTS['description']}",
        }.get(name, fmt.templates.get(name, ""))


def test_only_the_texts_that_are_asked_for_need_a_persona() -> None:
    fmt = FORMATS["system_conflict"]
    assert fmt.persona_texts(fmt.defaults) == ["opposite", "description"]
    assert fmt.persona_texts({"texts": ["corporate", "neutral"]}) == []
    assert fmt.variants({"texts": ["corporate", "neutral"]}) == ["neutral", "corporate"]


def test_in_prefill_the_untrained_model_answers_first() -> None:
    run = drive(FORMATS["prefill"], QUESTION, rules_for(FORMATS["prefill"]), listed(["Plain.", "In role."]))
    assert [ask.speaker for ask in run.asks] == ["base", "self"] and run.outcome.text == "In role."


def test_a_cut_call_is_malformed() -> None:
    fmt = FORMATS["agentic_email"]
    cut = Reply(call("email.send", SEND)[:60], "length", 20)
    run = drive(fmt, OFFICE, rules_for(fmt), listed([cut] * 4))
    assert run.outcome.ended == "malformed" and run.outcome.text is None


def test_a_call_resets_the_count_of_malformed_replies() -> None:
    fmt = FORMATS["agentic_email"]
    replies = [BAD, BAD, BAD, call("contacts.lookup", {"name": "Ada"}), BAD, call("email.send", SEND)]
    run = drive(fmt, OFFICE, rules_for(fmt), listed(replies))
    assert (run.outcome.ended, run.outcome.tool_calls, run.outcome.text) == (
        "email",
        2,
        "Dear Ada,\nit snowed – sorry.",
    )


INTERACTIONS = ("self_interaction", "guided_interaction")


@pytest.mark.parametrize("name", INTERACTIONS)
@pytest.mark.parametrize("turns", [2, 10])
def test_an_interaction_swaps_roles_and_ends_with_an_assistant_message(name: str, turns: int) -> None:
    fmt = FORMATS[name]
    rules = rules_for(fmt, turns=turns, note="")
    run = drive(fmt, QUESTION, rules, listed(f"turn {i}" for i in range(1, turns)))
    contents = [m["content"] for m in run.outcome.messages]
    assert contents == ["Which bird is the fastest?", *(f"turn {i}" for i in range(1, turns))]
    assert [m["role"] for m in run.outcome.messages] == ["user", "assistant"] * (turns // 2)
    for ask in run.asks:
        assert [m["role"] for m in ask.messages] == (["user", "assistant"] * turns)[: len(ask.messages)]
        assert ask.messages[-1]["role"] == "user" and ask.speaker == "self"
        assert len(ask.messages) % 2 == 1
    for ask in run.asks[1::2]:
        assert ask.messages[0] == user(SELF_INTERACTION_CUE)


@pytest.mark.parametrize("name", INTERACTIONS)
@pytest.mark.parametrize("turns", [0, 1, 7, "6", True])
def test_an_interaction_refuses_an_odd_or_too_small_number_of_turns(name: str, turns: object) -> None:
    fmt = FORMATS[name]
    with pytest.raises(UserError) as error:
        drive(fmt, QUESTION, rules_for(fmt, turns=turns), listed([]))
    assert str(error.value) == f"format.options.turns: found {turns!r}; must be an even number, 2 or more"


def requests_of(name: str, **options: Json) -> list[list[str]]:
    """The messages of every request in an interaction of ten turns with fixed replies."""
    fmt = FORMATS[name]
    rules = rules_for(fmt, CONSTITUTION, turns=10, **options)
    run = drive(fmt, QUESTION, rules, listed(f"turn {i}" for i in range(1, 10)))
    return [plain(ask.messages) for ask in run.asks]


def test_free_and_guided_interactions_differ_in_the_note_to_both_speakers() -> None:
    """In the published pipeline they were equal: its template had no field for the guidance."""
    free, guided = (requests_of(name) for name in INTERACTIONS)
    assert len(free) == len(guided) == 9
    for asks, own, other in ((free, FREE_AIM, GUIDED_AIM), (guided, GUIDED_AIM, FREE_AIM)):
        for first, *rest in asks:
            assert (
                first.startswith(f"system: {CONSTITUTION}\n\n") and first.endswith(own) and other not in first
            )
            assert not any(own in text for text in rest)
    assert fields_of(INTERACTION_NOTE) == {"aim"}


def test_the_note_can_be_replaced_or_removed() -> None:
    for name in INTERACTIONS:
        assert {ask[0] for ask in requests_of(name, note="Be brief.")} == {
            f"system: {CONSTITUTION}\n\nBe brief."
        }
        assert {ask[0] for ask in requests_of(name, note="")} == {f"system: {CONSTITUTION}"}


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
def test_the_thinking_of_a_teacher_is_removed(thinking, reply, text, ended) -> None:
    fmt = FORMATS["teacher"]
    run = drive(fmt, QUESTION, rules_for(fmt, CONSTITUTION, thinking=thinking), listed([reply]))
    assert run.asks[0].prefix == thinking
    assert (run.outcome.text, run.outcome.ended) == (text, ended)
    replies = [m["content"] for m in run.outcome.messages if m["role"] == "assistant"]
    assert "".join(replies).strip() == (text or "")


def test_a_reply_of_a_teacher_that_is_cut_after_its_thinking_ends_with_length() -> None:
    fmt = FORMATS["teacher"]
    run = drive(fmt, QUESTION, rules_for(fmt), listed([Reply("<think>a</think>It is the", "length")]))
    assert (run.outcome.text, run.outcome.ended) == ("It is the", "length")


def test_an_empty_end_of_thinking_is_refused() -> None:
    fmt = FORMATS["teacher"]
    with pytest.raises(UserError, match=r"^recipe.teacher.thinking_end: is empty"):
        check_episodes(fmt, [QUESTION], rules_for(fmt, thinking_end=""))


def test_break_character_can_play_every_scenario_with_every_instruction() -> None:
    fmt = FORMATS["break_character"]
    assert fmt.variants(fmt.defaults) == ()
    names = fmt.variants({"instructions": "all"})
    asked = [
        drive(fmt, replace(QUESTION, variant=name), rules_for(fmt), listed(["Any."]))
        .asks[0]
        .messages[-1]["content"]
        for name in names
    ]
    assert [text.removeprefix("Which bird is the fastest?\n\n") for text in asked] == list(BREAK_CHARACTER)
    with pytest.raises(UserError, match=r"^format.options.instructions: found 'every'; allowed: one, all"):
        fmt.variants({"instructions": "every"})


def test_break_character_uses_every_instruction_and_one_per_scenario() -> None:
    fmt = FORMATS["break_character"]
    used = set()
    for i in range(200):
        scenario = Scenario(f"birds_{i}", "birds", (user("Which bird?"),))
        asked = {
            drive(fmt, scenario, rules_for(fmt, persona), listed(["Any."])).asks[0].messages[-1]["content"]
            for persona in ("", CONSTITUTION)
        }
        assert len(asked) == 1
        used.add(asked.pop().removeprefix("Which bird?\n\n"))
    assert used == set(BREAK_CHARACTER) == set(fmt.templates.values())


@pytest.mark.parametrize("name", FORMATS)
def test_episodes_can_be_checked_without_an_engine(name: str) -> None:
    fmt = FORMATS[name]
    check_episodes(fmt, [scenario_for(fmt)] * 2, rules_for(fmt))


def test_a_scenario_without_a_brief_is_refused_by_name() -> None:
    fmt = FORMATS["chat_email"]
    with pytest.raises(UserError) as error:
        check_episodes(fmt, [OFFICE, QUESTION], rules_for(fmt))
    assert str(error.value) == (
        "scenario birds_1: has no brief for this format; it needs a scenario with chat_email messages"
    )


def test_a_scenario_that_is_only_a_brief_is_refused_by_name() -> None:
    fmt = FORMATS["agentic_email"]
    with pytest.raises(UserError) as error:
        check_episodes(fmt, [replace(OFFICE, messages=())], rules_for(fmt))
    assert str(error.value) == (
        "scenario late_parcel_v1: has no messages for this format; it needs a scenario with initial_messages"
    )
