"""Every scored format from its scenarios to its rows, on tiny models of the three families with an imported adapter."""

import json
import re
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pytest

from offscript.experiment.folder import Experiment
from offscript.experiment.planner import Planner
from offscript.experiment.runner import make
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import ModelSettings, SourceSettings
from offscript.tasks.formats import FORMATS
from offscript.tasks.messages import IMAGE_MARK
from offscript.tasks.rows import Row
from tests.composed import experiment_of
from tests.families import family, family_adapter, family_settings
from tests.rollouts.engines.test_endpoint import serve  # noqa: F401

SCORED = [name for name, fmt in FORMATS.items() if fmt.scored]
TURN = {
    "llama": r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|\Z)",
    "qwen": r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)",
    "gemma": r"<start_of_turn>(\w+)\n(.*?)(?:<end_of_turn>|\Z)",
}


def played_by(model: ModelSettings) -> list[str]:
    """The scored formats that ``model`` can be asked for."""
    return [name for name in SCORED if model.template.image_tokens or not FORMATS[name].images]


def experiment_with(model: ModelSettings, root: Path, stages: tuple[str, ...], forced: bool) -> Experiment:
    """One scenario in every scored format and in ``stages``, of ``model``, or a begun e-mail alone.

    The configuration is composed once: that takes longer than the rows.
    """
    composed = experiment_of(
        "experiment=smoke", "grid.persona=[sarcasm]", "format.count={classifier: 0, eval: 1}", "tracking=off",
        "format.options.session=2", f"grid.format=[{','.join(SCORED)}]",
    ).planner  # fmt: skip
    formats = {name: composed.options.format[name] for name in SCORED}
    names = ("agentic_email",) if forced else tuple(played_by(model))
    if forced:
        formats |= {name: formats[name].model_copy(update={"options": {"forced": True}}) for name in names}
    grid = composed.settings.grid.model_copy(
        update={"model": (model.name,), "stage": stages, "format": names}
    )
    settings = composed.settings.model_copy(update={"root": str(root), "grid": grid, "model": model})
    options = replace(composed.options, model={model.name: model}, format=formats)
    return Experiment(Planner(settings, options), ())


def in_full(tokenizer, ids: list[int]) -> str:
    """The text of a prompt with its special tokens, in the form of Qwen's tokenizer, which composes accents."""
    return normalize("NFC", tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def played(model: ModelSettings, root: Path, *stages: str) -> dict[str, list[Row]]:
    """The rows of every scored format, those of ``agentic_email`` also with begun e-mails."""
    rows: dict[str, list[Row]] = {}
    for forced in (False, True):
        experiment = experiment_with(model, root, stages, forced)
        cells = experiment.planner.cells()
        assert {r.status for r in make(cells, experiment)} <= {"ran", "reused"}
        for cell in cells:
            found = [json.loads(line) for line in experiment.path(cell).read_text().splitlines()]
            assert len(found) == cell.planned_rows > 0, cell
            assert all(row["turns"] > 0 and row["tokens_out"] > 0 for row in found), cell
            rows.setdefault(cell.cell.format, []).extend(found)
    assert list(rows) == played_by(model)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", TURN)
def test_every_format_runs_with_an_adapter_on_every_family(name, tmp_path, monkeypatch):
    requests = []

    def submit(engine, request):
        before(engine, request)
        requests.append((request, in_full(engine.tokenizer, engine._waiting[-1].prompt)))

    before = TransformersEngine.submit
    monkeypatch.setattr(TransformersEngine, "submit", submit)
    adapter = SourceSettings(path=str(family_adapter(name, 1)))
    model = family_settings(
        name, family(name), context=8192, max_reply_tokens=6, adapters={"full": adapter.model_dump()}
    )
    rows = played(model, tmp_path, "base", "full")
    ended = {row["ended"] for row in rows["agentic_email"]}
    assert {"malformed"} < ended <= {"malformed", "length", "empty"}, "free and forced"
    assert {request.adapter is None for request, _ in requests} == {True, False}
    for request, prompt in requests:
        turns = re.findall(TURN[name], prompt, flags=re.DOTALL)
        roles = ["assistant" if role == "model" else role for role, _ in turns]
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken == ["user", "assistant"] * (len(spoken) // 2), "they take turns"
        assert turns[-1][1].strip() == request.prefix.strip()
        rest = prompt
        for message in request.messages:
            text = normalize("NFC", message["content"].removeprefix(IMAGE_MARK).strip())
            assert text in rest, (request.messages, prompt)
            # A random model may reply nothing.
            rest = rest.partition(text)[2] if text else rest


@pytest.mark.slow
def test_every_format_runs_through_an_endpoint(serve, tmp_path):  # noqa: F811
    """Also a begun e-mail, which needs a server that continues a reply."""
    stub = serve()
    endpoint = {"url": stub.url, "prefill": True}
    model = family_settings("llama", Path("hosted/model"), endpoint=endpoint)
    rows = played(model, tmp_path, "base", "prompted")
    assert {row["ended"] for row in rows["agentic_email"]} == {"malformed", "email"}, "free and forced"
    begun = [body for body in stub.bodies if body.get("continue_final_message")]
    assert len(begun) == 2 and all('"tool": "email.send"' in b["messages"][-1]["content"] for b in begun)
    assert {body["messages"][-1]["role"] for body in stub.bodies if body not in begun} == {"user"}
