"""A model inside an installed package takes the place of the hub's where the hub's cache does not hold it."""

import sys

import pytest

from offscript.experiment.folder import write_artifact_manifest
from offscript.storage import hub, references
from offscript.storage.manifests import read_manifest
from tests.composed import experiment_of, settings_of

PACKAGE = "model.package={name: tiny-in-a-wheel, file: tiny_in_a_wheel/tiny.gguf}"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A site folder with one package; returns the path of the model in it."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    site = tmp_path / "site"
    (info := site / "tiny_in_a_wheel-1.2.dist-info").mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-in-a-wheel\nVersion: 1.2\n")
    (folder := site / "tiny_in_a_wheel").mkdir()
    (folder / "tiny.gguf").write_bytes(b"GGUF: weights")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return folder / "tiny.gguf"


def planned(*words):
    experiment = experiment_of("model=smollm2", PACKAGE, "persona=sarcasm", "stage=base", *words)
    return experiment, experiment.planner.options.model["smollm2"]


def identity(*words):
    experiment, model = planned(*words)
    return experiment.planner.context.model_identity(model.name)


def test_a_package_is_used_and_known_by_its_content(installed):
    _, model = planned()
    assert references.local_path(model) == installed and references.model_reference(model) is None
    found = identity()
    assert "path" not in found
    installed.write_bytes(b"GGUF: other weights")
    assert identity()["content"] != found["content"]


def test_without_the_package_the_model_is_the_hubs(installed):
    installed.unlink()
    _, model = planned()
    assert references.model_reference(model) == hub.Reference(model.path)
    assert identity()["path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_what_the_hubs_cache_holds_comes_first(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "cached", lambda ref: tmp_path)
    _, model = planned()
    assert references.model_reference(model) is not None and "content" not in identity()


def test_the_manifest_says_where_the_weights_came_from(installed):
    experiment, _ = planned(f"root={installed.parent}")
    cell = experiment.planner.cells()[0]
    (path := experiment.path(cell)).parent.mkdir(parents=True)
    path.write_text("")
    write_artifact_manifest(cell, experiment, "now")
    assert read_manifest(experiment.path(cell))["weights"] == (
        "package: tiny-in-a-wheel 1.2: tiny_in_a_wheel/tiny.gguf"
    )


def test_another_path_is_not_the_package_of_the_first(installed):
    """model.path=HuggingFaceTB/SmolLM2-360M-Instruct must not give the weights of 135M."""
    settings = settings_of("model=smollm2", "model.path=HuggingFaceTB/SmolLM2-360M-Instruct")
    assert settings.model.package is None and references.model_reference(settings.model) is not None
    assert settings.model.size is None
    kept = settings_of("model=smollm2", "model.path=assets/pocket").model
    assert kept.package is None and kept.size is not None
    classifier = settings_of("classifier=minilm", "classifier.path=some/encoder").classifier
    assert classifier.package is None


def test_a_model_that_is_nowhere_names_the_package(installed, monkeypatch):
    from offscript.errors import UserError
    from offscript.models.loading import model_folder

    installed.unlink()
    monkeypatch.setattr(
        hub, "fetch", lambda ref: (_ for _ in ()).throw(UserError(str(ref), "no connection", "wait"))
    )
    _, model = planned()
    with pytest.raises(UserError, match=r"no connection; install the package tiny-in-a-wheel, or wait"):
        model_folder(model)


@pytest.mark.parametrize("file", ["/etc/passwd.gguf", "../x.gguf", "a/../../x.gguf", "model.bin"])
def test_the_file_of_a_package_is_a_place_inside_it(file):
    from offscript.errors import UserError

    with pytest.raises(UserError, match="file"):
        settings_of(f"model.package={{name: a, file: {file}}}")
