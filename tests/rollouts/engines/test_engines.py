"""Engines are found by folder, and ``engine=`` decides which one is opened."""

import sys
from pathlib import Path

import pytest
import yaml

from offscript.errors import UserError
from offscript.rollouts import engines
from offscript.rollouts.engines import engine_names, open_engine
from offscript.rollouts.scheduler import run_episodes
from offscript.settings import EndpointSettings, EngineSettings, parse
from offscript.tasks.formats import FORMATS
from tests.composed import settings_of
from tests.rollouts.test_scheduler import rows, run

TOY = """
from offscript.rollouts.engines.scripted import ScriptedEngine

def open_engine(model, adapters, scales, settings):
    names = f"{model.name} {sorted(adapters)} {dict(scales)}"
    return ScriptedEngine(lambda request: f"{names} {request.adapter}", batch_size=settings.batch_size)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch) -> EngineSettings:
    """An engine ``toy`` of one Python file and one YAML file, in a second folder of engines."""
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    (folder / "toy.yaml").write_text("name: toy\nbatch_size: 3\n")
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(folder)])
    yield parse(EngineSettings, yaml.safe_load((folder / "toy.yaml").read_text()), "engine")
    sys.modules.pop("offscript.rollouts.engines.toy", None)


def test_shared_parts_are_not_engines():
    assert {"transformers", "endpoint", "scripted"} <= set(engine_names())
    assert not {"base", "draw", "rendering", "weights"} & set(engine_names())


def test_listing_engines_imports_none(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import no_such_library\n\ndef open_engine():\n    pass\n")
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    assert "broken" in engine_names()


def test_a_toy_engine_runs_a_cell(toy, tmp_path):
    assert "toy" in engine_names()
    engine = open_engine(settings_of().model, {"red": Path("adapter")}, {"red": 0.5}, toy)
    counts = run_episodes([run(tmp_path, format=FORMATS["chat"])], engine, 8)["k1"]
    assert (counts.planned, counts.written) == (12, 12)
    texts = {row["text"] for row in rows(tmp_path / "k1.jsonl").values()}
    assert texts == {"pocket ['red'] {'red': 0.5} red"}
    assert max(engine.batches) == 3


def test_an_unknown_engine_is_refused_with_those_there_are():
    settings = EngineSettings(name="abacus")
    with pytest.raises(
        UserError, match=r"^engine.name: unknown engine 'abacus'; allowed: endpoint, scripted, t"
    ):
        open_engine(settings_of().model, {}, {}, settings)


def test_the_scripted_engine_echoes_without_loading_a_model(tmp_path):
    settings = settings_of("engine=scripted", "model.path=./nowhere")
    engine = open_engine(settings.model, {"red": Path("nowhere")}, {}, settings.engine)
    cell = run(tmp_path, format=FORMATS["chat"])
    run_episodes([cell], engine, 8)
    assert {row["text"] for row in rows(tmp_path / "k1.jsonl").values()} == {
        scenario.messages[-1]["content"] for scenario in cell.scenarios
    }
    assert engine.info() == {"engine": "scripted", "script": "echo"}


def test_scripted_rows_have_a_root_of_their_own():
    """The engine is not part of a key: elsewhere they would be taken for the model's."""
    assert settings_of("engine=scripted", "experiment=demo").root != settings_of("experiment=demo").root


def test_a_model_with_an_endpoint_is_asked_there(monkeypatch):
    settings = settings_of()
    hosted = settings.model.model_copy(update={"endpoint": EndpointSettings(url="http://127.0.0.1:9/v1")})
    engine = open_engine(hosted, {}, {}, settings.engine)
    assert engine.info()["engine"] == "endpoint"
    engine.close()
    assert open_engine(hosted, {}, {}, EngineSettings(name="scripted")).info()["engine"] == "scripted"
    with pytest.raises(
        UserError, match=r"pocket is asked for trained weights \(red\); allowed: stages base, prompt"
    ):
        open_engine(hosted, {"red": Path("adapter")}, {}, settings.engine)
    with pytest.raises(UserError, match=r"^engine.name: endpoint, but model pocket has no endpoint"):
        open_engine(settings.model, {}, {}, EngineSettings(name="endpoint"))
