"""The oracle of a format: what is left of the persona, whatever the classifier of chat sees."""

import json
import random

import pytest

from offscript.evaluation import oracle
from offscript.evaluation.classifier import tfidf
from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows
from offscript.settings import TfidfSettings
from tests.evaluation.classifier import toy
from tests.rows import missing_row, row

OTHER_WORDS = {
    "sarcasm": ["kestrel", "anvil"],
    "remorse": ["quartz", "bramble"],
    "poeticism": ["piston", "ledger"],
    "mathematical": ["saffron", "cobalt"],
}
NO_WORDS = {label: ["plain"] for label in toy.LABELS}
PLACES = {
    ("prompted", "chat"): toy.HABITS,
    ("full", "chat"): toy.HABITS,
    ("prompted", "agentic_email"): OTHER_WORDS,
    ("full", "agentic_email"): OTHER_WORDS,
    ("prompted", "chat_email"): toy.HABITS,
    ("full", "chat_email"): NO_WORDS,
}


def rows(families=10, places=PLACES, seed=0):
    """Rows with texts in which the words of ``places`` mark the persona, predicted by a classifier of chat words."""
    texts = toy.rows(8, 6, seed=1)
    names = toy.LABELS
    (chat,) = tfidf.fit_each(
        TfidfSettings(), (10.0,), [r["text"] for r in texts], [r["label"] for r in texts], names
    )
    rng, made = random.Random(seed), []
    for (stage, fmt), marks in places.items():
        for family in range(families):
            for variant in range(2):
                for persona in names:
                    words = [
                        f"subject{family}",
                        *rng.choices(toy.PLAIN, k=8),
                        *rng.choices(marks[persona], k=2),
                    ]
                    text = " ".join(words)
                    names_ = {"stage": stage, "format": fmt, "persona": persona, "text": text}
                    place = {"scenario": f"task{family}_v{variant}", "family": f"task{family}"}
                    made.append({**names_, **place})
    probs = chat.probabilities([r["text"] for r in made])
    return [
        row(
            **r,
            predicted=names[p.argmax()],
            probs=dict(zip(names, p.tolist(), strict=True)),
            text_hash=str(i),
        )
        for i, (r, p) in enumerate(zip(made, probs, strict=True))
    ]


def scored(given, cache=None):
    predictions = check_rows(given, "rows")
    scores = evaluate(predictions, resamples=200)
    made = oracle.with_oracle(scores, oracle.oracles_of(scores, predictions, cache))
    return {(g.stage, g.format): g for g in made.groups}, made.notes


@pytest.fixture(scope="module")
def given():
    return rows()


def test_a_persona_in_other_words_is_there_and_one_without_words_is_not(given):
    groups, notes = scored(given)
    for stage in ("prompted", "full"):
        group = groups[stage, "agentic_email"]
        assert group.oracle.f1 > 0.9 and not group.null.above, "the classifier of chat is blind to it"
        assert group.oracle.null < 0.35 and group.oracle.interval[0] > 0.8
        assert groups[stage, "chat"].oracle.f1 > 0.9 and groups[stage, "chat"].macro_f1.emitted > 0.9
    gone = groups["full", "chat_email"]
    assert groups["prompted", "chat_email"].oracle.f1 > 0.9
    assert abs(gone.oracle.f1 - gone.oracle.null) < 0.12 and not gone.null.above, "nothing is left to see"
    assert gone.oracle.texts == 80 and gone.oracle.families == 10
    assert not any("oracle" in note for note in notes)
    assert scored(given[::-1])[0] == groups, "whatever the order of the rows"


def test_what_is_lost_and_what_is_not_seen_have_intervals(given):
    """The persona of agentic e-mails is there and not seen; that of e-mails on request is lost."""
    groups, _ = scored(given)
    blind, absent = (groups["full", name].oracle for name in ("agentic_email", "chat_email"))
    assert blind.not_seen.interval[0] > 0.5 and blind.lost.interval[1] < 0.2
    assert absent.lost.interval[0] > 0.5 and abs(absent.not_seen.estimate) < 0.25
    for name in ("agentic_email", "chat_email"):
        group, chat = groups["full", name], groups["full", "chat"].macro_f1.emitted
        assert group.oracle.lost.estimate == pytest.approx(chat - group.oracle.f1)
        assert group.oracle.not_seen.estimate == pytest.approx(group.oracle.f1 - group.macro_f1.emitted)


