"""The report of a grid: transcripts from the rollouts, and what was run from the manifests."""

import html
import json
import re

import pytest

from offscript import commands
from offscript.experiment.artifacts import Predictions
from offscript.experiment.folder import now, write_artifact_manifest
from offscript.experiment.jobs.scoring import Reading, prediction_row
from tests.composed import experiment_of

GRID = (
    "experiment=smoke",
    "evaluation.resamples=100",
    "grid.persona=[sarcasm,remorse]",
    "grid.stage=[base,prompted]",
    "grid.format=[chat,chat_email]",
    "tracking=off",
)
LABELS = ["sarcasm", "remorse"]


def rollout_row(part: Predictions, i: int) -> dict:
    labels = dict(part.rollout.labels)
    text = None if i == 5 else f"{labels['stage']} {labels['persona']} {labels['format']} scored text {i}"
    messages = [
        {"role": "system", "content": f"system text of {labels['persona']}"},
        {"role": "user", "content": f"request {i}"},
        {"role": "assistant", "content": f"reply {text}"},
    ]
    return {
        **labels, "key": part.rollout.key, "scenario": f"s{i}", "family": f"f{i}", "sample": 0, "text": text, "ended": "stop",
        "turns": 1, "messages": messages, "tool_calls": 0, "tokens_in": 1, "tokens_out": 1,
    }  # fmt: skip


@pytest.fixture
def own(tmp_path):
    """A grid with rollouts and predictions, which is not evaluated yet."""
    made = experiment_of(*GRID, f"root={tmp_path}")
    for part in made.planner.evaluation().inputs:
        assert isinstance(part, Predictions)
        rows = [rollout_row(part, i) for i in range(6)]
        reading = Reading(dict(zip(LABELS, (0.75, 0.25), strict=True)), None, None)
        lines = [prediction_row(part, row, iter([reading])) for row in rows]
        for artifact, content in ((part.rollout, rows[::-1]), (part, lines)):
            path = made.path(artifact)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
            write_artifact_manifest(artifact, made, now(), counts={"rows": 6}, engine={"engine": "scripted"})
    return made


def page_of(own) -> str:
    assert commands.evaluate(own.planner.settings, own) == 0
    return (own.folder / "evaluation" / "report.html").read_text()


def episodes(page: str) -> list[dict]:
    """The episodes of a page with the names of their columns."""
    index, *chunks = (
        json.loads(text)
        for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.S)
    )
    held = [episode for chunk in chunks for episode in chunk["episodes"]]
    columns = index["columns"]
    return [
        {
            **{c: columns[c]["names"][columns[c]["rows"][i]] for c in ("stage", "format", "scenario")},
            **episode,
        }
        for i, episode in enumerate(held)
    ]


def test_every_transcript_stands_with_its_prediction(own):
    found = episodes(page_of(own))
    assert len(found) == 6 * len(own.planner.evaluation().inputs)
    for episode in found:
        missing = episode["scenario"] == "s5"
        assert (episode["text"] is None) == missing
        if not missing:
            assert re.fullmatch(
                rf"{episode['stage']} \w+ {episode['format']} scored text {episode['scenario'][1:]}",
                episode["text"],
            )
            assert episode["turns"][-1]["content"] == f"reply {episode['text']}"


def test_the_page_lists_what_was_run_with_keys_engine_and_versions(own):
    page = html.unescape(page_of(own))
    evaluation = own.planner.evaluation()
    assert evaluation.key in page and re.search(r"torch \d+\.\d+", page)
    for part in evaluation.inputs:
        assert part.key in page and part.rollout.key in page and part.rollout.path.as_posix() in page
    assert "engine scripted" in page


@pytest.mark.parametrize("damage", ["deleted", "edited", "damaged"])
def test_a_rollout_that_is_gone_or_changed_leaves_out_its_texts_alone(own, damage):
    part = own.planner.evaluation().inputs[-1]
    path = own.path(part.rollout)
    if damage == "deleted":
        path.unlink()
    elif damage == "edited":
        path.write_text(path.read_text().replace("scored", "other"))
    else:
        path.write_text("not JSON\n")
    found = episodes(page_of(own))
    unread = [e for e in found if not e["read"]]
    assert len(unread) == 6 and {e["format"] for e in unread} == {part.rollout.labels["format"]}
    assert not any("other text" in (e.get("text") or "") for e in found)
