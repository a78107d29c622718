"""The persona classifier: accuracy, reproducibility, held-out families, labels by name, invalid input."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from offscript.errors import MissingInput, UserError
from offscript.evaluation.classifier.fit import REPORT, check_rows, fit, label_weights, split
from offscript.evaluation.classifier.predict import batches, load, predict
from offscript.seeds import stable_hash
from tests.evaluation.classifier import toy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def fitted(model, tmp_path_factory):
    """(folder, report, steps) of one fit on toy texts."""
    folder = tmp_path_factory.mktemp("classifiers") / "toy-12345678"
    steps = []
    report = fit(
        toy.settings(),
        model,
        toy.rows(10, 6, seed=0),
        toy.LABELS,
        folder,
        on_step=lambda step, total, logs: steps.append((step, total, logs)),
    )
    return folder, report, steps


@pytest.fixture
def altered(fitted, tmp_path):
    """Copies the fitted folder and changes its config with a given function."""

    def alter(change):
        folder = shutil.copytree(fitted[0], tmp_path / "altered")
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return alter


# ---------------------------------------------------------------- fitting


def test_held_out_texts_are_classified(fitted):
    folder, report, _ = fitted
    assert report["macro_f1"] > 0.9
    assert (
        report["n"] == 48 and report["n_train"] == 192 and report["families"] == {"train": 8, "held_out": 2}
    )
    assert np.array(report["confusion"]).sum() == report["n"] and report["labels"] == toy.LABELS
    assert report == json.loads((folder / REPORT).read_text())


def test_new_texts_are_classified(fitted):
    fresh = toy.rows(3, 20, seed=9)
    labels, (probs,) = predict(fitted[0], [r["text"] for r in fresh])
    right = [labels[i] == r["label"] for i, r in zip(probs.argmax(axis=1), fresh, strict=True)]
    assert np.mean(right) > 0.9


def test_the_best_epoch_is_kept(fitted):
    _, report, _ = fitted
    assert report["macro_f1"] == pytest.approx(max(epoch["macro_f1"] for epoch in report["epochs"]))


def test_the_folder_holds_only_the_classifier(fitted):
    folder = fitted[0]
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", REPORT}
    # The checkpoints are deleted.
    assert list(folder.parent.iterdir()) == [folder]
    assert str(folder.parent) not in "".join((folder / n).read_text() for n in names if n.endswith(".json"))


def test_every_step_is_reported(fitted):
    steps = fitted[2]
    assert [step for step, _, _ in steps] == list(range(1, 73)) and {total for _, total, _ in steps} == {72}
    assert steps[-1][2]["loss"] < steps[10][2]["loss"]


def test_equal_seeds_give_equal_classifiers(model, tmp_path):
    rows, short = toy.rows(4, 3, seed=1), {"epochs": 2}
    texts = [r["text"] for r in rows[:8]]
    probs = {}
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        fit(toy.settings(seed=seed, **short), model, rows, toy.LABELS, tmp_path / name)
        probs[name] = predict(tmp_path / name, texts)[1][0]
    assert np.array_equal(probs["first"], probs["again"])
    assert not np.allclose(probs["first"], probs["other"], atol=1e-3)


def test_without_held_out_rows_the_last_epoch_is_kept(model, tmp_path):
    one_family = [row for row in toy.rows(1, 24, seed=1)]
    settings = toy.settings(validation=0, epochs=8)
    report = fit(settings, model, one_family, toy.LABELS, tmp_path / "out")
    assert report["macro_f1"] is report["loss"] is None and report["epochs"] == []
    assert report["n"] == 0 and report["n_train"] == len(one_family)
    probs = load(tmp_path / "out").probabilities([row["text"] for row in one_family])
    true = [toy.LABELS.index(row["label"]) for row in one_family]
    assert (probs.argmax(axis=1) == true).mean() > 0.8


def test_micro_batches_give_the_classifier_of_the_whole_batch(model, tmp_path):
    rows, found, losses = toy.rows(5, 3, seed=1), [], []
    for micro in (None, 4):
        # 60 rows: the last step of an epoch has 12.
        settings = toy.settings(
            validation=0,
            dropout=0.0,
            epochs=3,
            micro_batch_size=micro,
            schedule="cosine",
            class_weights=False,
        )
        logged = {}
        out = tmp_path / str(micro)
        fit(
            settings,
            model,
            rows,
            toy.LABELS,
            out,
            on_step=lambda step, total, logs, to=logged: to.update(logs),
        )
        found.append(load(out).probabilities([row["text"] for row in rows]))
        losses.append(logged["loss"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    # Adam hides a wrong scale of the loss; the logged one shows it.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_rows_of_too_many_tokens_are_left_out_and_counted(model, tmp_path):
    rows = toy.rows(4, 3, seed=0)
    limit = 16
    # The tokenizer has one token per word and one for the full stop; begin and end are two more.
    short = [row for row in rows if len(row["text"].split()) + 3 <= limit]
    report = fit(
        toy.settings(epochs=1, validation=0, row_tokens=limit), model, rows, toy.LABELS, tmp_path / "out"
    )
    assert report["n_train"] == len(short) and report["n_too_long"] == len(rows) - len(short) > 0
    with pytest.raises(UserError, match=r"^classifier.row_tokens: 3, and every text has more"):
        fit(toy.settings(row_tokens=3), model, rows, toy.LABELS, tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch_size": 5}, "micro_batch_size 5 for batch_size 16; allowed: a divisor of it"),
        ({"validation": 0, "patience": 2}, "patience 2 with validation 0; allowed: patience=null"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        toy.settings(**changes)


def test_leftovers_of_an_interrupted_fit_are_ignored(model, tmp_path):
    work = tmp_path / ".out.work" / "checkpoint-1"
    work.mkdir(parents=True)
    (work / "trainer_state.json").write_text("{torn")
    fit(toy.settings(epochs=1), model, toy.rows(4, 2, seed=1), toy.LABELS, tmp_path / "out")
    assert (tmp_path / "out" / REPORT).exists() and not work.parent.exists()


def test_several_fits_are_averaged_and_finished_ones_are_kept(model, tmp_path):
    """A kill in the second of three fits costs that one only."""
    rows, out, texts = toy.rows(4, 3, seed=1), tmp_path / "out", ["sorry obviously", "silver dusk theorem"]
    three = toy.settings(epochs=1, fits=3)
    seen = []

    def killed(step, steps, logs):
        seen.append((step, steps))
        if step > steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(three, model, rows, toy.LABELS, out, on_step=killed)
    kept = (out / "fit0" / "model.safetensors").stat().st_mtime_ns
    report = fit(three, model, rows, toy.LABELS, out)
    assert (out / "fit0" / "model.safetensors").stat().st_mtime_ns == kept
    # Progress is that of all three.
    assert seen[0][0] == 1 and all(steps == seen[0][1] for _, steps in seen) and seen[0][1] % 3 == 0
    labels, probs = predict(out, texts)
    assert labels == toy.LABELS and probs.shape == (3, 2, 4)
    assert load(out).probabilities(texts) == pytest.approx(probs.mean(axis=0))
    alone = [predict(out / f"fit{k}", texts)[1][0] for k in range(3)]
    assert np.array_equal(probs, alone) and not np.allclose(alone[0], alone[1])
    assert [one["n"] for one in report["fits"]] == [report["n"]] * 3
    # The first fit is the classifier that one fit gives.
    fit(toy.settings(epochs=1), model, rows, toy.LABELS, tmp_path / "one")
    assert np.array_equal(predict(tmp_path / "one", texts)[1][0], alone[0])


def test_fits_with_other_labels_are_refused(model, tmp_path):
    two = toy.settings(epochs=1, fits=2)
    fit(two, model, toy.rows(4, 2, seed=1), toy.LABELS, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "fit1" / "config.json").read_text())
    config["id2label"] = {str(i): label for i, label in enumerate(reversed(toy.LABELS))}
    (tmp_path / "out" / "fit1" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"fit1: its labels \(.*\) are not those of fit0"):
        predict(tmp_path / "out", ["sorry"])


def test_a_classifier_is_refitted_for_other_labels(fitted, model, tmp_path):
    """With its own tokenizer and layer sizes, and a new head."""
    rows = toy.rows(4, 3, seed=2, labels=["remorse", "sarcasm"])
    start = toy.settings(path=str(fitted[0]), epochs=1, hidden_size=64)
    report = fit(start, model, rows, ["remorse", "sarcasm"], tmp_path / "out")
    assert load(tmp_path / "out").labels == ["remorse", "sarcasm"] == report["labels"]
    assert load(tmp_path / "out").model.config.hidden_size == 32


def test_a_tokenizer_without_special_tokens_gets_its_own(tmp_path):
    (tmp_path / "model").mkdir()
    model = toy.save_chat_model(tmp_path / "model", with_special=False)
    fit(toy.settings(epochs=1), model, toy.rows(4, 2, seed=1), toy.LABELS, tmp_path / "out")
    tokenizer = load(tmp_path / "out").tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("the report")["input_ids"]) == [
        "[CLS]",
        "the",
        "report",
        "[SEP]",
    ]


def test_texts_are_enclosed_in_cls_and_sep_and_truncated(fitted):
    tokenizer = load(fitted[0]).tokenizer
    ids = tokenizer("the report " * 100, truncation=True)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert len(tokens) == 64 and tokens[:2] == ["<s>", "the"] and tokens[-1] == "</s>"


# ---------------------------------------------------------------- families and balance


def test_families_are_not_split():
    train, held_out = split(toy.rows(20, 2, seed=0), 0.2)
    assert not {r["family"] for r in train} & {r["family"] for r in held_out}
    assert len({r["family"] for r in held_out}) == 4 and len(train) + len(held_out) == 160


def test_the_split_does_not_depend_on_the_order_of_rows():
    rows = toy.rows(20, 2, seed=0)
    held = {r["family"] for r in split(rows, 0.2)[1]}
    assert {r["family"] for r in split(rows[::-1], 0.2)[1]} == held


def test_each_side_of_the_split_has_a_family():
    for share in (0.01, 0.49):
        train, held_out = split(toy.rows(2, 1, seed=0), share)
        assert train and held_out


def test_labels_have_equal_total_weight():
    rows = [{"label": "a"}] * 30 + [{"label": "b"}] * 10
    a, b = label_weights(rows, ["a", "b"])
    assert 30 * a == pytest.approx(10 * b) and 30 * a + 10 * b == pytest.approx(40)


# ---------------------------------------------------------------- prediction


def test_results_do_not_depend_on_the_batches(fitted):
    texts = [r["text"] for r in toy.rows(4, 5, seed=5)]
    one, many = (load(fitted[0], batch_tokens=n).probabilities(texts) for n in (1, 4096))
    assert np.abs(one - many).max() < 1e-6
    assert np.abs(one.sum(axis=1) - 1).max() < 1e-12


def test_the_order_of_texts_is_kept(fitted):
    texts = [r["text"] for r in toy.rows(2, 3, seed=5)]
    classifier = load(fitted[0], batch_tokens=64)
    seen = []
    probs = classifier.probabilities(texts, on_batch=lambda done, total: seen.append((done, total)))
    assert np.abs(classifier.probabilities(texts[::-1])[::-1] - probs).max() < 1e-6
    assert len(seen) > 2 and seen == sorted(seen) and seen[-1] == (24, 24)
    assert classifier.probabilities([]).shape == (0, 4)


def test_a_batch_has_at_most_so_many_padded_tokens():
    lengths = [3, 90, 5, 40, 41, 4, 200, 3]
    found = list(batches(lengths, 100))
    # The longest first: one that is too long alone, then as many as fit with the longest of them.
    assert found == [[6], [1], [4, 3], [2, 5, 0, 7]]
    assert list(batches([], 100)) == []


def test_texts_are_tokenized_once_for_all_fits(model, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    rows, read = toy.rows(4, 3, seed=1), []
    call = PreTrainedTokenizerFast.__call__

    def counted(self, texts, **options):
        # Loading a tokenizer tries it on single texts.
        read.extend(texts if isinstance(texts, list) else [])
        return call(self, texts, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    fit(toy.settings(epochs=2, fits=2), model, rows, toy.LABELS, tmp_path / "out")
    held_out = [row["text"] for row in split(rows, 0.2)[1]]
    # Once for both fits and all epochs, and the held-out texts once for the average of the fits.
    assert Counter(read) == Counter([row["text"] for row in rows] + held_out)
    read.clear()
    predict(tmp_path / "out", ["sorry obviously", "silver dusk"])
    assert read == ["sorry obviously", "silver dusk"]


def test_labels_are_matched_by_name(fitted, altered):
    """A network with permuted outputs and id2label gives the same probability for every label."""
    from safetensors.torch import load_file, save_file

    labels = sorted(toy.LABELS, key=stable_hash)
    assert labels != toy.LABELS
    folder = altered(lambda config: config.update(id2label=dict(enumerate(labels)), label2id={}))
    tensors = load_file(folder / "model.safetensors")
    order = [toy.LABELS.index(label) for label in labels]
    tensors["classifier.weight"] = tensors["classifier.weight"][order].contiguous()
    tensors["classifier.bias"] = tensors["classifier.bias"][order].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    texts = [r["text"] for r in toy.rows(2, 2, seed=5)]
    names, (probs,) = predict(folder, texts, expected=toy.LABELS)
    before = predict(fitted[0], texts)[1][0]
    assert names == labels
    assert np.allclose(probs, before[:, order], atol=1e-7)


def test_a_classifier_may_have_more_labels_than_expected(fitted):
    assert load(fitted[0], expected=["remorse"]).labels == toy.LABELS


# ---------------------------------------------------------------- invalid input


def test_missing_labels_are_rejected(fitted, altered):
    with pytest.raises(UserError, match=r"do not fit: no loving; a classifier with a label"):
        load(fitted[0], expected=["remorse", "loving"])
    generic = altered(lambda config: config.update(id2label={i: f"LABEL_{i}" for i in range(4)}, label2id={}))
    with pytest.raises(UserError, match=r"LABEL_0.* do not fit: no sarcasm"):
        load(generic, expected=toy.LABELS)


def test_equal_labels_are_rejected(altered):
    folder = altered(lambda config: config["id2label"].update({"1": "sarcasm"}))
    with pytest.raises(UserError, match="two labels have the same name"):
        load(folder)


def test_the_error_of_a_missing_folder_names_the_command(tmp_path):
    with pytest.raises(
        MissingInput, match=r"nowhere: no classifier here; make it with: offscript classify model="
    ):
        load(tmp_path / "nowhere")


def test_a_network_without_a_head_is_rejected(altered):
    from safetensors.torch import load_file, save_file

    folder = altered(lambda config: None)
    tensors = {
        k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"2 weights are missing, e\.g\. classifier\.bias"):
        load(folder)


def test_a_layer_that_the_configuration_lacks_is_rejected(altered):
    with pytest.raises(UserError, match=r"weights are not used by the model, e\.g\. model\.layers\."):
        load(
            altered(lambda config: config.update(num_hidden_layers=1, layer_types=config["layer_types"][:1]))
        )


def test_errors_of_corrupt_folders_are_one_line(altered):
    folder = altered(lambda config: None)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text("{torn")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(folder)


def test_nan_weights_are_rejected(altered):
    from safetensors.torch import load_file, save_file

    folder = altered(lambda config: None)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="its weights give NaN"):
        predict(folder, ["the report."])


ROW = {"text": "the report.", "label": "a", "family": "f1"}


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([ROW], ["a"], "classifier labels: a; allowed: at least two"),
        ([ROW], ["a", "a"], "classifier labels: a, a; allowed: at least two"),
        ([ROW, {**ROW, "text": "  "}], ["a", "b"], r"row 2 \(family f1\): its text is empty"),
        ([ROW, {**ROW, "text": None}], ["a", "b"], r"row 2 \(family f1\): its text is empty"),
        ([{**ROW, "label": "c"}], ["a", "b"], r"row 1 .*: unknown label 'c'; allowed: a, b"),
        ([ROW], ["a", "b"], "none of label b; make rows with: offscript rollout"),
        ([], ["a", "b"], "none of label a, b"),
        ([ROW, {**ROW, "label": "b"}], ["a", "b"], r"all of one family \(f1\)"),
    ],
)
def test_invalid_rows_are_rejected(rows, labels, message):
    with pytest.raises(UserError, match=message):
        check_rows(rows, labels, 0.2)


def test_a_label_in_held_out_families_only_is_rejected(model, tmp_path):
    rows = toy.rows(2, 2, seed=0)
    held = split(rows, 0.2)[1][0]["family"]
    rows = [r for r in rows if r["label"] != "remorse" or r["family"] == held]
    with pytest.raises(UserError, match="all rows of label remorse are in the families held out"):
        fit(toy.settings(), model, rows, toy.LABELS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_incompatible_layer_sizes_are_rejected():
    with pytest.raises(ValueError, match="hidden_size 36 for 4 heads; allowed: multiples of 8"):
        toy.settings(hidden_size=36, heads=4)


def test_the_error_of_a_missing_checkpoint_is_one_line(model, tmp_path, monkeypatch):
    with pytest.raises(
        UserError,
        match=r"^classifier\.path: no folder '.*nowhere'; a folder in Hugging Face layout, or a hub id",
    ):
        fit(
            toy.settings(path=str(tmp_path / "nowhere")),
            model,
            toy.rows(4, 2, seed=0),
            toy.LABELS,
            tmp_path / "out",
        )


def test_a_diverging_loss_is_rejected(model, tmp_path):
    wild = toy.settings(epochs=1, learning_rate=1e30)
    with pytest.raises(UserError, match=r"classifier\.learning_rate: the loss is not a number"):
        fit(wild, model, toy.rows(4, 2, seed=0), toy.LABELS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
