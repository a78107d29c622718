"""Options of a grid, composed from their files and one composition of the changes: the same as Hydra composes each alone."""

import shutil

import pytest

from offscript import arguments, cli
from offscript.cli import GRID_GROUPS, Changes
from offscript.storage import options
from offscript.storage.files import HOME
from tests.composed import experiment_of

SOME = [
    ("model", "llama"),
    ("model", "endpoint"),
    ("persona", "remorse"),
    ("persona", "published"),
    ("stage", "distillation"),
    ("stage", "steered"),
    ("format", "chat"),
    ("format", "break_character"),
]
CHANGED = (
    "experiment=[smoke,opencharacter]",
    "fidelity=published",
    "model=qwen",
    "model.path=elsewhere",
    "model.sampling={temperature: 1e-3}",
    "model.adapters.full=released",
    "persona.description=short",
    "stage.training.hyper_parameters.lora.rank=3",
    "format.count.train=7",
)


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of ``conf/`` that a test may change, opened by Hydra."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    shutil.copytree(HOME / "conf", tmp_path / "conf")
    for module in (arguments, cli, options):
        monkeypatch.setattr(module, "HOME", tmp_path)
    options._files_of.cache_clear()
    GlobalHydra.instance().clear()
    initialize_config_dir(str(tmp_path / "conf"), version_base="1.3")
    yield tmp_path / "conf"
    options._files_of.cache_clear()
    GlobalHydra.instance().clear()


def same(changes: Changes, group: str, name: str) -> bool:
    """Whether the option is what Hydra composes, with its keys in the same order."""
    return repr(changes.compose(group, name)) == repr(changes.compose_with_hydra(group, name))


@pytest.mark.parametrize("overrides", [("experiment=paper",), CHANGED], ids=["paper", "changed"])
def test_every_group_is_composed_as_hydra_composes_it(overrides, conf, monkeypatch):
    changes = Changes("evaluate", overrides)
    assert [pair for pair in SOME if not same(changes, *pair)] == []
    monkeypatch.setattr(changes, "compose_with_hydra", None)
    assert all(changes.compose(*pair) for pair in SOME), "the short way was not taken"


@pytest.mark.parametrize(
    ("overrides", "group", "name"),
    [
        (("model.adapters=null", "model.adapters.full=released"), "model", "llama"),
        (("~model.adapters",), "model", "llama"),
        (("persona.constitution=[]", "persona.constitution.0.assertion=x"), "persona", "remorse"),
    ],
    ids=["mapping in place of null", "deleted key", "element of a list"],
)
def test_changes_that_depend_on_the_option_are_left_to_hydra(overrides, group, name, conf):
    changes = Changes("launch", overrides)

    def outcome(compose):
        try:
            return repr(compose(group, name))
        except Exception as error:
            return repr(error)

    assert outcome(changes.compose) == outcome(changes.compose_with_hydra)


@pytest.mark.parametrize(
    ("file", "text", "overrides", "group", "name"),
    [
        ("model/other.yaml", "name: other\npath: ${root}/other\n", (), "model", "other"),
        ("model/other.yaml", "defaults: [llama, _self_]\nname: other\n", (), "model", "other"),
        ("stage/other.yaml", "# @package _global_\nformat: {max_tokens: 9}\n", ("stage=other",), "format", "chat"),
        ("experiment/other.yaml", "# @package _global_\nmodel: {adapters: null}\n", ("experiment=other", "model.adapters.full=released"), "model", "llama"),
        ("experiment/other.yaml", "# @package _global_\nformat: {max_tokens: '${seed}'}\n", ("experiment=other",), "format", "chat"),
    ],
    ids=["interpolated", "defaults", "global option", "null in an experiment", "interpolated in an experiment"],
)  # fmt: skip
def test_files_that_reach_beyond_their_node_are_left_to_hydra(file, text, overrides, group, name, conf):
    (conf / file).write_text(text)
    assert same(Changes("launch", overrides), group, name)


def test_a_plan_takes_one_composition_for_the_options_of_all_groups(monkeypatch):
    import hydra

    experiment = experiment_of("experiment=demo", "seed=17")
    made, compose = [], hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *words: made.append(words) or compose(*words))
    assert experiment.planner.evaluation() and all(experiment.planner.options.persona.values())
    assert len(made) <= 1, made
    assert {group for group in GRID_GROUPS if getattr(experiment.planner.options, group)} == set(GRID_GROUPS)
