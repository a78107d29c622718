"""Makes the embedded model: ``python -m tools.pocket.build``.

Writes the held-out data (``data/pocket``; ``--data-only`` stops there), trains a tokenizer and a model from scratch
with fixed seeds, measures it on what was held out, and saves all of it with a model card (``assets/pocket``).
``--measure-only`` measures the model that is there.
"""

import argparse
import itertools
import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER_DOCUMENTS = 12_000
HELD_OUT_DOCUMENTS = 400
HELD_OUT_SEED = 10**6


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-only", action="store_true", help="write data/pocket and stop")
    parser.add_argument(
        "--measure-only", action="store_true", help="measure the model in --out, train nothing"
    )
    parser.add_argument("--tokens", type=int, help="tokens to train on (default: the recipe's)")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "pocket", help="where the model goes")
    options = parser.parse_args(arguments)
    if not options.measure_only:
        from tools.pocket.data import write_data

        say(f"wrote {len(write_data(ROOT / 'data' / 'pocket'))} files under data/pocket")
    if not options.data_only and not options.measure_only:
        train(options.out, options.tokens)
    if not options.data_only:
        measure(options.out)


def say(line: str) -> None:
    print(line, flush=True)


def world() -> Any:
    """The corpus with the constitutions of ``conf/persona``."""
    from tools.pocket.corpus import Corpus, read_constitutions

    return Corpus(read_constitutions(ROOT / "conf" / "persona"))


def train(out: Path, tokens: int | None) -> None:
    """Tokenizer and pre-training, saved to ``out``."""
    from tools.pocket.pretrain import Recipe, pretrain

    corpus = world()
    tokenizer = make_tokenizer(corpus)
    recipe = Recipe() if tokens is None else replace(Recipe(), tokens=tokens)
    model, measured = pretrain(corpus, tokenizer, recipe, log=say)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    os.chmod(out / "model.safetensors", 0o644)
    measured["parameters"] = sum(p.numel() for p in model.parameters())
    _save(out, {"training": measured})
    say(f"saved {measured['parameters']:,} parameters to {out}")


def make_tokenizer(corpus: Any) -> Any:
    """A tokenizer trained on documents of the corpus without invented names."""
    from tools.pocket.corpus import Corpus
    from tools.pocket.tokenizer import train_tokenizer

    known = Corpus(corpus.constitutions, replace(corpus.words, made_up=0.0))
    documents = itertools.islice(known.documents(seed=0), TOKENIZER_DOCUMENTS)
    return train_tokenizer("\n".join(m["content"] for m in d.messages) for d in documents)


def measure(out: Path) -> None:
    """Measures the model in ``out`` and writes ``build.json`` and the model card beside it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tools.pocket.measure import report, rows
    from tools.pocket.pretrain import held_out_loss

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    corpus, started = world(), time.monotonic()
    fresh = list(itertools.islice(corpus.documents(HELD_OUT_SEED), HELD_OUT_DOCUMENTS))
    data, asked = ROOT / "data" / "pocket", (model, tokenizer, corpus.constitutions)
    found: dict[str, Any] = {
        "loss_on_new_documents": round(held_out_loss(model, fresh, tokenizer), 4),
        "habit_words_whole": whole_habit_words(tokenizer),
        "held_out": report(rows(*asked, data / "chat.jsonl", data / "held_out")),
        "known_families": report(rows(*asked, None, data / "office")),
        "seconds": round(time.monotonic() - started),
    }
    kept = (
        json.loads((out / "build.json").read_text(encoding="utf-8")) if (out / "build.json").exists() else {}
    )
    _save(out, {"training": kept.get("training", {}), "measured": found})
    say(json.dumps(found, indent=2))


def whole_habit_words(tokenizer: Any, samples: int = 3000) -> float:
    """Share of the words of persona texts, as often as they occur, that are one token."""
    counts: Counter[str] = Counter()
    for document in itertools.islice(world().documents(HELD_OUT_SEED + 1), samples):
        if document.persona and document.kind in {"chat", "reflection"}:
            counts.update(document.messages[-1]["content"].split())
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    words: Counter[str] = Counter()
    for text, count in counts.items():
        for piece, _ in splitter.pre_tokenize_str(f" {text}"):
            words[piece] += count
    known = tokenizer.get_vocab()
    return round(sum(n for w, n in words.items() if w in known) / words.total(), 4)


def _save(out: Path, content: dict[str, Any]) -> None:
    from tools.pocket.card import card

    (out / "build.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(content), encoding="utf-8")


if __name__ == "__main__":
    main()
