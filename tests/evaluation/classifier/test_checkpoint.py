"""Fitting from a pretrained checkpoint: layers and head, precision, early stopping, the hub, presets."""

import json
import re
import shutil

import pytest

from offscript.errors import UserError
from offscript.evaluation.classifier import predict
from offscript.evaluation.classifier.fit import fit
from offscript.experiment.planner import Planner
from offscript.storage import hashing
from tests.composed import experiment_of, settings_of
from tests.evaluation.classifier import toy
from tests.storage.test_hub import server  # noqa: F401


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return toy.save_masked_lm(tmp_path_factory.mktemp("ModernBERT-tiny"))


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def from_start(start, **changes):
    return toy.settings(path=str(start), **{"epochs": 2, **changes})


def test_only_the_label_layer_of_a_masked_language_model_is_new(start):
    """Its prediction head, which has other names in other architectures, is kept."""
    names = {"id2label": dict(enumerate(toy.LABELS)), "label2id": {}}
    network = predict.load_network(str(start), None, "classifier.path", new_head=True, **names)
    before, after = tensors(start), network.state_dict()
    new = {name for name in after if name not in before}
    assert new == {"classifier.weight", "classifier.bias"} and after["classifier.weight"].shape == (4, 32)
    assert "head.dense.weight" in before and all(
        after[name].equal(before[name]) for name in after if name not in new
    )


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"num_hidden_layers": 2}, "6 weights are not used by the model, e.g. model.layers.2."),
        ({"num_hidden_layers": 4}, "6 weights are missing, e.g. model.layers.3."),
        (
            {"intermediate_size": 32},
            "6 weights have another shape, e.g. model.layers.0.mlp.Wi.weight (96x32, the",
        ),
    ],
)
def test_the_layers_of_a_checkpoint_must_be_those_of_its_configuration(start, tmp_path, entry, found):
    """A layer of another shape would be drawn at random, as the label layer is."""
    folder = shutil.copytree(start, tmp_path / "start")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entry}))
    with pytest.raises(UserError, match=f"^classifier.path: {re.escape(found)}"):
        fit(from_start(folder), None, toy.rows(4, 2, seed=0), toy.LABELS, tmp_path / "out")


def test_a_checkpoint_is_fitted_with_its_own_tokenizer(start, tmp_path):
    report = fit(from_start(start, epochs=8), None, toy.rows(10, 6, seed=0), toy.LABELS, tmp_path / "out")
    assert report["macro_f1"] > 0.9
    classifier = predict.load(tmp_path / "out", expected=toy.LABELS)
    assert classifier.tokenizer.convert_ids_to_tokens(classifier.tokenizer("the report.")["input_ids"]) == [
        "[CLS]",
        "the",
        "report",
        ".",
        "[SEP]",
    ]
    assert classifier.model.config.architectures == ["ModernBertForSequenceClassification"]
    assert classifier.tokenizer.model_max_length == 64
    moved = [
        name
        for name, value in tensors(tmp_path / "out").items()
        if not value.equal(tensors(start).get(name, value * 0))
    ]
    # Every weight was trained.
    assert len(moved) == len(tensors(tmp_path / "out"))


def test_a_sentence_encoder_is_fitted_by_its_first_token(tmp_path):
    """all-MiniLM-L6-v2 is a BERT, whose classifier has a pooling of its own."""
    folder = toy.save_sentence_encoder(tmp_path / "MiniLM-tiny")
    settings = from_start(folder, epochs=30, pooling="cls", learning_rate=3e-3)
    report = fit(settings, None, toy.rows(10, 6, seed=0), toy.LABELS, tmp_path / "out")
    assert report["macro_f1"] > 0.9
    assert predict.load(tmp_path / "out", expected=toy.LABELS).model.config.model_type == "bert"
    with pytest.raises(
        UserError, match=r"^classifier\.pooling: found mean, and a bert is pooled by its first"
    ):
        fit(from_start(folder), None, toy.rows(10, 6, seed=0), toy.LABELS, tmp_path / "other")


