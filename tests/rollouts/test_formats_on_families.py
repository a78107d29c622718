"""Every scored format from its scenarios to its rows, on tiny models of the three families with an imported adapter."""

import json
import re
from pathlib import Path

import pytest

from offscript.experiment.runner import make
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.tasks.formats import FORMATS
from tests.composed import experiment_of
from tests.families import family, family_adapter

SCORED = [name for name, fmt in FORMATS.items() if fmt.scored]
TURN = {
    "llama": r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|\Z)",
    "qwen": r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)",
    "gemma": r"<start_of_turn>(\w+)\n(.*?)(?:<end_of_turn>|\Z)",
}
TOKENS = 6


def cells_of(name: str, root: Path, *options: str):
    """The experiment of every scored format, with one scenario each, and its cells."""
    experiment = experiment_of(
        "experiment=smoke", f"root={root}", f"model={name}", "model.name=tiny", f"model.path={family(name)}",
        f"model.adapters.full={{path: {family_adapter(name, 1)}}}", "model.dtype=float32", "model.context=8192",
        "grid.persona=[sarcasm]", "grid.stage=[base,full]", "format.count={classifier: 0, eval: 1}",
        f"model.max_reply_tokens={TOKENS}", "tracking=off", "format.options.session=2", *options,
    )  # fmt: skip
    return experiment, experiment.planner.cells()


@pytest.mark.parametrize("name", TURN)
def test_every_format_runs_with_an_adapter_on_every_family(name, tmp_path, monkeypatch):
    requests = []

    def submit(engine, request):
        before(engine, request)
        requests.append((request, engine.tokenizer.decode(engine._queued[-1].prompt)))

    before = TransformersEngine.submit
    monkeypatch.setattr(TransformersEngine, "submit", submit)
    played = {}
    for options in (
        (f"grid.format=[{','.join(SCORED)}]",),
        ("grid.format=[agentic_email]", "format.options.forced=true"),
    ):
        experiment, cells = cells_of(name, tmp_path, *options)
        assert {r.status for r in make(cells, experiment)} <= {"ran", "reused"}
        for cell in cells:
            rows = [json.loads(line) for line in experiment.path(cell).read_text().splitlines()]
            assert len(rows) == cell.planned_rows > 0, cell
            assert all(row["turns"] > 0 and row["tokens_out"] > 0 for row in rows), cell
            played.setdefault(cell.cell.format, []).extend(rows)
    assert list(played) == SCORED
    assert {row["ended"] for row in played["agentic_email"]} == {"malformed", "length"}, "free and forced"
    assert {r.adapter is None for r, _ in requests} == {True, False}
    for request, prompt in requests:
        turns = re.findall(TURN[name], prompt, flags=re.DOTALL)
        roles = ["assistant" if role == "model" else role for role, _ in turns]
        assert ("system" in roles[1:], roles[-1]) == (False, "assistant")
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken == ["user", "assistant"] * (len(spoken) // 2), "they take turns"
        assert turns[-1][1].strip() == request.prefix.strip()
        rest = prompt
        for message in request.messages:
            text = message["content"].strip()
            assert text in rest, (request.messages, prompt)
            rest = rest.partition(text)[2]
