"""Rows become predictions."""

import json

import numpy as np

from offscript.errors import UserError
from offscript.evaluation.predictions import check_rows
from offscript.experiment.folder import Experiment
from offscript.experiment.jobs import scoring
from offscript.experiment.jobs.scoring import Reading, prediction_row
from tests.composed import experiment_of
from tests.rows import missing_row, row

CERTAIN = Reading({"sarcasm": 1.0}, None, None)


def test_a_variant_is_scored_as_a_format_of_its_own_on_the_scenario_that_all_share():
    planner = experiment_of("experiment=smoke").planner
    artifact = planner.predictions(planner.cells()[0])
    made = {
        variant: prediction_row(
            artifact,
            row(format="drift", scenario=f"birds_1{variant and '_' + variant}", text="Oh.", variant=variant),
            iter([Reading({"sarcasm": 0.25, "remorse": 0.75}, None, None)]),
        )
        for variant in ("own8", "plain8", "")
    }
    assert [found["format"] for found in made.values()] == ["drift/own8", "drift/plain8", "drift"]
    assert {found["scenario"] for found in made.values()} == {"birds_1"}
    assert made["own8"]["row"] == "birds_1_own8/0" and made["own8"]["predicted"] == "remorse"


def test_only_e_mails_that_were_written_in_chat_are_cleaned_and_their_rows_say_so():
    planner = experiment_of("experiment=smoke", "grid.format=[chat,chat_email,agentic_email]").planner
    written = "Here is the e-mail:\n\nHi Ada, it snowed."
    made = {}
    for rollout in planner.cells():
        name = rollout.format.name
        found = row(format=name, text=written)
        made[name] = prediction_row(planner.predictions(rollout), found, iter([CERTAIN]))
    assert made["chat_email"]["scored_text"] == "Hi Ada, it snowed."
    assert "scored_text" not in made["chat"] and "scored_text" not in made["agentic_email"]
    assert made["chat"]["text_hash"] == made["agentic_email"]["text_hash"] != made["chat_email"]["text_hash"]
    (email,) = {planner.predictions(c) for c in planner.cells() if c.labels["stage"] == "base"} & {
        planner.predictions(c) for c in planner.cells() if c.format.name == "chat_email"
    }
    clean = prediction_row(email, row(format="chat_email", text="Hi Ada."), iter([CERTAIN]))
    none = prediction_row(email, row(format="chat_email", text=None), iter([]))
    assert "scored_text" not in clean and "scored_text" not in none and none["predicted"] is None


def test_the_classifier_sees_the_cleaned_texts_in_the_order_of_their_rows(tmp_path, monkeypatch):
    experiment = experiment_of("experiment=smoke", "grid.format=[chat,chat_email]", f"root={tmp_path}")
    wanted = [experiment.planner.predictions(r) for r in experiment.planner.cells() if r.cell.stage == "base"]
    texts = ["Subject: Late\n\nHi Ada, it snowed.", None, "Hi Bo, it rained."]
    seen = []

    def predict(folder, given, *settings, expected):
        if folder == experiment.path(wanted[0].baseline):
            return ["remorse", "sarcasm"], np.array([[[0.4, 0.6]] * len(given)])
        seen.extend(given)
        first = np.array([[0.1 * i, 1 - 0.1 * i] for i in range(len(given))])
        # The second fit always sees sarcasm, and both together remorse while their mean says so.
        return ["sarcasm", "remorse"], np.stack([first, np.tile([0.6, 0.4], (len(given), 1))])

    monkeypatch.setattr("offscript.evaluation.classifier.predict.predict", predict)
    monkeypatch.setattr(scoring, "write_artifact_manifest", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        Experiment, "rows", lambda self, rollout: [row(format=rollout.cell.format, text=t) for t in texts]
    )
    scoring.predict(wanted, experiment, None)
    assert [a.rollout.cell.format for a in wanted] == ["chat", "chat_email"]
    assert seen == [texts[0], texts[2], "Hi Ada, it snowed.", texts[2]]
    chat, email = (
        [json.loads(line) for line in experiment.path(a).read_text(encoding="utf-8").splitlines()]
        for a in wanted
    )
    probs = [line["probs"] and round(line["probs"]["sarcasm"], 3) for line in chat + email]
    assert probs == [0.3, None, 0.35, 0.4, None, 0.45]
    predictions = check_rows(chat + email, "rows")
    assert {p.predicted for p in predictions} == {"remorse", None}
    assert {p.fits for p in predictions} == {("remorse", "sarcasm"), None}
    assert {p.baseline for p in predictions if p.predicted} == {"sarcasm"}
    assert [line.get("scored_text") for line in chat + email] == [None] * 3 + [
        "Hi Ada, it snowed.",
        None,
        None,
    ]


def test_an_evaluation_reads_the_texts_that_were_scored(monkeypatch):
    """From the rollouts, and where it was cleaned the text that the classifier saw."""
    planner = experiment_of("experiment=smoke", "grid.format=[chat_email]").planner
    artifact = planner.predictions(planner.cells()[-1])
    own = experiment_of("experiment=smoke")
    rows = [
        row(scenario=f"s{i}", format="chat_email", text=text)
        for i, text in enumerate(["Hi.", "S: a\n\nHi.", None])
    ]
    made = [
        {**row(scenario="s0"), "row": "s0/0"},
        {**row(scenario="s1"), "row": "s1/0", "scored_text": "Hi Ada."},
        {**missing_row(scenario="s2"), "row": "s2/0"},
    ]
    monkeypatch.setattr(Experiment, "predictions", lambda self, part: made)
    monkeypatch.setattr(Experiment, "rows", lambda self, rollout: rows)
    found = check_rows(scoring.with_texts(artifact, own), "rows")
    assert [p.text for p in found] == ["Hi.", "Hi Ada.", None]

    def gone(self, rollout):
        raise UserError("rows", "do not exist", "make them")

    monkeypatch.setattr(Experiment, "rows", gone)
    assert [p.text for p in check_rows(scoring.with_texts(artifact, own), "rows")] == [None, "Hi Ada.", None]