def test_a_checkpoint_in_a_folder_is_known_by_its_content(start, tmp_path):
    """Other weights in the same place must not pass for the classifier that was fitted from the first."""
    folder = shutil.copytree(start, tmp_path / "start")

    def key() -> str:
        experiment = experiment_of(f"classifier.path={folder}", "grid.persona=[sarcasm,humor]")
        return experiment.planner.classifier("pocket").key

    first = key()
    moved = shutil.copytree(folder, tmp_path / "moved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "classifier_dropout": 0.5}))
    other = experiment_of(f"classifier.path={moved}", "grid.persona=[sarcasm,humor]").planner
    assert other.classifier("pocket").key == first
    hashing._folder_fingerprint.cache_clear()
    assert key() != first


def test_bfloat16_is_the_precision_of_the_weights(start, tmp_path):
    import torch

    settings = from_start(start, epochs=8, precision="bfloat16", learning_rate=5e-3)
    report = fit(settings, None, toy.rows(10, 6, seed=0), toy.LABELS, tmp_path / "out")
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {torch.bfloat16}
    # Predictions are always made in float32.
    assert predict.load(tmp_path / "out").model.dtype == torch.float32
    assert report["macro_f1"] > 0.8


def test_small_steps_are_lost_in_bfloat16_and_not_in_float32(start, tmp_path):
    """The reason for float32 weights: bfloat16 rounds steps of 1e-6 away, except for weights near 0."""
    name, moved = "model.layers.0.attn.Wqkv.weight", {}
    for precision in ("bfloat16", "float32"):
        settings = from_start(start, precision=precision, learning_rate=1e-6)
        fit(settings, None, toy.rows(4, 2, seed=0), toy.LABELS, tmp_path / precision)
        after = tensors(tmp_path / precision)[name]
        moved[precision] = (after != tensors(start)[name].to(after.dtype)).float().mean().item()
    assert moved["bfloat16"] < 0.2 and moved["float32"] > 0.9


def test_early_stopping_keeps_the_best_epoch(start, tmp_path):
    settings = from_start(start, epochs=40, patience=2)
    report = fit(settings, None, toy.rows(10, 6, seed=0), toy.LABELS, tmp_path / "out")
    scores = [epoch["macro_f1"] for epoch in report["epochs"]]
    best = scores.index(max(scores))
    assert len(scores) == best + 1 + settings.patience < 40
    assert report["macro_f1"] == pytest.approx(scores[best])


def test_all_epochs_are_run_without_patience(start, tmp_path):
    report = fit(from_start(start, epochs=5), None, toy.rows(2, 2, seed=0), toy.LABELS, tmp_path / "out")
    assert len(report["epochs"]) == 5


def test_an_invalid_loss_stops_the_fit(start, tmp_path):
    steps = []
    wild = from_start(start, epochs=30, learning_rate=1e30)
    with pytest.raises(
        UserError,
        match=r"^classifier\.learning_rate: the loss is not a number any more at step \d+; use a smaller",
    ):
        fit(
            wild,
            None,
            toy.rows(4, 2, seed=0),
            toy.LABELS,
            tmp_path / "out",
            on_step=lambda step, *_: steps.append(step),
        )
    assert steps[-1] <= 10 and list(tmp_path.iterdir()) == []


def test_a_max_length_above_the_limit_of_the_checkpoint_is_rejected(tmp_path):
    short = toy.save_masked_lm(tmp_path / "short", max_positions=48)
    with pytest.raises(
        UserError, match=r"^classifier\.max_length: 64 tokens, but .*short reads 48; allowed: up to 48$"
    ):
        fit(from_start(short), None, toy.rows(4, 2, seed=0), toy.LABELS, tmp_path / "out")


def test_pickled_weights_are_rejected(start, tmp_path):
    import shutil

    folder = shutil.copytree(start, tmp_path / "start")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"^classifier\.path: .*holds pickled weights only \(pytorch_model\.bin\)"
    ):
        fit(from_start(folder), None, toy.rows(4, 2, seed=0), toy.LABELS, tmp_path / "out")


# ---------------------------------------------------------------- from the hub


def test_a_checkpoint_is_fetched_from_the_hub_once(server, start, tmp_path):  # noqa: F811
    server.add("org/ModernBERT-tiny", start)
    fit(
        from_start("org/ModernBERT-tiny", epochs=1),
        None,
        toy.rows(4, 2, seed=0),
        toy.LABELS,
        tmp_path / "out",
    )
    assert predict.load(tmp_path / "out").labels == toy.LABELS
    server.requests.clear()
    fit(
        from_start("org/ModernBERT-tiny", epochs=1),
        None,
        toy.rows(4, 2, seed=0),
        toy.LABELS,
        tmp_path / "again",
    )
    assert server.requests == []


def test_errors_of_the_hub_are_one_line_that_names_the_setting(server, start, tmp_path):  # noqa: F811
    server.add("org/gated", start, gated=True)
    for path, message in {
        "org/gated": "org/gated is gated",
        "org/nowhere": "there is no repository org/nowhere",
    }.items():
        with pytest.raises(
            UserError, match=rf"^classifier\.path: {path}@main: {message}.*hf auth login"
        ) as caught:
            fit(from_start(path), None, toy.rows(4, 2, seed=0), toy.LABELS, tmp_path / "out")
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the presets


def test_the_published_preset_is_the_published_recipe():
    node = settings_of("classifier=modernbert_published").classifier
    assert node.path == "answerdotai/ModernBERT-base" and node.fitted is None
    assert node.stages == ("prompted", "steered", "distillation", "full")
    assert (node.epochs, node.batch_size, node.micro_batch_size) == (1, 16, 8)
    assert (node.learning_rate, node.schedule, node.warmup, node.weight_decay) == (5e-4, "cosine", 0.05, 1e-6)
    assert (node.max_length, node.row_tokens, node.precision) == (8192, 1024, "bfloat16")
    assert (node.validation, node.class_weights, node.training_seeds) == (0, False, "first")


@pytest.mark.slow
def test_it_is_fitted_on_22000_rows_of_the_first_training_seed():
    """500 prompts of each of four stages and 11 personas; further training seeds change nothing."""
    given = ("experiment=opencharacter", "classifier=modernbert_published", "grid.model=[llama]")
    planner = experiment_of(*given).planner
    classifier = planner.classifier("llama")
    assert sum(rollout.planned_rows for rollout in classifier.rollouts) == 22_000
    assert {r.cell.split for r in classifier.rollouts} == {"classifier"} and len(classifier.personas) == 11
    seeds = Planner(settings_of(*given, "grid.seed=[0,1]"), planner.options)
    assert seeds.classifier("llama").key == classifier.key
    every = Planner(settings_of(*given, "grid.seed=[0,1]", "classifier.training_seeds=all"), planner.options)
    assert sum(rollout.planned_rows for rollout in every.classifier("llama").rollouts) == 33_000


def test_the_released_classifier_is_named_by_the_slug_of_the_model():
    node = settings_of("classifier=published").classifier
    assert node.fitted.path == "maius/{slug}-pt-classifier" and node.path is None
