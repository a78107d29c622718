"""The classifier of n-grams: it is fitted, saved and loaded as any other, and predicts without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from offscript.errors import UserError
from offscript.evaluation.classifier import tfidf
from offscript.evaluation.classifier.fit import REPORT, fit
from offscript.evaluation.classifier.predict import predict
from offscript.settings import ClassifierSettings, TfidfSettings, parse
from tests.composed import experiment_of
from tests.evaluation.classifier import toy


def settings(**changes) -> ClassifierSettings:
    return ClassifierSettings(name="tfidf", tfidf=TfidfSettings(**changes))


def fit_toy(folder, rows=None, labels=toy.LABELS, **changes):
    # The model is that of a network's tokenizer, which is not read.
    return fit(settings(**changes), None, rows or toy.rows(10, 6, seed=0), labels, folder)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfidf") / "tfidf-12345678"
    return folder, fit_toy(folder)


def test_held_out_and_new_texts_are_classified(fitted):
    folder, report = fitted
    assert (
        report["macro_f1"] > 0.9
        and report["n"] == 48
        and report["families"]
        == {
            "train": 8,
            "held_out": 2,
        }
    )
    assert report == json.loads((folder / REPORT).read_text())
    assert [entry["c"] for entry in report["penalties"]] == [1, 10, 100]
    assert report["macro_f1"] == max(entry["macro_f1"] for entry in report["penalties"])
    fresh = toy.rows(3, 20, seed=9)
    labels, (probs,) = predict(folder, [r["text"] for r in fresh])
    assert labels == toy.LABELS and np.allclose(probs.sum(axis=1), 1)
    assert np.mean([labels[i] == r["label"] for i, r in zip(probs.argmax(axis=1), fresh, strict=True)]) > 0.9
    assert predict(folder, [])[1].shape == (1, 0, 4)


def test_the_folder_holds_no_pickle_and_equal_rows_give_equal_bytes(fitted, tmp_path):
    again = tmp_path / "again"
    fit_toy(again)
    names = {path.name for path in fitted[0].iterdir()}
    assert names == {"tfidf.json", "model.safetensors", REPORT}
    assert all((again / name).read_bytes() == (fitted[0] / name).read_bytes() for name in names)


def test_it_predicts_without_torch(fitted):
    code = (
        "import sys, pathlib\n"
        "from offscript.evaluation.classifier.predict import predict\n"
        "labels, (probs,) = predict(pathlib.Path(sys.argv[1]), ['sorry, my fault, forgive me'])\n"
        "print(labels[probs[0].argmax()], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(fitted[0])], capture_output=True, text=True)
    assert done.stdout.split() == ["remorse", "False"], done.stderr


def test_two_labels_and_one_kind_of_n_gram(tmp_path):
    labels = toy.LABELS[:2]
    for i, changes in enumerate([{"words": 0}, {"characters": 0}]):
        report = fit_toy(tmp_path / str(i), toy.rows(10, 6, seed=0, labels=labels), labels, **changes)
        assert report["macro_f1"] > 0.9
        _, (probs,) = predict(tmp_path / str(i), ["obviously marvellous genius", "sorry I apologise"])
        assert probs[0, 0] > 0.5 > probs[1, 0]


@pytest.mark.parametrize("changes", [{}, {"characters": 0}, {"min_texts": 5}])
def test_a_part_of_a_corpus_gives_the_probabilities_of_a_fit_on_it(changes):
    rows, choice = toy.rows(6, 4, seed=3), TfidfSettings(**changes)
    texts, true = [r["text"] for r in rows], [r["label"] for r in rows]
    corpus = tfidf.Corpus(choice, texts)
    for k in range(3):
        train = [i for i in range(len(rows)) if i % 3 != k]
        others = [i for i in range(len(rows)) if i % 3 == k]
        (alone,) = tfidf.fit_each(
            choice, (10.0,), [texts[i] for i in train], [true[i] for i in train], toy.LABELS
        )
        expected = alone.probabilities([texts[i] for i in others])
        found = corpus.predict(train, [true[i] for i in train], toy.LABELS, others, 10.0)
        # Sums of a text's features are in another order.
        assert np.allclose(found, expected, rtol=1e-9, atol=0)
    with pytest.raises(UserError, match="min_texts: 5000, and no n-gram is in so many of 2 texts"):
        tfidf.Corpus(choice.model_copy(update={"min_texts": 5000}), texts).predict(
            [0, 1], true[:2], toy.LABELS, [2], 10.0
        )


@pytest.mark.parametrize("name", ["tfidf.json", "model.safetensors"])
def test_damaged_files_are_one_line(tmp_path, name):
    fit_toy(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(UserError, match=f"{name}.*delete the folder to fit it again"):
        predict(tmp_path, ["a"])


def test_weights_of_another_vocabulary_and_absent_labels_are_one_line(tmp_path):
    fit_toy(tmp_path)
    with pytest.raises(UserError, match="do not fit: no humor"):
        predict(tmp_path, ["a"], expected=["sarcasm", "humor"])
    arrays = load_file(tmp_path / "model.safetensors")
    save_file({**arrays, "weights": arrays["weights"][:, 1:].copy()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="its arrays are not those of tfidf"):
        predict(tmp_path, ["a"])


def test_texts_without_a_frequent_n_gram_are_one_line(tmp_path):
    with pytest.raises(UserError, match="min_texts: 5000, and no n-gram is in so many of 192 texts"):
        fit_toy(tmp_path / "out", min_texts=5000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": "x"}, "path with tfidf"),
        ({"fitted": {"path": "x"}}, "fitted with tfidf"),
        ({"validation": 0}, "3 values of tfidf.c with validation 0"),
        ({"tfidf": {"words": 0, "characters": 0}}, "words 0 and characters 0"),
        ({"tfidf": {"c": [10, 1]}}, "ascending order"),
        ({"tfidf": {"c": []}}, "at least 1 item"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        parse(ClassifierSettings, {"name": "tfidf", "tfidf": {}, **changes}, "classifier")


@pytest.mark.slow
def test_its_key_holds_what_its_fit_reads():
    def key(*more):
        return (
            experiment_of("experiment=smoke", "classifier=tfidf", *more)
            .planner.evaluation()
            .inputs[0]
            .inputs[0]
            .key
        )

    assert key() == key("classifier.epochs=7", "classifier.hidden_size=64")
    assert len({key(), key("classifier.tfidf.words=1"), key("classifier.validation=0.3")}) == 3