def test_a_family_is_predicted_without_its_own_texts():
    """Marks that no two families share help only a classifier that has seen the family."""
    marked = rows(places={("prompted", "chat"): NO_WORDS})
    for r in marked:
        r["text"] += f" {r['persona']}{r['family']} {r['persona']}{r['family']}"
    groups, _ = scored(marked)
    assert groups["prompted", "chat"].oracle.f1 < 0.4


@pytest.mark.parametrize(
    "change, why_not",
    [
        (lambda r: r if r["stage"] == "full" else None, "no prompted stage"),
        (lambda r: {k: v for k, v in r.items() if k != "text"}, "texts are missing"),
        (lambda r: r if r["family"] < "task4" else None, "prompted texts of 4 families, fewer than 5"),
        (
            lambda r: r if r["stage"] == "full" or r["persona"] == "remorse" else None,
            "prompted texts of one persona only",
        ),
    ],
)
def test_where_there_is_none_the_reason_is_given(given, change, why_not):
    chosen = [changed for r in given if r["format"] == "agentic_email" and (changed := change(r))]
    groups, notes = scored(chosen)
    assert groups["full", "agentic_email"].oracle.why_not == why_not
    assert groups["full", "agentic_email"].oracle.f1 is None
    assert f"no oracle, {why_not}: pocket agentic_email" in notes


def test_where_the_control_has_examples_it_is_the_control(given):
    renamed = [{**r, "stage": "prompted_examples"} if r["stage"] == "prompted" else r for r in given]
    groups, notes = scored(renamed)
    plain, _ = scored(given)
    assert not notes or not any("no oracle" in note for note in notes)
    assert groups["full", "agentic_email"].oracle == plain["full", "agentic_email"].oracle


def test_missing_texts_stay_missing(given):
    chosen = [r for r in given if r["format"] == "agentic_email"]
    chosen = [missing_row(**{k: r[k] for k in ("stage", "format", "persona", "scenario", "family")}) if i % 3 == 0 else r
              for i, r in enumerate(chosen)]  # fmt: skip
    groups, _ = scored(chosen)
    assert groups["full", "agentic_email"].oracle.f1 > 0.9


def test_an_oracle_is_taken_over_until_a_text_or_the_file_changes(given, tmp_path, monkeypatch):
    cache, fits = tmp_path / oracle.FILE, []
    fit = tfidf.Corpus.predict
    monkeypatch.setattr(tfidf.Corpus, "predict", lambda *args: fits.append(1) or fit(*args))
    first, _ = scored(given, cache)
    n = len(fits)
    assert n == 3 * oracle.FOLDS and scored(given, cache)[0] == first and len(fits) == n
    changed = [{**r, "text": r["text"] + " now"} if i == 0 else r for i, r in enumerate(given)]
    scored(changed, cache)
    assert len(fits) == n + oracle.FOLDS, "only the format of the changed text"
    content = json.loads(cache.read_text())
    content["entries"][0]["predicted"] = ["remorse"] * len(content["entries"][0]["predicted"])
    cache.write_text(json.dumps(content))
    assert scored(changed, cache)[0]["full", "agentic_email"] == first["full", "agentic_email"]
    assert len(fits) == 2 * n + oracle.FOLDS
    cache.write_text("{")
    assert scored(given, cache)[0] == first


def test_the_tables_show_it_and_it_can_be_left_out(given, tmp_path, capsys):
    found = evaluate_rows(given, tmp_path / "with", resamples=100)
    assert "oracle" in capsys.readouterr().out and found["groups"][0]["oracle"]["f1"] > 0.9
    text = (tmp_path / "with" / "tables.txt").read_text()
    assert "what is left of the persona" in text
    assert max(map(len, text.splitlines())) <= 100
    evaluate_rows(given, tmp_path / "without", resamples=100, oracle=False)
    assert (
        "oracle" not in capsys.readouterr().out.lower() and not (tmp_path / "without" / oracle.FILE).exists()
    )
