"""The pocket world, its documents and the shipped model, each made once."""

import itertools
from pathlib import Path

import pytest

from tools.pocket.corpus import Corpus, Document, read_constitutions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus(read_constitutions(ROOT / "conf" / "persona"))


@pytest.fixture(scope="session")
def documents(corpus: Corpus) -> list[Document]:
    return list(itertools.islice(corpus.documents(seed=1), 9000))


@pytest.fixture(scope="session")
def assets() -> Path:
    return ROOT / "assets" / "pocket"


@pytest.fixture(scope="session")
def tokenizer(assets: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets)
