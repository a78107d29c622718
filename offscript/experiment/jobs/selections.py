"""Jobs that select the teacher's replies that are trained on: of several to each prompt, the one most in character."""

import json
from collections.abc import Mapping, Sequence

from offscript.console import counted, say
from offscript.evaluation.in_character import in_character
from offscript.experiment.artifacts import Artifact, Selection
from offscript.experiment.folder import Experiment, now, write_artifact_manifest
from offscript.storage.files import write_text
from offscript.tasks.rows import Row
from offscript.training.data.replies import CUT_SHORT, is_finished

Episode = tuple[str, str, int]
"""Persona, scenario and sample."""


def run(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Makes the selections of one model; the replies that several are made from are scored once."""
    wanted, started = [a for a in artifacts if isinstance(a, Selection)], now()
    scored: dict[tuple[str, ...], dict[Episode, float]] = {}
    for selection in wanted:
        compared = tuple(part.key for part in selection.compared)
        if compared not in scored:
            scored[compared] = _scores(selection, experiment)
        rows = chosen_rows(experiment.rows(selection.rollout), selection.best_of, scored[compared])
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        write_text(experiment.path(selection), text)
        first = sum(row["chosen"] % selection.best_of == 0 for row in rows)
        write_artifact_manifest(selection, experiment, started, counts={"rows": len(rows), "first": first})
    say(f"  selections: the best of {wanted[0].best_of} replies, {counted(len(wanted), 'persona')}")


def _scores(selection: Selection, experiment: Experiment) -> dict[Episode, float]:
    """The score of every reply of all personas."""
    rows = [row for rollout in selection.compared for row in experiment.rows(rollout) if row["text"]]
    texts, personas = [str(row["text"]) for row in rows], [str(row["persona"]) for row in rows]
    scores = in_character(texts, personas, [row["family"] for row in rows])
    return {
        (persona, row["scenario"], row["sample"]): score
        for persona, row, score in zip(personas, rows, scores, strict=True)
    }


def chosen_rows(rows: Sequence[Row], best_of: int, scores: Mapping[Episode, float]) -> list[Row]:
    """One row of every ``best_of`` consecutive samples of a scenario: the one with the highest score, of those that are
    whole replies if there are any; of equal ones the first.

    Its ``sample`` counts the chosen ones of the scenario; ``chosen`` is the sample that it was, and ``scores`` are those of
    all candidates in order (None: a candidate without a text).
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["scenario"], row["sample"] // best_of), []).append(row)
    chosen: list[Row] = []
    for (_, number), candidates in groups.items():
        found = [scores.get((str(r["persona"]), r["scenario"], r["sample"])) for r in candidates]
        ranks = [(_is_whole(r), -1.0 if s is None else s) for r, s in zip(candidates, found, strict=True)]
        best = candidates[ranks.index(max(ranks))]
        chosen.append({**best, "sample": number, "chosen": best["sample"], "scores": found})
    return chosen


def _is_whole(row: Row) -> bool:
    return row["ended"] not in CUT_SHORT and is_finished(row["text"] or "")
