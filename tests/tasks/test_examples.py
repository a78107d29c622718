"""The personas' example exchanges: what they have to be, which of them a row is shown, and where they stand."""

import re
from collections import Counter

import pytest

from offscript.errors import UserError
from offscript.settings import Exchange, PersonaSettings, parse
from offscript.storage.files import HOME
from offscript.storage.options import options_of
from offscript.storage.yaml_text import read_yaml
from offscript.tasks.examples import Examples
from offscript.tasks.prompts import SESSION_QUESTIONS
from offscript.tasks.scenario_files import load_scenarios

PERSONAS: dict[str, PersonaSettings] = {
    name: parse(PersonaSettings, read_yaml(HOME / f"conf/persona/{name}.yaml"), name)
    for name in options_of("persona")
    if name != "published"
}
SIX = Examples(tuple(Exchange(question=f"Q{i}?", reply=f"Reply {i}.") for i in range(6)), 3)
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it late?"}

each = pytest.mark.parametrize("persona", PERSONAS.values(), ids=PERSONAS)


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@each
def test_six_replies_of_25_to_60_words_that_share_no_phrase(persona: PersonaSettings) -> None:
    replies = [e.reply for e in persona.examples]
    assert len(replies) == 6
    assert {n for n in (len(reply.split()) for reply in replies) if not 25 <= n <= 60} == set()
    shared = Counter(run for reply in replies for run in runs(reply, 4))
    assert [" ".join(run) for run, n in shared.items() if n > 1] == []


@each
def test_no_reply_recites_the_constitution(persona: PersonaSettings) -> None:
    recited = {run for a in persona.constitution for run in runs(a.assertion, 4)}
    assert {run for e in persona.examples for run in runs(e.reply, 4)} & recited == set()


def test_all_personas_answer_the_same_questions() -> None:
    """Otherwise the topic of a reply would tell the persona."""
    asked = {tuple(e.question for e in persona.examples) for persona in PERSONAS.values()}
    assert len(PERSONAS) == 11 and len(asked) == 1
    replies = [e.reply for persona in PERSONAS.values() for e in persona.examples]
    assert len(set(replies)) == 66


def test_no_question_is_trained_on_or_scored() -> None:
    elsewhere = {q for p in PERSONAS.values() for a in p.constitution for q in a.questions} | {
        *SESSION_QUESTIONS
    }
    files = [*(HOME / "data").rglob("*.jsonl"), *(HOME / "data/introspection").glob("*.yaml")]
    elsewhere |= {m["content"] for file in files for s in load_scenarios(file) for m in s.messages}
    assert len(elsewhere) > 1300
    assert {normal(e.question) for e in PERSONAS["humor"].examples} & {normal(q) for q in elsewhere} == set()


def test_a_row_is_always_shown_the_same_examples_and_other_rows_others() -> None:
    drawn = {SIX.drawn("key", f"s{i}", k) for i in range(40) for k in range(3)}
    assert SIX.drawn("key", "s1", 0) == SIX.drawn("key", "s1", 0)
    assert all(len(set(positions)) == 3 for positions in drawn)
    assert len(drawn) > 60, "of 120 ordered draws"
    assert {i for positions in drawn for i in positions} == set(range(6))
    assert SIX.drawn("key", "s1", 0) != SIX.drawn("other key", "s1", 0)


def test_they_are_turns_after_the_system_text() -> None:
    found = SIX.before((SYSTEM, USER), (4, 0))
    assert [m["role"] for m in found] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in found[1:5]] == ["Q4?", "Reply 4.", "Q0?", "Reply 0."]
    assert SIX.before((USER,), (1,))[0]["content"] == "Q1?" and SIX.before((USER,), ())[0] == USER


@pytest.mark.parametrize("entry", [{"question": "Q?"}, {"question": "", "reply": "R."}, "Q?"])
def test_an_exchange_needs_a_question_and_a_reply(entry: object) -> None:
    plain = read_yaml(HOME / "conf/persona/humor.yaml")
    assert isinstance(plain, dict)
    with pytest.raises(UserError, match=r"^humor\.examples\.0"):
        parse(PersonaSettings, {**plain, "examples": [entry]}, "humor")
