"""What the embedded model can do, measured on families and names held out from its pre-training.

The texts come from the library's own formats; only the sampling loop is a plain one, so that a build does not depend
on the engines. Sampling is the grid's: temperature 0.7, top-p 0.95.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.tasks.formats.agentic_email import FORMAT as AGENTIC_EMAIL
from offscript.tasks.formats.base import Ask, Format, Outcome, Reply, Rules
from offscript.tasks.formats.chat import FORMAT as CHAT
from offscript.tasks.formats.chat_email import FORMAT as CHAT_EMAIL
from offscript.tasks.prompts import constitution_system
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Scenario

SCENARIOS = 48  # a persona and format
BATCH = 64
MAX_TOKENS = 200
PLAIN = "plain"


@dataclass(frozen=True)
class Row:
    """One episode that was run for the measurement."""

    format: str
    persona: str
    scenario: Scenario
    outcome: Outcome

    @property
    def text(self) -> str:
        """The text to score, "" if the episode left none."""
        return self.outcome.text or ""


def rows(
    model: Any, tokenizer: Any, constitutions: dict[str, list[str]], chat: Path | None, tasks_in: Path
) -> list[Row]:
    """Episodes of every persona under its constitution, and of the plain model, in chat (unless ``chat`` is None) and
    in both e-mail formats on the tasks of the folder ``tasks_in``."""
    import torch

    torch.manual_seed(0)
    chats, tasks = load_scenarios(chat) if chat else [], load_scenarios(tasks_in)
    systems = {PLAIN: ""} | {persona: constitution_system(told) for persona, told in constitutions.items()}
    planned = [
        (form, persona, system, scenario)
        for form, pool in ((CHAT, chats), (CHAT_EMAIL, tasks), (AGENTIC_EMAIL, tasks))
        for scenario in random.Random(f"measure {form.name}").sample(pool, min(SCENARIOS, len(pool)))
        for persona, system in systems.items()
    ]
    outcomes = run(
        [(form, scenario, Rules(system)) for form, _, system, scenario in planned], model, tokenizer
    )
    return [Row(f.name, p, s, o) for (f, p, _, s), o in zip(planned, outcomes, strict=True)]


def run(planned: Sequence[tuple[Format, Scenario, Rules]], model: Any, tokenizer: Any) -> list[Outcome]:
    """Drives all episodes in step: every round answers everything that was asked in it."""
    episodes = [form.episode(scenario, rules) for form, scenario, rules in planned]
    outcomes: dict[int, Outcome] = {}
    asks: dict[int, Ask] = {i: next(episode) for i, episode in enumerate(episodes)}
    while asks:
        waiting = sorted(asks, key=lambda i: sum(len(m["content"]) for m in asks[i].messages))
        for start in range(0, len(waiting), BATCH):
            batch = waiting[start : start + BATCH]
            for i, reply in zip(batch, replies([asks[i] for i in batch], model, tokenizer), strict=True):
                try:
                    asks[i] = episodes[i].send(reply)
                except StopIteration as stop:
                    outcomes[i] = stop.value
                    del asks[i]
    return [outcomes[i] for i in range(len(planned))]


def replies(asks: Sequence[Ask], model: Any, tokenizer: Any) -> Iterator[Reply]:
    """One sampled reply to each ask."""
    import torch

    texts = [
        tokenizer.apply_chat_template(list(a.messages), tokenize=False, add_generation_prompt=True)
        for a in asks
    ]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        generated = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            do_sample=True,
            temperature=0.7,
            top_p=0.95,
            top_k=0,
            max_new_tokens=MAX_TOKENS,
        )
    for new in generated[:, encoded["input_ids"].shape[1] :].tolist():
        ended = tokenizer.eos_token_id in new
        said = new[: new.index(tokenizer.eos_token_id)] if ended else new
        yield Reply(
            tokenizer.decode(said, skip_special_tokens=True), "stop" if ended else "length", len(said)
        )


def report(measured: list[Row]) -> dict[str, dict[str, Any]]:
    """Per format: how many texts there are and why episodes ended, how well personas are told apart, how plain the
    plain model is, how often an e-mail names its reader."""
    result = {}
    for form in sorted({row.format for row in measured}):
        own = [row for row in measured if row.format == form]
        emitted = [row for row in own if row.text]
        result[form] = {
            "episodes": len(own),
            "emission_rate": round(len(emitted) / len(own), 4),
            "ended": dict(Counter(row.outcome.ended for row in own).most_common()),
            "unique_texts": round(len({row.text for row in emitted}) / len(emitted), 4),
            "words": round(sum(len(row.text.split()) for row in emitted) / len(emitted), 1),
            **told_apart(emitted),
        }
        if form != CHAT.name:
            named = [_reader(row.scenario) in row.text for row in emitted]
            result[form]["names_its_reader"] = round(sum(named) / len(named), 4)
    return result


def _reader(scenario: Scenario) -> str:
    """First name of the recipient of an office scenario: the contact that its tools return."""
    contacts = next(stub for stub in scenario.tools if stub.tool == "contacts.lookup")
    response = contacts.rules[0].response
    assert isinstance(response, dict)
    return str(response["name"]).split()[0]


def told_apart(emitted: list[Row]) -> dict[str, Any]:
    """Macro-F1 of a bag-of-words classifier over the personas, fitted and scored on disjoint families; and, from a
    second one that knows plain texts too, the share of plain texts taken for plain."""
    families = sorted({row.scenario.family for row in emitted})
    random.Random("measure split").shuffle(families)
    fitting = set(families[: len(families) // 2])
    personas = [row for row in emitted if row.persona != PLAIN]
    f1, by_persona = _fit_and_score(personas, fitting)
    _, with_plain = _fit_and_score(emitted, fitting)
    return {
        "macro_f1": round(f1, 4),
        "f1": {persona: round(score, 3) for persona, score in by_persona.items()},
        "plain_recall": round(_recall_of_plain(emitted, fitting), 4),
        "plain_f1": round(with_plain[PLAIN], 4),
    }


def _fitted(rows_: list[Row], fitting: set[str]) -> tuple[Any, list[Row]]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
    train = [row for row in rows_ if row.scenario.family in fitting]
    classifier.fit([row.text for row in train], [row.persona for row in train])
    return classifier, [row for row in rows_ if row.scenario.family not in fitting]


def _fit_and_score(rows_: list[Row], fitting: set[str]) -> tuple[float, dict[str, float]]:
    from sklearn.metrics import f1_score

    classifier, test = _fitted(rows_, fitting)
    labels = sorted({row.persona for row in rows_})
    predicted = classifier.predict([row.text for row in test])
    scores = f1_score([row.persona for row in test], predicted, labels=labels, average=None)
    return float(sum(scores) / len(scores)), dict(zip(labels, map(float, scores), strict=True))


def _recall_of_plain(emitted: list[Row], fitting: set[str]) -> float:
    classifier, test = _fitted(emitted, fitting)
    plain = [row.text for row in test if row.persona == PLAIN]
    return float((classifier.predict(plain) == PLAIN).mean())
