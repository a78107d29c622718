"""Copies of one text under several personas, which the published rows of base weights are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from offscript.evaluation.order import depends_on_persona
from offscript.evaluation.predictions import Prediction


def cross_copies(
    predictions: Sequence[Prediction], labels: Sequence[str]
) -> tuple[list[Prediction], list[str]]:
    """``predictions`` with one row for each text that is copied under every persona of ``labels``, and a note for each group
    with such copies.

    The row that stays has the persona None: its text is scored for every persona. A group (model, stage, format and training
    seed) is of copies if all personas have the same rows: as many with each scenario, text, predicted label and end. If one
    row differs, no row of the group is changed. Neither are the groups of stages whose weights or system text are those of a
    persona: equal texts are a result there.
    """
    groups: dict[tuple[object, ...], list[Prediction]] = {}
    for p in predictions:
        groups.setdefault((p.model, p.stage, p.format, p.training_seed), []).append(p)
    removed: set[str] = set()
    kept: set[str] = set()
    notes = []
    for members in groups.values():
        if not _are_copies(members, labels):
            continue
        kept |= {p.where for p in members if p.persona == labels[0]}
        removed |= {p.where for p in members if p.persona != labels[0]}
        first, texts = members[0], sum(p.persona == labels[0] for p in members)
        notes.append(
            f"{first.model} {first.stage} {first.format}: {len(members)} rows are copies of {texts} under {len(labels)} "
            "personas; each counts once and is scored for every persona"
        )
    crossed = [
        replace(p, persona=None) if p.where in kept else p for p in predictions if p.where not in removed
    ]
    return crossed, notes


def _are_copies(members: Sequence[Prediction], labels: Sequence[str]) -> bool:
    """Whether all personas of ``labels`` have the same rows in a group."""
    if len(labels) < 2 or depends_on_persona(members[0].stage):
        return False
    rows: dict[str | None, Counter[tuple[str | None, ...]]] = {label: Counter() for label in labels}
    for p in members:
        if p.persona is None or (p.predicted is not None and p.text_hash is None):
            return False
        rows[p.persona][p.scenario, p.text_hash, p.predicted, p.ended] += 1
    first, *others = rows.values()
    return all(row == first for row in others)
