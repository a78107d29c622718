"""In how many specifications of a multiverse a claim holds, and which choices decide it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.multiverse import DIMENSIONS, Multiverse, Outcome, Specification

ENOUGH = 0.8
"""A rule is not made narrower once this share of the specifications with its choices belongs to the members."""


@dataclass(frozen=True)
class Claim:
    """That a number of the headline is on one side of ``limit``.

    Args:
        name: of the claim in ``summary.json``.
        quantity: the number in words.
        statement: the claim in words.
        side: the side of the limit, in words.
        of: the number of an outcome.
        above: whether it is claimed to be above the limit, otherwise below.
    """

    name: str
    quantity: str
    statement: str
    side: str
    of: Callable[[Outcome], Contrast]
    limit: float
    above: bool

    def holds(self, outcome: Outcome) -> bool:
        """Whether the estimate is on the claimed side."""
        estimate = self.of(outcome).estimate
        return estimate is not None and (estimate > self.limit if self.above else estimate < self.limit)

    def is_certain(self, outcome: Outcome) -> bool:
        """Whether the whole interval is on the claimed side."""
        interval = self.of(outcome).interval
        if interval is None:
            return False
        return interval[0] > self.limit if self.above else interval[1] < self.limit


@dataclass(frozen=True)
class Share:
    """The outcomes of one choice while the others vary, or of all.

    Args:
        dimension, choice: empty for all.
        alone: estimate if only this choice differs from the main specification; None if there is no such specification.
        defined: number of specifications in which the number is defined, of ``total``.
        median, lowest, highest: of their estimates; None if there are none.
        holds, certain: number of them in which the claim holds, by the estimate and by the whole interval.
    """

    dimension: str
    choice: str
    alone: float | None
    defined: int
    total: int
    median: float | None
    lowest: float | None
    highest: float | None
    holds: int
    certain: int


@dataclass(frozen=True)
class Rule:
    """Choices that all of some specifications have: the allowed values by dimension.

    ``members`` of the ``matching`` specifications that have such choices belong to them. No dimensions: they have nothing in
    common.
    """

    choices: Mapping[str, tuple[str, ...]]
    members: int
    matching: int


def claims(made: Multiverse) -> list[Claim]:
    """The claims about a headline; those about numbers that it does not have are left out."""
    subject, found = made.headline, []
    if subject.chat is not None:
        kept = f"less than half of what is above chance in {subject.chat} is kept"
        found += [
            Claim(
                "less_than_half_kept",
                "retention above chance",
                kept,
                "below .5",
                lambda o: o.above_chance,
                0.5,
                False,
            ),
            Claim("gap_positive", "gap", "the gap is positive", "above 0", lambda o: o.gap, 0.0, True),
        ]
    if subject.other is not None:
        pair = f"{subject.stage} - {subject.other}"
        below = f"{subject.stage} is below {subject.other}"
        found.append(Claim("stage_below", pair, below, "below 0", lambda o: o.difference, 0.0, False))
    return found


def defined(made: Multiverse, claim: Claim) -> list[Outcome]:
    """The outcomes whose number is defined."""
    return [o for o in made.outcomes if claim.of(o).estimate is not None]


def shares(made: Multiverse, claim: Claim) -> list[Share]:
    """The outcomes of every choice, those of all first. A dimension with one value is left out."""
    found = [_share(made, claim, "", "")]
    for dimension in DIMENSIONS:
        values = made.choices[dimension]
        found += [_share(made, claim, dimension, value) for value in values if len(values) > 1]
    return found


def _share(made: Multiverse, claim: Claim, dimension: str, choice: str) -> Share:
    alone = made.main._replace(**{dimension: choice}) if dimension else made.main
    mine = [o for o in made.outcomes if not dimension or getattr(o.specification, dimension) == choice]
    with_number = [o for o in mine if claim.of(o).estimate is not None]
    estimates = [e for o in with_number if (e := claim.of(o).estimate) is not None]
    return Share(
        dimension,
        choice,
        next((claim.of(o).estimate for o in mine if o.specification == alone), None),
        len(estimates),
        len(mine),
        statistics.median(estimates) if estimates else None,
        min(estimates, default=None),
        max(estimates, default=None),
        sum(map(claim.holds, with_number)),
        sum(map(claim.is_certain, with_number)),
    )


def rule(members: Sequence[Specification], among: Sequence[Specification]) -> Rule:
    """The choices that all ``members`` have and many of the others in ``among`` do not.

    Dimensions are added until ENOUGH of the matching specifications are members or no further one excludes any, the one that
    excludes most first.
    """
    matching, chosen = list(among), dict[str, tuple[str, ...]]()
    while len(members) < ENOUGH * len(matching):
        best: tuple[str, tuple[str, ...]] | None = None
        remaining = matching
        for dimension in DIMENSIONS:
            values = tuple(dict.fromkeys(getattr(s, dimension) for s in members))
            kept = [s for s in matching if getattr(s, dimension) in values]
            if len(kept) < len(remaining):
                best, remaining = (dimension, values), kept
        if best is None:
            break
        chosen[best[0]], matching = best[1], remaining
    return Rule(chosen, len(members), len(matching))


def most_often(
    members: Sequence[Specification], among: Sequence[Specification]
) -> tuple[str, str, int, int] | None:
    """The choice with the largest share of ``members``: dimension, choice, members and specifications with it. None if every
    choice has the same share."""
    found = []
    for dimension in DIMENSIONS:
        for value in dict.fromkeys(getattr(s, dimension) for s in among):
            mine, total = (sum(getattr(s, dimension) == value for s in some) for some in (members, among))
            found.append((mine / total, dimension, value, mine, total))
    if not found or len({share for share, *_ in found}) == 1:
        return None
    _, dimension, value, mine, total = max(found, key=lambda entry: (entry[0], entry[4]))
    return dimension, value, mine, total
