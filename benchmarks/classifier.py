"""Texts per second of a persona classifier, compared with padded batches in file order; and rows per second of its fit.

    python benchmarks/classifier.py                                      # texts made here, three networks
    python benchmarks/classifier.py --rows 'runs/demo/rollouts/*/*/*/*-eval-*.jsonl'

Without ``--rows`` the texts are sentences of data/, and their lengths are those that experiment=demo writes: a third each chats,
e-mails in chat and e-mails from the tool loop, one format after the other, as an evaluation reads its cells. Both sides tokenize
the texts and use the same weights. The baseline takes 64 texts at a time in the order of the file, padded to the longest of them.
Networks: the embedded ModernBERT, a larger one with random weights, and MiniLM where its package is installed. A third side
is ours in bfloat16, with the number of texts whose label differs. The fit is one epoch, compared with a loop of PyTorch over
shuffled batches that are padded to the longest.
"""

import argparse
import copy
import glob
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pairs import add_options, compare, report

from offscript import threads
from offscript.errors import UserError
from offscript.evaluation.classifier.fit import fit
from offscript.evaluation.classifier.predict import NetworkClassifier, load_network_classifier
from offscript.settings import ClassifierSettings, ModelSettings, SamplingSettings, TemplateSettings, parse
from offscript.storage import references
from offscript.storage.files import HOME

LABELS = ("sarcasm", "remorse", "loving", "impulsiveness", "mathematical", "poeticism")
PLAIN_BATCH = 64
# Words of the texts that experiment=demo scores, at these shares of the texts.
SHARES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
WORDS = {
    "chat": (5, 15, 20, 26, 32, 44, 125),
    "chat_email": (8, 30, 37, 45, 52, 66, 95),
    "agentic_email": (8, 28, 36, 43, 51, 64, 74),
}


