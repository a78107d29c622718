"""Prediction rows of a small synthetic grid."""

from typing import Any

import numpy as np

PERSONAS = ("sarcasm", "humor", "remorse")
ACCURACY = {
    ("prompted", "chat"): 0.9,
    ("prompted", "chat_email"): 0.8,
    ("prompted", "agentic_email"): 0.7,
    ("distillation", "chat"): 0.85,
    ("distillation", "chat_email"): 0.5,
    ("distillation", "agentic_email"): 0.3,
    ("full", "chat"): 0.95,
    ("full", "chat_email"): 0.85,
    ("full", "agentic_email"): 0.4,
}


def probs(predicted: str, labels=PERSONAS) -> dict[str, float]:
    return {label: 0.7 if label == predicted else 0.3 / (len(labels) - 1) for label in labels}


def row(**changes: Any) -> dict[str, Any]:
    """A complete prediction row with ``changes``; ``probs`` follow ``predicted`` unless they are given."""
    values = {
        "key": "k",
        "row": "s1/0",
        "model": "pocket",
        "stage": "full",
        "format": "chat",
        "split": "eval",
        "seed": 0,
        "scenario": "s1",
        "family": "s",
        "sample": 0,
        "persona": "sarcasm",
        "predicted": "sarcasm",
        "ended": "reply",
        "text_hash": "0123456789abcdef",
        **changes,
    }
    if "probs" not in changes:
        values["probs"] = probs(values["predicted"]) if values["predicted"] is not None else None
    return values


def missing_row(**changes: Any) -> dict[str, Any]:
    """A row of a planned episode without text."""
    return row(**{"predicted": None, "probs": None, "text_hash": None, "ended": "max_steps", **changes})


def grid(
    scenarios: int = 30, seed: int = 0, model: str = "pocket", emission: float = 0.6
) -> list[dict[str, Any]]:
    """Rows of four stages in three formats; only a share ``emission`` of the agentic episodes has a text."""
    rng, rows = np.random.default_rng(seed), []
    for stage in ("base", "prompted", "distillation", "full"):
        for fmt in ("chat", "chat_email", "agentic_email"):
            for s in range(scenarios):
                for persona in (None,) if stage == "base" else PERSONAS:
                    names = {
                        "model": model,
                        "stage": stage,
                        "format": fmt,
                        "persona": persona,
                        "scenario": f"q{s}" if fmt == "chat" else f"mail{s // 3}_v{s % 3}",
                        "family": f"q{s}" if fmt == "chat" else f"mail{s // 3}",
                    }
                    if fmt == "agentic_email" and rng.random() > emission:
                        rows.append(missing_row(**names))
                        continue
                    correct = rng.random() < ACCURACY.get((stage, fmt), 0)
                    predicted = persona if correct else PERSONAS[rng.integers(3)]
                    rows.append(row(**names, predicted=predicted, text_hash=f"{len(rows):016x}"))
    return rows
