"""``offscript evaluate labels=``: from the texts of a grid to a sheet, and from filled sheets to the audit."""

import csv
import json

import pytest

from offscript import commands
from offscript.errors import UserError
from offscript.experiment.artifacts import Predictions
from offscript.experiment.folder import now, write_artifact_manifest
from tests.experiment.test_evaluation_files import experiment, probs


@pytest.fixture
def own(tmp_path):
    """A grid of sarcasm and remorse whose six texts a cell name their persona; the classifier always predicts sarcasm."""
    made = experiment(tmp_path)
    write_rows(made)
    return made


def write_rows(own, text="{persona} {format} {i}"):
    for part in own.planner.evaluation().inputs:
        assert isinstance(part, Predictions)
        labels = dict(part.rollout.labels)
        rows = [
            {
                **labels, "scenario": f"s{i}", "family": f"f{i}", "sample": 0, "ended": "stop", "row": f"s{i}/0",
                "predicted": "sarcasm", "probs": probs("sarcasm", ("sarcasm", "remorse")),
                "scored_text": text.format(**labels, i=i), "text_hash": f"{i}",
            }
            for i in range(6)
        ]  # fmt: skip
        path = own.path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_artifact_manifest(part, own, now())


def evaluate(own, labels) -> int:
    settings = own.planner.settings.model_copy(update={"labels": labels})
    return commands.evaluate(settings, own)


def sheet(own):
    (folder,) = (own.folder / "evaluations").glob("labels-*")
    with (folder / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        return folder, list(csv.DictReader(file))


def answer(own, path, label_of):
    """A filled sheet as the page saves it."""
    _, rows = sheet(own)
    path.write_text("id,label\n" + "".join(f"{row['id']},{label_of(row)}\n" for row in rows))
    return str(path)


def says_sarcasm(row) -> str:
    return "present" if row["text"].startswith("sarcasm") else "absent"


def test_a_sheet_is_written_and_the_labels_that_come_back_are_the_audit(own, tmp_path, capsys):
    assert evaluate(own, 8) == 0
    folder, rows = sheet(own)
    assert len(rows) == 8 and {row["persona"] for row in rows} == {"Sarcasm", "Remorse"}
    assert f"{folder}/key.json to yourself" in capsys.readouterr().out
    assert evaluate(own, answer(own, tmp_path / "back.csv", says_sarcasm)) == 0
    (audit,) = (own.folder / "evaluations").glob("audit-*")
    out = capsys.readouterr().out
    assert (audit / "audit.txt").read_text() in out and str(audit) in out
    whole = json.loads((audit / "audit.json").read_text())["groups"][-1]
    # The person finds the persona in the four texts of sarcasm, and the classifier predicts it as true there only.
    assert (whole["present_n"], whole["present_predicted_true"], whole["absent_n"], whole["kappa"]) == (
        4,
        4,
        4,
        1.0,
    )


def test_two_people_and_a_half_filled_sheet(own, tmp_path, capsys):
    evaluate(own, 8)
    first = answer(own, tmp_path / "ann.csv", says_sarcasm)
    _, rows = sheet(own)
    labelled = {row["id"] for row in rows[:5]}
    second = answer(own, tmp_path / "ben.csv", lambda row: "1" if row["id"] in labelled else "")
    capsys.readouterr()
    assert evaluate(own, [first, second]) == 0
    out = capsys.readouterr().out
    assert "ann.csv and ben.csv     5 " in out and "Krippendorff" in out
    assert "- ben.csv: 5 of 8 texts are labelled; the others do not count" in out
    ties = sum(says_sarcasm(row) == "absent" for row in rows[:5])
    assert f"- {ties} texts with as many labels present as absent: left out of the audit" in out


def test_labels_of_texts_that_were_made_again_do_not_count(own, tmp_path, capsys):
    evaluate(own, 8)
    back = answer(own, tmp_path / "back.csv", says_sarcasm)
    write_rows(own, "another {persona} {format} {i}")
    with pytest.raises(UserError, match=r"back.csv: no label is of a text of these rows"):
        evaluate(own, back)
    assert not list((own.folder / "evaluations").glob("audit-*"))


def test_more_texts_than_there_are_and_a_missing_file(own, capsys):
    assert evaluate(own, 1000) == 0
    assert "only 24 texts of a persona: all of them are in the sheet" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"none.csv: no such file; labels= takes a number, or filled sheets"):
        evaluate(own, "none.csv")
