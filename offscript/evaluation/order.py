"""Display order of personas, stages and formats: the order of their definitions, then unknown names, sorted."""

import functools
from collections.abc import Iterable, Sequence

from offscript.errors import UserError, one_of
from offscript.storage.options import option_file, options_of
from offscript.tasks.formats import FORMATS

BASE_WEIGHTS = "base"
"""``weights`` of the stages of the untrained model (``conf/stage``)."""

PUBLISHED = "full"
"""Name of the stage that is trained as the published study trained: other recipes are compared with it."""


def personas_in_order(names: Iterable[str]) -> list[str]:
    """Distinct ``names`` of personas, in the ``order`` of ``conf/persona``."""
    return _in_order(names, options_of("persona"))


def stages_in_order(names: Iterable[str]) -> list[str]:
    """Distinct ``names`` of stages, in the ``order`` of ``conf/stage``."""
    return _in_order(names, options_of("stage"))


def headline_stage(names: Iterable[str]) -> str:
    """The stage that a report begins with: ``full`` if it is among ``names``, which must not be empty, else the last one."""
    stages = stages_in_order(names)
    return PUBLISHED if PUBLISHED in stages else stages[-1]


def formats_in_order(names: Iterable[str]) -> list[str]:
    """Distinct ``names`` of formats, in the ``order`` of each format; variants (``drift/own2``, ``drift/own16``) by the
    number in their names."""
    found = set(names)
    formats = _in_order(
        (name.partition("/")[0] for name in found),
        sorted(FORMATS, key=lambda name: (FORMATS[name].order, name)),
    )
    return sorted(found, key=lambda name: (formats.index(name.partition("/")[0]), _variant_key(name)))


def _variant_key(name: str) -> tuple[str, int]:
    """``("own", 16)`` for ``drift/own16``."""
    variant = name.partition("/")[2]
    letters = variant.rstrip("0123456789")
    return letters, int(variant.removeprefix(letters) or 0)


def is_in_distribution(format_: str) -> bool:
    """Whether the personas are trained in this format (``Format.in_distribution``); False for an unknown format."""
    return format_ in FORMATS and FORMATS[format_].in_distribution


@functools.cache
def is_trained(stage: str) -> bool:
    """Whether the texts of a stage are those of trained weights; True for an unknown stage."""
    if stage not in options_of("stage"):
        return True
    option = option_file("stage", stage)
    return not isinstance(option, dict) or option.get("weights") != BASE_WEIGHTS


@functools.cache
def compared_stages() -> tuple[tuple[str, str], ...]:
    """Pairs of stages that are compared, in order: each stage with those in ``compared_with`` of its file in ``conf/stage``.

    Raises:
        UserError: a name there is not that of another stage.
    """
    stages = options_of("stage")
    found = []
    for stage in stages:
        option = option_file("stage", stage)
        others = option.get("compared_with") if isinstance(option, dict) else None
        for other in others if isinstance(others, list) else ():
            if other not in stages or other == stage:
                allowed = one_of([name for name in stages if name != stage])
                raise UserError(f"conf/stage/{stage}.yaml: compared_with", f"found {other!r}", allowed)
            found.append((stage, str(other)))
    return tuple(found)


def depends_on_persona(stage: str) -> bool:
    """Whether weights or system text of a stage are those of a persona: of every stage of ``conf/stage`` but ``base``, at any
    scale (``full@0.5``). False for an unknown stage."""
    name = stage.partition("@")[0]
    return name != BASE_WEIGHTS and name in options_of("stage")


def _in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))
