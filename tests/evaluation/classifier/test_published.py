"""Conversion of a classifier that others fitted: labels by name, truncation, and invalid classifiers."""

import json
import os

import numpy as np
import pytest

from offscript.errors import UserError
from offscript.evaluation.classifier import predict
from offscript.evaluation.classifier.published import convert
from offscript.storage.options import options_of
from tests.evaluation.classifier import toy

# In another order and spelling than ours.
THEIRS = [
    "Poeticism",
    "loving",
    "SARCASM",
    "remorse",
    "mathematical",
    "humor",
    "Non-Chalance",
    "goodness",
    "impulsiveness",
    "misalignment",
    " sycophancy",
]
PERSONAS = [*(p for p in options_of("persona") if p != "nonchalance"), "non_chalance"]
TEXTS = ["the report obviously.", "sorry, the team lunch, my fault.", "silver moonlit river", "note " * 30]


@pytest.fixture
def released(tmp_path):
    return toy.save_classifier(tmp_path / "released", THEIRS)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def reference(folder, text):
    """Probabilities by label as transformers computes them for a single text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = network(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0]
    return {network.config.id2label[i]: p for i, p in enumerate(logits.double().softmax(-1).tolist())}


def test_labels_are_matched_by_name_and_not_by_position(released, tmp_path):
    recorded = convert(released, tmp_path / "out", PERSONAS)
    labels, (probs,) = predict.predict(tmp_path / "out", TEXTS, expected=PERSONAS)
    assert sorted(labels) == sorted(PERSONAS) and labels == recorded["labels"] != PERSONAS
    ours = {
        "Poeticism": "poeticism",
        "SARCASM": "sarcasm",
        "Non-Chalance": "non_chalance",
        " sycophancy": "sycophancy",
    }
    assert recorded["renamed"] == ours and recorded["extra"] == []
    for text, row in zip(TEXTS, probs, strict=True):
        found = dict(zip(labels, row.tolist(), strict=True))
        by_name = {ours.get(name, name): p for name, p in reference(released, text).items()}
        assert found == pytest.approx(by_name, abs=1e-6)
        by_position = dict(zip(PERSONAS, row.tolist(), strict=True))
        # Matching by position would give another label.
        assert max(by_position, key=by_position.get) != max(by_name, key=by_name.get)


def test_labels_outside_the_grid_are_kept(released, tmp_path):
    recorded = convert(released, tmp_path / "out", ["sarcasm", "loving"])
    classifier = predict.load(tmp_path / "out", expected=["sarcasm", "loving"])
    assert classifier.labels == ["Poeticism", "loving", "sarcasm", *THEIRS[3:]] == recorded["labels"]
    assert len(recorded["extra"]) == 9 and classifier.probabilities(TEXTS).sum(axis=1) == pytest.approx(1)


def test_the_folder_has_our_layout_and_the_source_is_not_modified(released, tmp_path):
    (released / "pytorch_model.bin").write_bytes(b"a second copy, pickled")
    (released / "README.md").write_text("a card")
    before = {path.name: path.read_bytes() for path in released.iterdir()}
    recorded = convert(released, tmp_path / "out", PERSONAS)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name: path.read_bytes() for path in released.iterdir()} == before
    assert os.path.samefile(tmp_path / "out" / "model.safetensors", released / "model.safetensors")
    assert (
        recorded["architecture"] == "ModernBertForSequenceClassification" and recorded["max_length"] == 8192
    )
    assert 10_000 < recorded["parameters"] < 100_000 and json.dumps(recorded)
    assert {path.name for path in tmp_path.iterdir()} == {"released", "out"}


def test_symbolic_links_are_followed(released, tmp_path):
    """A snapshot in the hub's cache holds links to blobs."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in released.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    convert(snapshot, tmp_path / "out", PERSONAS)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert np.array_equal(predict.predict(tmp_path / "out", TEXTS)[1], predict.predict(released, TEXTS)[1])