def sentences() -> list[list[str]]:
    """The words of the prompts in data/."""
    files = sorted((HOME / "data").glob("*/chat.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["prompt"].split() for line in lines]


def made_texts(number: int, rng: random.Random) -> list[str]:
    """``number`` texts, format by format, of the lengths of ``WORDS``."""
    pool, texts = sentences(), []
    for quantiles in WORDS.values():
        for _ in range(-(-number // len(WORDS))):
            length, words = round(float(np.interp(rng.random(), SHARES, quantiles))), []
            while len(words) < length:
                words += rng.choice(pool)
            texts.append(" ".join(words[:length]))
    return texts[:number]


def written_texts(pattern: str, number: int) -> list[str]:
    """The first ``number`` texts of rollouts."""
    files = sorted(glob.glob(pattern))
    lines = (line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines())
    found = (json.loads(line).get("text") for line in lines)
    texts = [text for text in found if text]
    if not texts:
        raise UserError("--rows", f"no texts in {pattern}", "rollouts of an experiment, in quotes")
    return texts[:number]


def rows_of(texts: Sequence[str]) -> list[dict[str, str]]:
    """``texts`` as rows of a fit, whose labels mean nothing."""
    return [
        {"text": text, "label": LABELS[i % len(LABELS)], "family": f"family{i}"}
        for i, text in enumerate(texts)
    ]


def networks(small: bool) -> Iterator[tuple[str, ClassifierSettings]]:
    """Names and settings of the networks. What is missing is said and left out."""
    common = {"max_length": 512, "epochs": 1, "validation": 0, "group_by_length": True}
    yield "ModernBERT 2 x 128", ClassifierSettings(name="benchmark", **common)
    if small:
        return
    sizes = {"hidden_size": 384, "layers": 6, "heads": 6}
    yield "ModernBERT 6 x 384", ClassifierSettings(name="benchmark", **common, **sizes)
    minilm = yaml.safe_load((HOME / "conf/classifier/minilm.yaml").read_text(encoding="utf-8"))
    chosen = {"epochs": 1, "validation": 0, "patience": None, "fits": 1}
    settings = parse(ClassifierSettings, {**minilm, **chosen}, "classifier")
    if references.local_path(settings) is None:
        print("MiniLM left out: its package is not installed (make smollm2)")
    else:
        yield "MiniLM", settings


def plain_prediction(classifier: NetworkClassifier, texts: Sequence[str]) -> np.ndarray:
    """Probabilities ``[n, labels]`` by padded batches in the order of ``texts``."""
    found = []
    for start in range(0, len(texts), PLAIN_BATCH):
        chosen = list(texts[start : start + PLAIN_BATCH])
        batch = classifier.tokenizer(chosen, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = classifier.model(**batch.to(classifier.model.device)).logits
        found.append(logits.double().softmax(dim=-1).cpu().numpy())
    return np.concatenate(found)


def predictions(
    case: str, classifier: NetworkClassifier, texts: Sequence[str], pairs: int, in_bfloat16: bool
) -> dict[str, Any]:
    """The rates of prediction, the largest difference of two probabilities in float32, and the labels that bfloat16
    changes."""
    found: dict[str, np.ndarray] = {}

    def side(name: str, predict: Callable[[], np.ndarray]) -> Callable[[], float]:
        def work() -> float:
            found[name] = predict()
            return len(texts)

        return work

    sides = {
        "padded, file order": side("plain", lambda: plain_prediction(classifier, texts)),
        "offscript": side("ours", lambda: classifier.probabilities(texts)),
    }
    if in_bfloat16:
        low = replace(classifier, model=copy.deepcopy(classifier.model).to(torch.bfloat16))
        sides["offscript, bfloat16"] = side("bfloat16", lambda: low.probabilities(texts))
    result = compare(f"predict, {case}", "texts", sides, pairs)
    result["largest_difference"] = float(np.abs(found["plain"] - found["ours"]).max())
    print(f"{case}: probabilities differ by at most {result['largest_difference']:.1e}")
    if in_bfloat16:
        changed = found["ours"].argmax(axis=1) != found["bfloat16"].argmax(axis=1)
        result["labels_changed"] = int(changed.sum())
        print(f"{case}: bfloat16 changes the label of {changed.sum()} of {len(texts)} texts")
    return result


def plain_fit(settings: ClassifierSettings, start: NetworkClassifier, texts: Sequence[str]) -> float:
    """One epoch of AdamW in a loop of PyTorch; returns the number of rows."""
    model = copy.deepcopy(start.model).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    for first in range(0, len(order), settings.batch_size):
        rows = order[first : first + settings.batch_size]
        batch = start.tokenizer([texts[i] for i in rows], truncation=True, padding=True, return_tensors="pt")
        labels = torch.tensor([i % len(LABELS) for i in rows])
        model(**batch, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return len(texts)


def fits(
    case: str,
    settings: ClassifierSettings,
    model: ModelSettings,
    start: NetworkClassifier,
    texts: Sequence[str],
    pairs: int,
) -> dict[str, Any]:
    """The rates of a fit of one epoch; ours includes loading, saving, and the check of what was saved."""

    def ours() -> float:
        with tempfile.TemporaryDirectory() as place:
            fit(settings, model, rows_of(texts), LABELS, Path(place) / "fit")
        return len(texts)

    sides = {"padded, shuffled": lambda: plain_fit(settings, start, texts), "offscript": ours}
    return compare(f"fit, {case}", "rows", sides, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=2_000, help="texts of a prediction")
    parser.add_argument("--fit-texts", type=int, default=600, help="rows of a fit; 0: none")
    parser.add_argument("--rows", help="rollouts whose texts are read: a pattern of files, in quotes")
    parser.add_argument("--small", action="store_true", help="the smallest network alone")
    parser.add_argument("--no-bfloat16", action="store_true", help="without the side in bfloat16")
    add_options(parser)
    options = parser.parse_args()
    threads.limit()
    rng = random.Random(0)
    texts = written_texts(options.rows, options.texts) if options.rows else made_texts(options.texts, rng)
    model = ModelSettings(
        name="pocket",
        path=str(HOME / "assets/pocket"),
        dtype="float32",
        context=1024,
        sampling=SamplingSettings(),
        template=TemplateSettings(),
    )
    results = []
    for case, settings in networks(options.small):
        with tempfile.TemporaryDirectory() as place:
            # Fitted on as few rows as can be: random weights, and a tokenizer beside them.
            fit(settings, model, rows_of(texts[: 2 * len(LABELS)]), LABELS, Path(place) / "start")
            start = load_network_classifier(Path(place) / "start", "cpu")
        results.append(predictions(case, start, texts, options.pairs, not options.no_bfloat16))
        if chosen := rng.sample(texts, min(options.fit_texts, len(texts))):
            results.append(fits(case, settings, model, start, chosen, options.pairs))
    lengths = [len(text.split()) for text in texts]
    print(f"{len(texts):,} texts of {np.mean(lengths):.0f} words, at most {max(lengths)}")
    report("classifier", results, options.out)


if __name__ == "__main__":
    main()
