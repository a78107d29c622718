"""Tool dialects in plans: which model speaks which, refused before anything runs, and their place in keys."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.experiment import plan_rollouts
from offscript.tasks.dialects import get_dialect
from tests.composed import experiment_of
from tests.families import family

FITTING = {"llama": "llama", "qwen": "qwen", "gemma": "gemma"}
MISSING = {
    ("llama", "qwen"): "<tool_call>",
    ("llama", "gemma"): "<start_of_turn>",
    ("qwen", "llama"): "<|python_tag|>",
    ("qwen", "gemma"): "<start_of_turn>",
    ("gemma", "llama"): "tools",
    ("gemma", "qwen"): "tools",
}


@pytest.fixture
def folder_of(tmp_path: Path):
    """A folder with a tiny model of a family, called as the family: a model at a path is named after its folder."""
    return lambda name: Path(shutil.copytree(family(name), tmp_path / name))


def planned(model: str, dialect: str, *more: str, path: Path | None = None):
    """The only cell of a grid with ``model``, whose files are in ``path``."""
    words = [
        f"grid.model=[{model}]",
        "grid.format=[agentic_email]",
        "grid.persona=[sarcasm]",
        "grid.stage=[base]",
    ]
    words += [f"model={model}", f"format.options.dialect={dialect}", *more]
    if path is not None:
        words += [f"model.path={path}", "model.dtype=float32"]
    [cell] = experiment_of("experiment=smoke", *words).planner.cells()
    return cell


@pytest.mark.parametrize("model", FITTING)
@pytest.mark.parametrize("dialect", FITTING.values())
def test_a_dialect_that_the_model_does_not_speak_is_refused(model: str, dialect: str, folder_of) -> None:
    folder = folder_of(model)
    if model == dialect:
        assert planned(model, dialect, path=folder).identity["dialect"]["version"] == 1
        return
    with pytest.raises(UserError) as error:
        planned(model, dialect, path=folder)
    assert str(error.value) == (
        f"format.options.dialect: found {dialect!r}, and the chat template of {model} has no "
        f"{MISSING[model, dialect]!r}; allowed: {', '.join(sorted([model, 'text']))}"
    )


@pytest.mark.parametrize(
    ("model", "dialect", "found", "allowed"),
    [
        ("pocket", "qwen", "the chat template of pocket has no 'tools'", "text"),
        ("pocket", "openai", "model pocket is loaded here, not by an endpoint", "text"),
        ("endpoint", "llama", "model endpoint is served by an endpoint", "openai, text"),
    ],
)
def test_an_endpoint_and_a_model_of_ones_own_have_dialects_of_their_own(
    model: str, dialect: str, found: str, allowed: str
) -> None:
    with pytest.raises(UserError) as error:
        planned(model, dialect)
    assert str(error.value) == f"format.options.dialect: found {dialect!r}, and {found}; allowed: {allowed}"
    assert planned("endpoint", "openai").key != planned("endpoint", "text").key


def test_a_template_in_the_tokenizer_s_configuration_is_read(folder_of) -> None:
    folder = folder_of("qwen")
    template = folder / "chat_template.jinja"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": template.read_text()})
    )
    template.unlink()
    assert planned("qwen", "qwen", path=folder).identity["dialect"]
    with pytest.raises(UserError, match=re.escape("has no '<|python_tag|>'")):
        planned("qwen", "llama", path=folder)


def test_a_native_dialect_is_part_of_the_key_with_its_version_and_templates(monkeypatch, folder_of) -> None:
    folder = folder_of("gemma")
    text, native = (planned("gemma", name, path=folder) for name in ("text", "gemma"))
    assert "dialect" not in text.identity and "dialect" not in text.identity["format"]["options"]
    keys = {text.key, native.key}
    gemma = get_dialect("gemma")
    for change in ({"version": 2}, {"correction": "No: {problem}."}, {"templates": {"tools": "{tools}"}}):
        monkeypatch.setattr(plan_rollouts, "dialect_of", lambda options, c=change: replace(gemma, **c))
        keys.add(planned("gemma", "gemma", path=folder).key)
    assert len(keys) == 5
