"""One stable seed per (cell, scenario, sample, turn), the same on every machine and Python version."""

import hashlib


def stable_hash(*parts: object, size: int = 8) -> int:
    """Unsigned integer of ``size`` bytes from the text of ``parts`` (BLAKE2b; no dependence on PYTHONHASHSEED)."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")


def row_seed(cell_key: str, scenario: str, sample: int, turn: int = 0) -> int:
    """Seed in [0, 2**63) of one reply: turn ``turn`` of sample ``sample`` of ``scenario`` in cell ``cell_key``."""
    return stable_hash(cell_key, scenario, sample, turn) >> 1


def training_seed(key: str, seed: int) -> int:
    """Seed in [0, 2**31) for a trainer, from the artifact's key and the cell's training seed."""
    return stable_hash("training", key, seed) % 2**31


def unit_hash(*parts: object) -> float:
    """Number in [0, 1) from ``parts``; used to split families without looking at the other families."""
    return stable_hash(*parts) / 2**64