def test_long_texts_are_truncated_to_the_limit_of_the_network(tmp_path):
    """The tokenizer has no limit of its own, as many on the hub."""
    folder = toy.save_classifier(tmp_path / "released", THEIRS, max_positions=2048)
    recorded = convert(folder, tmp_path / "out", PERSONAS)
    assert recorded["max_length"] == 2048
    classifier = predict.load(tmp_path / "out")
    words = (toy.PLAIN * 200)[:3000]
    ids = classifier.tokenizer(" ".join(words), truncation=True)["input_ids"]
    assert len(ids) == 2048 and classifier.tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == [
        "[CLS]",
        "[SEP]",
    ]
    cut = " ".join(words[:2046])
    long = [" ".join(words), cut, f"{cut} silver moonlit dusk", " ".join(words[:2040])]
    probs = classifier.probabilities(long)
    assert np.abs(probs[1:3] - probs[0]).max() < 1e-6 < np.abs(probs[3] - probs[0]).max()
    assert dict(zip(classifier.labels, probs[1], strict=True))["loving"] == pytest.approx(
        reference(folder, cut)["loving"], abs=1e-6
    )


# ---------------------------------------------------------------- invalid classifiers


def error_of(folder, out, personas=("sarcasm", "loving")):
    with pytest.raises(UserError) as caught:
        convert(folder, out, personas)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{folder}: ")
    assert not out.exists() and not [p for p in out.parent.iterdir() if p.name.startswith(".")]
    return line.removeprefix(f"{folder}: ")


def test_pickled_weights_are_rejected_before_loading(released, tmp_path):
    import torch

    os.remove(released / "model.safetensors")
    torch.save({"classifier.bias": torch.zeros(11)}, released / "pytorch_model.bin")
    line = error_of(released, tmp_path / "out")
    assert (
        "holds pickled weights only (pytorch_model.bin), which can run code when loaded; convert them" in line
    )


@pytest.mark.parametrize(
    "names",
    [
        {str(i): f"LABEL_{i}" for i in range(11)},
        {str(i): str(i) for i in range(11)},
        {},
        None,
        {"1": "sarcasm"},
    ],
)
def test_labels_without_names_are_rejected(released, tmp_path, names):
    change_config(released, id2label=names)
    assert error_of(released, tmp_path / "out").startswith("its labels have no names (")


def test_a_persona_without_a_label_is_rejected(released, tmp_path):
    line = error_of(released, tmp_path / "out", ["sarcasm", "melancholy"])
    assert (
        line.startswith("its labels (Poeticism, loving, SARCASM, ")
        and "do not fit: no melancholy; a classifier with" in line
    )


def test_two_labels_of_one_persona_are_rejected(released, tmp_path):
    change_config(released, id2label={i: name for i, name in enumerate([*THEIRS[:10], "Sarcasm"])})
    assert error_of(released, tmp_path / "out").startswith("two labels for sarcasm (")


@pytest.mark.parametrize("architectures", [["ModernBertForMaskedLM"], ["LlamaForCausalLM"], None, []])
def test_another_architecture_is_rejected(released, tmp_path, architectures):
    change_config(released, architectures=architectures)
    assert "a ...ForSequenceClassification" in error_of(released, tmp_path / "out")


def test_incomplete_classifiers_are_rejected(released, tmp_path):
    from safetensors.torch import load_file, save_file

    whole = load_file(released / "model.safetensors")
    torn = {name: tensor for name, tensor in whole.items() if "layers.1" not in name}
    save_file(torn, released / "model.safetensors", metadata={"format": "pt"})
    assert "weights are missing, e.g. model.layers.1" in error_of(released, tmp_path / "out")
    save_file(
        {**whole, "classifier.bias": whole["classifier.bias"] * float("nan")},
        released / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert "its weights give NaN" in error_of(released, tmp_path / "out")
    save_file(whole, released / "model.safetensors", metadata={"format": "pt"})
    os.remove(released / "tokenizer.json")
    assert "cannot be loaded" in error_of(released, tmp_path / "out")
    (released / "config.json").write_text("{torn")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        convert(released, tmp_path / "out", ["sarcasm"])
    os.remove(released / "config.json")
    assert "no classifier here (no config.json)" in error_of(released, tmp_path / "out")
