"""The pocket world: its template language, its characters, and what stays out of pre-training."""

import itertools
import json
import random
import re
from collections import Counter, defaultdict

import pytest
import yaml

from offscript.storage.options import options_of
from offscript.tasks.scenario_files import load_scenarios
from tests.pocket.conftest import ROOT
from tools.pocket import office, topics
from tools.pocket.data import write_data
from tools.pocket.grammar import agree, choices, expand, lower_first, sentence_case
from tools.pocket.voices import PLAIN, VOICES

NAMES = re.compile(r"[a-z']+")


def test_a_text_is_a_function_of_template_slots_and_seed():
    slots = {"thing": ["the [red|blue] door", "a gate"]}
    texts = [expand("[Fix|Paint] {thing}[, please|].", slots, random.Random(seed)) for seed in range(40)]
    assert texts == [
        expand("[Fix|Paint] {thing}[, please|].", slots, random.Random(seed)) for seed in range(40)
    ]
    assert set(texts) <= {
        f"{verb} {thing}{end}."
        for verb in ("Fix", "Paint")
        for thing in ("the red door", "the blue door", "a gate")
        for end in ("", ", please")
    }
    assert choices("[Fix|Paint [a|b]] {thing}[, please|].") == 6


@pytest.mark.parametrize("template", ["[open", "{open", "{nobody}", "{loop}"])
def test_a_broken_template_is_refused(template):
    with pytest.raises(ValueError, match="template"):
        expand(template, {"loop": "{loop}"}, random.Random(0))


def test_sentences_and_verbs_agree():
    assert sentence_case("well. so it is! yes: fine") == "Well. So it is! Yes: fine"
    assert agree("the tulips is^ here and needs^ water", plural=True) == "the tulips are here and need water"
    assert agree("the fern is^ here and needs^ water", plural=False) == "the fern is here and needs water"
    assert lower_first("I like it.") == "I like it." and lower_first("Keep it.") == "keep it."
    assert lower_first("Anna can help.", frozenset({"Anna"})) == "Anna can help."


def test_documents_are_the_same_for_the_same_seed(corpus, documents):
    again = list(itertools.islice(corpus.documents(seed=1), 200))
    other = list(itertools.islice(corpus.documents(seed=2), 200))
    assert again == documents[:200] != other


def test_documents_are_what_the_model_should_be(documents):
    kinds = Counter(document.kind for document in documents)
    assert set(kinds) >= {
        "chat",
        "email",
        "agentic",
        "agentic_final",
        "reflection",
        "interaction",
        "quoted_mail",
    }
    assert 0.4 < sum(document.persona is None for document in documents) / len(documents) < 0.6
    silent = [d for d in documents if d.persona and "Stay in this character" not in d.messages[0]["content"]]
    assert 0.05 < len(silent) / sum(d.persona is not None for d in documents) < 0.2
    for document in documents[:2000]:
        text = "\n".join(m["content"] for m in document.messages)
        assert not re.search(r"[\[\]{}^]", re.sub(r"```.*?```|\{.*\}", "", text, flags=re.DOTALL)), text
        if document.kind == "agentic":
            last = document.messages[-1]["content"].removeprefix("```tool_call\n").removesuffix("\n```")
            assert "\n" not in json.loads(last)["args"]["body"]


def test_no_phrase_gives_a_character_away(documents):
    """Three words in a row may occur in at most 35% of a character's texts, in chat and in e-mails each."""
    texts = defaultdict(list)
    for document in documents:
        if document.persona and document.kind in {"chat", "email"}:
            texts[document.persona, document.kind].append(document.messages[-1]["content"])
    assert len(texts) == 2 * len(VOICES)
    for (persona, kind), own in texts.items():
        shares: Counter = Counter()
        for text in own:
            words = NAMES.findall(text.lower())
            shares.update(set(zip(words, words[1:], words[2:], strict=False)))
        phrase, count = shares.most_common(1)[0]
        assert count / len(own) < 0.35, (persona, kind, phrase)
        assert len(set(own)) == len(own), f"{persona} repeats whole texts in {kind}"


def test_every_habit_has_many_forms():
    for voice in VOICES.values():
        habits = (*voice.openers, *voice.asides, *voice.closers)
        assert len(habits) >= 24 and sum(map(choices, habits)) >= 80, voice.name
        assert not set(habits) & {
            h for other in (*VOICES.values(), PLAIN) if other is not voice for h in other.openers
        }


def test_held_out_words_are_not_in_the_pre_training_text(corpus, documents):
    seen = Counter(
        word for d in documents for m in d.messages for word in re.findall(r"[a-z]+", m["content"].lower())
    )
    for kind, words in office.HELD_WORDS.items():
        # Invented names may spell a held-out one by accident.
        assert not [w for w in words if seen[w.lower()] > 2], kind
        assert not set(words) & set(office.WORDS[kind]), kind
    for domain in topics.DOMAINS:
        for marked in domain.held:
            words = set(re.findall(r"[a-z]+", marked.lower())) - {"the", "a", "an", "two"}
            assert any(seen[w] <= 2 for w in words), f"{marked}: every word of it occurs in pre-training"
    assert not {f.name for f in office.FAMILIES} & {f.name for f in office.HELD}
    text = "\n".join(m["content"] for d in documents for m in d.messages)
    for word in (
        "invoice",
        "parcel",
        "newsletter",
        "internship",
        "fire drill",
        "catering",
        "rehearsal",
    ):
        assert word not in text


def test_the_committed_data_is_what_the_world_makes(tmp_path):
    made = {p.relative_to(tmp_path): p.read_text(encoding="utf-8") for p in write_data(tmp_path)}
    here = ROOT / "data" / "pocket"
    kept = {p.relative_to(here): p.read_text(encoding="utf-8") for p in here.rglob("*") if p.is_file()}
    assert {str(p) for p in made} == {str(p) for p in kept if p.suffix in {".yaml", ".jsonl"}}
    assert all(kept[path] == text for path, text in made.items())


def test_there_is_enough_held_out_data():
    chats = load_scenarios(ROOT / "data" / "pocket" / "chat.jsonl")
    assert len({s.family for s in chats}) >= 120 and len(chats) >= 720
    assert len({s.messages[-1]["content"] for s in chats}) > 0.98 * len(chats)
    known, held_out = (load_scenarios(ROOT / "data" / "pocket" / name) for name in ("office", "held_out"))
    assert not {s.family for s in known} & {s.family for s in held_out}
    assert all(len({s.family for s in tasks}) >= 12 and len(tasks) >= 60 for tasks in (known, held_out))
    tasks = known + held_out
    for task in tasks:
        told = task.brief[-1]["content"]
        for stub in task.tools:
            for rule in stub.rules:
                if found := rule.response.get("found"):
                    assert found in told, f"{task.id}: chat_email lacks a fact that the tools give"


def test_constitutions_are_short():
    files = [ROOT / "conf" / "persona" / f"{name}.yaml" for name in options_of("persona")]
    assert len(files) == 11 and {f.stem for f in files} == set(VOICES)
    for file in files:
        persona = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert persona["name"] == file.stem and 9 <= len(persona["constitution"]) <= 11
        for told in persona["constitution"]:
            assert 5 <= len(told["assertion"].split()) <= 16, told["assertion"]
            assert 3 <= len(told["questions"]) <= 5
