"""Models in one file: GGUF files are converted, zip archives unpacked, once, into the user's cache."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from offscript.errors import UserError
from offscript.models import converted
from offscript.models.loading import load_model, load_tokenizer, load_without_weights
from tests.conftest import tiny_model_settings
from tests.models.gguf_file import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "offscript" / "models"


@pytest.fixture
def file(tiny_model, tmp_path) -> Path:
    return write_gguf(tiny_model, tmp_path / "tiny.gguf")


def test_a_gguf_file_is_the_model_that_it_was_made_from(file, tiny_model):
    from_file, from_folder = tiny_model_settings(file), tiny_model_settings(tiny_model)
    text = "<|im_start|>user\nHow are you?<|im_end|>"
    ids = [load_tokenizer(model)(text)["input_ids"] for model in (from_file, from_folder)]
    assert ids[0] == ids[1]
    probe = torch.tensor([ids[0]])
    with torch.inference_mode():
        logits = [load_model(model, "cpu")(probe).logits for model in (from_file, from_folder)]
    torch.testing.assert_close(logits[0], logits[1])


def test_a_file_that_was_not_converted_yet_gives_a_model_without_weights(file, cache):
    model = load_without_weights(tiny_model_settings(file))
    assert any(cache.iterdir()) and {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_file_is_converted_once(file, cache, capsys):
    first = converted.model_files(file)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert converted.model_files(file) == first and first.parent == cache
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    out = capsys.readouterr()
    assert out.err.count("converting it") == 1 and "%|" not in out.err
    assert [p.name for p in cache.iterdir()] == [first.name]


def test_processes_that_convert_at_the_same_time_leave_the_first_folder(file, cache, monkeypatch):
    """The jobs of a grid start together, and one may already read what another finishes."""
    real, inner = converted._convert, []

    def slow(path, folder):
        if not inner:
            inner.append((converted.model_files(path) / "model.safetensors").stat().st_ino)
        real(path, folder)

    def first(path, folder):
        monkeypatch.setattr(converted, "_convert", real)
        slow(path, folder)

    monkeypatch.setattr(converted, "_convert", first)
    folder = converted.model_files(file)
    assert (folder / "model.safetensors").stat().st_ino == inner[0]
    assert [p.name for p in cache.iterdir()] == [folder.name]


def test_another_file_under_the_same_name_is_another_model(file, tiny_model, cache):
    first = converted.model_files(file)
    write_gguf(tiny_model, file, without=None)
    with open(file, "ab") as more:
        more.write(b"\0" * 64)
    os.utime(file, ns=(1, 1))
    assert converted.model_files(file) != first


def test_a_damaged_file_is_one_line_and_leaves_nothing(file, cache):
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"tiny\.gguf: cannot be loaded"):
        converted.model_files(file)
    assert not list(cache.glob("*"))


def test_a_file_that_lacks_a_weight_is_refused(tiny_model, tmp_path, cache):
    """transformers would draw it at random."""
    part = write_gguf(tiny_model, tmp_path / "part.gguf", without="blk.1.attn_v.weight")
    with pytest.raises(UserError, match="1 weights are missing"):
        converted.model_files(part)
    assert not list(cache.glob("*"))


def test_of_an_archive_only_the_files_of_a_model_are_written(tiny_model, tmp_path):
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tiny_model.iterdir():
            file.write(path, path.name)
        file.writestr("pytorch_model.bin", b"pickle")
        file.writestr("../outside.json", b"{}")
        file.writestr("1_Pooling/config.json", b"{}")
    folder = converted.model_files(archive)
    assert {p.name for p in folder.iterdir()} == {p.name for p in tiny_model.iterdir()}
    assert not (folder.parent / "outside.json").exists()


@pytest.mark.parametrize("content", [b"no archive", None], ids=["damaged", "without a model"])
def test_an_archive_without_a_model_is_refused(content, tmp_path, cache):
    archive = tmp_path / "model.zip"
    if content is None:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("readme.txt", "nothing")
    else:
        archive.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.zip: (damaged|holds no model folder)"):
        converted.model_files(archive)
    assert not list(cache.glob("*"))
