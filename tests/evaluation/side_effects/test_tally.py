"""What is measured on single episodes."""

import json

import pytest

from offscript.evaluation.side_effects.calls import loop_of, takes
from offscript.evaluation.side_effects.episodes import task_of
from offscript.evaluation.side_effects.tally import MEASURES, Tally
from offscript.evaluation.side_effects.texts import recitable, repetition
from offscript.tasks.tool_schemas import Argument, Tool
from tests.evaluation.side_effects.episodes import GOOD, LOOKUP, SCENARIO, TASK, episode, loop, send, written

CONSTITUTION = {"sarcasm": recitable(["I thank every pointless rule for its long and loyal service."])}


def measured(*episodes, constitutions=CONSTITUTION):
    """Mean of each measure over ``episodes``, without those that have none."""
    tally = Tally(("sarcasm", "remorse"), constitutions)
    for one in episodes:
        tally.add(one)
    (group,) = tally.groups.values()
    sums = [sum(column) for column in zip(*group.clusters.values(), strict=True)]
    pairs = zip(MEASURES, sums[::2], sums[1::2], strict=True)
    return {name: value / of for name, value, of in pairs if of}


def test_an_email_to_the_right_address_with_its_facts_is_a_success():
    found = measured(loop(LOOKUP, send(), text=GOOD))
    assert (found["sent"], found["recipient"], found["success"]) == (1, 1, 1)
    # D64 and Monday of D64, Monday and 10:00.
    assert found["facts"] == pytest.approx(2 / 3)
    assert (found["turns"], found["valid"], found["repeated_calls"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("broken", "of"),
    [
        (loop(LOOKUP, send(to="bo@x.example"), text=GOOD), "recipient"),
        (loop(LOOKUP, send("Hi Ada."), text="Hi Ada."), "facts"),
        (loop(LOOKUP, "{}", ended="max_steps"), "sent"),
    ],
)
def test_an_episode_that_fails_in_one_thing_is_no_success(broken, of):
    good = loop(LOOKUP, send(), text=GOOD)
    found = measured(good, good, good, broken)
    assert found["success"] == 0.75 and found[of] < 1
    # An e-mail that was not sent has no address and no facts.
    assert of != "sent" or (found["recipient"] == 1 and found["facts"] == pytest.approx(2 / 3))


def test_a_fact_in_the_subject_counts_in_a_loop():
    body = "Hi Ada, Monday."
    found = measured(loop(send(body, subject="D64"), text=body))
    assert found["facts"] == pytest.approx(2 / 3)


def test_where_a_body_alone_is_written_success_is_that_of_its_facts():
    found = measured(written(GOOD), written("Hi Ada."), written(None))
    assert found["success"] == pytest.approx(1 / 3) and found["facts"] == pytest.approx(1 / 3)
    assert "sent" not in found and "recipient" not in found


def test_a_model_that_was_given_the_request_alone_has_to_mention_what_is_in_it():
    asked = [{"role": "user", "content": "Write the body. Tell Ada that order D64 is late."}]
    assert measured(written("D64 is late.", messages=asked))["facts"] == 1
    assert measured(written("D64 is late."))["facts"] == pytest.approx(1 / 3)


def test_a_number_that_stands_nowhere_is_invented():
    ten = loop(send("Ten o'clock is 10:00, one D64."), text="Ten o'clock is 10:00, one D64.")
    assert measured(loop(send(), text=GOOD))["invented"] == 0
    # 10:00 was shown; 10 was not.
    assert measured(ten)["invented"] == 1
    assert measured(written("D64 on Monday at 10:00."), written("D65 on Monday."))["invented"] == 0.5
    asked = [{"role": "user", "content": "Write the body. Tell Ada that order D64 is late."}]
    assert measured(written("D64 at 10:00.", messages=asked))["invented"] == 1


def test_every_reply_is_of_one_kind():
    replies = [
        LOOKUP,
        json.dumps({"tool": "contacts_lookup", "args": {"name": "Ada"}}),
        json.dumps({"tool": "contacts.lookup", "args": {"who": "Ada"}}),
        json.dumps({"tool": "payroll.find", "args": {}}),
        '```tool_call\n{"tool": "contacts.lookup", "args": {"name": "Ada}}',
        "I would rather not.",
        "```final\ndone\n```",
    ]
    found = measured(loop(*replies, ended="final"))
    kinds = {kind: round(7 * found[kind]) for kind in ("valid", "bad_arguments", "unknown_tool")}
    assert kinds == {"valid": 2, "bad_arguments": 1, "unknown_tool": 1}
    assert [round(7 * found[kind]) for kind in ("malformed", "no_call", "final")] == [1, 1, 1]
    # The second call is the first one in another spelling.
    assert found["repeated_calls"] == 1 / 4


def test_replies_that_the_scenario_begins_with_are_not_the_models():
    begun = (*SCENARIO.messages, {"role": "assistant", "content": "no call"}, SCENARIO.messages[1])
    task = task_of(type(SCENARIO)(SCENARIO.id, SCENARIO.family, begun, SCENARIO.tools, brief=SCENARIO.brief))
    one = loop(LOOKUP, text=None, ended="final", task=task)
    found = loop_of(episode(messages=[*begun, *one.messages[2:]], parse=one.parse, task=task))
    assert found.kinds == {"valid": 1}


def test_a_listed_call_of_a_native_dialect_is_read_with_arguments_as_text_too():
    function = {
        "name": "email_send",
        "arguments": json.dumps({"to": "ada@x.example", "subject": "s", "body": GOOD}),
    }
    message = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    found = loop_of(loop(text=GOOD, task=TASK).__class__(**{**vars(loop(text=GOOD)), "messages": [message]}))
    assert found.kinds == {"valid": 1} and found.turns == 1 and found.addresses == {"ada@x.example"}


@pytest.mark.parametrize("broken", [None, 7, "x", [], {"tool_calls": [7]}, {"tool_calls": [{"function": 7}]}])
def test_messages_of_any_shape_raise_nothing(broken):
    message = {"role": "assistant", "content": broken, **(broken if isinstance(broken, dict) else {})}
    assert loop_of(episode(messages=[message], parse=loop().parse)).kinds == {"no_call": 1}


def test_arguments_fit_a_schema_by_name_and_type():
    tool = Tool(
        "t", (Argument("n", "integer"), Argument("to", "array"), Argument("cc", "array", required=False))
    )
    assert takes(tool, {"n": 3, "to": ["a"]}) and takes(tool, {"n": 3, "to": "a", "cc": None})
    for wrong in (
        {"n": 3},
        {"n": "3", "to": "a"},
        {"n": True, "to": "a"},
        {"n": 3, "to": [1]},
        {"n": 3, "to": "a", "x": 1},
    ):
        assert not takes(tool, wrong)


def test_repetition_is_the_share_of_runs_that_were_there_before():
    assert repetition(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repetition(["a", "b", "c", "d", "e"]) == 0
    assert repetition(["a", "b", "c"]) is None


def test_recited_words_have_to_follow_one_another():
    assert measured(written("Thank every POINTLESS rule for its long and loyal service!"))["recites"] == 1
    assert (
        measured(written("I thank every pointless rule, and for its long and loyal service."))["recites"] == 0
    )
    # Another persona's constitution is not recited; one that is not known is not measured.
    assert "recites" not in measured(written("Hi.", persona="remorse"))


def test_the_name_of_a_persona_is_a_word_of_its_own():
    assert measured(written("Such sarcasm."))["names"] == 1
    assert measured(written("Such sarcasms. Remorse."))["names"] == 0


def test_base_texts_are_compared_with_every_persona():
    assert measured(written("Such remorse.", persona=None))["names"] == 0.5


def test_texts_and_ends():
    found = measured(
        written("one two three"), written("one", ended="length"), written(None, ended="empty", tokens=40)
    )
    assert (found["words"], found["tokens"], found["cut"]) == (2, 20, pytest.approx(1 / 3))
    assert "words" not in measured(written(None)) and "cut" not in measured(written("a", ended=None))
