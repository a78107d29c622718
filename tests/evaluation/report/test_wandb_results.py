"""What an evaluation logs to W&B, and a new metric in every output."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.metrics import table
from offscript.evaluation.metrics.results import GroupScore
from offscript.evaluation.metrics.table import Column, Metric
from offscript.tracking.tracker import NullTracker
from tests.rows import PERSONAS, grid


class Recorder(NullTracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict]] = {}
        self.charts: dict[str, Mapping[str, float]] = {}
        self.images: dict[str, Path] = {}
        self.headlines: dict[str, object] = {}

    def table(self, name, columns, rows):
        self.tables[name] = [dict(zip(columns, row, strict=True)) for row in rows]

    def bars(self, name, title, heights):
        self.charts[name] = heights

    def image(self, name, path):
        self.images[name] = path

    def summary(self, values):
        self.headlines |= values


def two_seeds():
    return grid(scenarios=15) + [{**row, "seed": 1} for row in grid(scenarios=15, seed=5)]


def evaluated(rows, folder: Path) -> Recorder:
    recorder = Recorder()
    evaluate_rows(rows, folder, quiet=True, resamples=100, tracker=recorder)
    return recorder


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    return evaluated(two_seeds(), tmp_path_factory.mktemp("evaluation"))


def test_the_retention_table_holds_retention_with_intervals_and_reasons(logged):
    rows = logged.tables["retention"]
    assert len(rows) == 18, "six of the mean over seeds, six of each seed; base is in none"
    assert [r["seeds"] for r in rows] == [2] * 6 + [1] * 12
    full = next(
        r for r in rows if (r["stage"], r["format"], r["training_seed"]) == ("full", "agentic_email", 0)
    )
    assert full["gap"] == pytest.approx(full["chat_f1"] - full["f1"])
    assert full["ratio"] == pytest.approx(full["f1"] / full["chat_f1"])
    kept = (full["f1"] - full["null"]) / (full["chat_f1"] - full["chat_null"])
    assert full["above_chance"] == pytest.approx(kept)
    assert full["gap_low"] <= full["gap"] <= full["gap_high"]
    for name in ("above_chance", "ratio"):
        assert full[f"{name}_low"] <= full[name] <= full[f"{name}_high"]


def test_the_scores_table_has_a_row_per_group_and_persona(logged):
    rows = logged.tables["scores"]
    assert len(rows) == 36 * (1 + len(PERSONAS))
    assert {r["persona"] for r in rows} == {"_all", *PERSONAS}


def test_headline_numbers_of_personas_and_seeds_have_keys_of_their_own(logged):
    for seed in (0, 1):
        place = f"pocket/full/agentic_email/seed{seed}"
        (row,) = (
            r
            for r in logged.tables["scores"]
            if (r["stage"], r["format"], r["persona"]) == ("full", "agentic_email", "sarcasm")
            and r["training_seed"] == seed
        )
        assert logged.headlines[f"{place}/f1/sarcasm"] == row["f1"]
        assert {
            f"{place}/{key}" for key in ("macro_f1_3", "emission_rate", "above_chance", "ratio")
        } <= logged.headlines.keys()
    assert "pocket/full/agentic_email/above_chance" in logged.headlines, "the mean over seeds"
    assert "pocket/full/chat/seed0/above_chance" not in logged.headlines


def test_a_row_without_a_training_seed_has_no_seed_in_its_key(tmp_path):
    logged = evaluated([{**row, "seed": None} for row in grid(scenarios=4)], tmp_path)
    assert "pocket/full/chat/macro_f1_3" in logged.headlines


def test_bars_and_heatmap_are_logged(logged):
    assert list(logged.charts) == ["bars/chat", "bars/chat_email", "bars/agentic_email"]
    assert "pocket full 1" in logged.charts["bars/chat"]
    assert logged.images["heatmap"].read_bytes().startswith(b"\x89PNG")


def test_without_chat_there_is_no_retention_table(tmp_path):
    logged = evaluated([row for row in grid(scenarios=4) if row["format"] != "chat"], tmp_path)
    assert list(logged.tables) == ["scores"]


def outside(group: GroupScore) -> float | None:
    """Share of emitted texts with a predicted label outside the set."""
    emitted = sum(sum(row[:-1]) for row in group.counts)
    return sum(row[-2] for row in group.counts) / emitted if emitted else None


def test_a_new_metric_is_one_function_and_one_entry(monkeypatch, tmp_path):
    toy = Metric("outside", outside, lambda p: 0.25, Column("outside"), in_summary=True)
    monkeypatch.setattr(table, "METRICS", (*table.METRICS, toy))
    logged = evaluated(grid(scenarios=4), tmp_path)
    header, *lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert header.endswith(",outside")
    assert [line.rpartition(",")[2] for line in lines[:4]] == ["0.000000", *["0.250000"] * 3]
    group = json.loads((tmp_path / "summary.json").read_text())["groups"][0]
    assert group["outside"] == 0.0 and group["personas"][0]["outside"] == 0.25
    whole = (tmp_path / "tables.txt").read_text().partition("by stage and format")[2]
    _, table_header, _, first = whole.splitlines()[1:5]
    assert table_header.split()[-1] == "outside" and first.split()[-1] == ".000"
    assert logged.tables["scores"][0]["outside"] == 0.0
    assert logged.headlines["pocket/full/chat/seed0/outside"] == 0.0
    assert logged.headlines["pocket/full/chat/seed0/outside/sarcasm"] == 0.25
