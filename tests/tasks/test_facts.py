"""What an e-mail has to mention, and to whom it should go."""

from dataclasses import replace

import pytest

from offscript.errors import UserError
from offscript.tasks.facts import fact_words, facts_of, facts_of_request, share_of_facts
from offscript.tasks.recipients import addresses_of, recipients_of
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Rule, Scenario, ToolStub
from offscript.tasks.tool_calls import ToolCall

BRIEF = """\
Tell Ada Lund at Harrow that Ocean is late.
- Ada Lund is a buyer, ada@harrow.example.
- Ocean is twenty days late, because part B08 is missing. Blame nobody.
- The launch of Ocean is on Monday 12 October 2026 at 15:00 in the Elm room.
- A hotel may cost up to $1.2k.
- (#sales, Rolf): one of them asked Grand Hotel Vesuv

Policies:
- Form HR-ES-02 is due within 9 days.

Write the e-mail. Give only the body."""

SCENARIO = Scenario(
    "late_v1",
    "late",
    (
        {"role": "system", "content": "You are Orion of Maple. You write for Ruth Ek."},
        {"role": "user", "content": "Tell Ada Lund at Harrow that Ocean is late."},
    ),
    brief=({"role": "user", "content": BRIEF},),
)


def named(facts):
    return ["/".join(" ".join(sorted(fact.words)) for fact in alternatives) for alternatives in facts]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Twenty-four", {"24"}),
        ("seven", {"7"}),
        ("31,920", {"31920"}),
        ("$42k", {"42000"}),
        ("the 9th", {"the", "9"}),
        ("3 pm", {"15:00"}),
        ("3:30 p.m.", {"15:30"}),
        ("12 am", {"00:00"}),
        ("8:00", {"08:00"}),
        ("2026-10-09", {"9", "october"}),
        ("Oct", {"october"}),
        ("it may", {"it", "may"}),
        ("order 26-1187", {"order", "26-1187"}),
        ("C75's", {"c75"}),
        ("five-minute", {"5", "minute"}),
        ("0.10", {"0.1"}),
    ],
)
def test_notations_of_one_thing_are_one_word(written, words):
    assert fact_words(written) == words


def test_facts_of_a_brief():
    assert named(facts_of(SCENARIO)) == [
        "ocean", "20", "b08", "monday", "12 october", "15:00", "elm", "1200", "grand hotel vesuv"
    ]  # fmt: skip


def test_facts_of_a_request_alone_leave_out_who_it_goes_to_and_who_writes():
    assert named(facts_of_request(SCENARIO)) == ["ocean"]
    asked = replace(
        SCENARIO, messages=(SCENARIO.messages[0], {"role": "user", "content": "Ask Maple for 3 chairs."})
    )
    assert named(facts_of_request(asked)) == ["3"]


def test_facts_are_found_in_any_notation_and_half_of_a_name_is_enough():
    facts = facts_of(SCENARIO)
    email = "Hi Ada, OCEAN slips by 20 days (b08). See you on Mon, the 12th of October, 3pm, Elm room, $1,200, Hotel Vesuv."
    assert share_of_facts(facts, email) == 1
    assert share_of_facts(facts, "Hi Ada, it is late.") == 0
    assert share_of_facts(facts, "Ocean, 12 November") == pytest.approx(1 / 9)


def test_without_a_brief_the_facts_are_those_of_the_tools_responses():
    stubs = (
        ToolStub("contacts.lookup", (Rule(None, {"name": "Ada Lund", "email": "ada@harrow.example", "floor": "7"}),)),
        ToolStub("documents.search", (Rule(None, {"found": ["Order D64 is late."]}), Rule(None, {"error": "no 5"}))),
    )  # fmt: skip
    assert named(facts_of(replace(SCENARIO, brief=(), tools=stubs))) == ["ocean", "d64"]


def test_listed_facts_and_recipients_replace_the_rules(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "id: a\ninitial_messages: [{role: user, content: Write to Bo.}]\n"
        "facts: ['2 November', [strike, carrier]]\nrecipients: [Bo@x.example]\n"
    )
    (scenario,) = load_scenarios(path)
    assert named(facts_of(scenario)) == ["2 november", "strike/carrier"]
    assert share_of_facts(facts_of(scenario), "The carrier comes on 2 December") == 0.5
    assert recipients_of(scenario) == {"bo@x.example"}


@pytest.mark.parametrize(
    ("line", "found"),
    [("facts: ['!?']", "found '!?'"), ("recipients: [Bo]", "found 'Bo'"), ("facts: [[]]", "facts")],
)
def test_facts_and_recipients_that_cannot_be_met_are_refused(tmp_path, line, found):
    path = tmp_path / "a.yaml"
    path.write_text(f"id: a\ninitial_messages: [{{role: user, content: Hi}}]\n{line}\n")
    with pytest.raises(UserError, match=r"a\.yaml") as error:
        load_scenarios(path)
    assert found in str(error.value)


def people(*pairs):
    rules = tuple(Rule({"name": "*"}, {"name": name, "email": address}) for name, address in pairs)
    return replace(SCENARIO, tools=(ToolStub("contacts.lookup", rules),), brief=())


def test_the_recipient_is_whom_the_request_names():
    both = people(("Ada Lund", "Ada@harrow.example"), ("Ada Berg", "berg@maple.example"))
    assert recipients_of(both) == {"ada@harrow.example"}
    first_name = people(("Ada Berg", "berg@maple.example"), ("Bo Falk", "bo@maple.example"))
    assert recipients_of(first_name) == {"berg@maple.example"}
    unnamed = people(("Bo Falk", "bo@maple.example"), ("Cy Dahl", "cy@maple.example"))
    assert recipients_of(unnamed) == {"bo@maple.example", "cy@maple.example"}


def test_the_writer_is_no_recipient():
    system = {"role": "system", "content": "Mail of the user comes from Ada@harrow.example."}
    own = replace(
        people(("Ada Lund", "ada@harrow.example"), ("Bo Falk", "bo@x.example")),
        messages=(system, SCENARIO.messages[1]),
    )
    assert recipients_of(own) == {"bo@x.example"}
    assert recipients_of(people(("Ruth Ek", "ruth@x.example"), ("Bo Falk", "bo@x.example"))) == {
        "bo@x.example"
    }


def test_recipients_of_a_brief_alone():
    assert recipients_of(SCENARIO) == {"ada@harrow.example"}


@pytest.mark.parametrize(
    "args",
    [
        {"to": "Ada@Harrow.example"},
        {"to": ["bo@x.example", "Ada Lund <ada@harrow.example>"]},
        {"recipients": [{"email": "ada@harrow.example"}]},
        {"to": "", "recipient": "ada@harrow.example, bo@x.example"},
    ],
)
def test_addresses_of_a_call_in_the_ways_in_which_models_write_them(args):
    assert "ada@harrow.example" in addresses_of(ToolCall("email.send", args))


def test_a_call_to_a_name_has_no_address():
    assert addresses_of(ToolCall("email.send", {"to": "Ada Lund"})) == frozenset()
    assert addresses_of(ToolCall("email.send", {"to": None})) == frozenset()
