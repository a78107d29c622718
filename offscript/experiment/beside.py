"""Two runs of a grid, for their comparison: the rows of each, and the settings in which they differ."""

from collections.abc import Sequence

from offscript.evaluation.comparison import differing
from offscript.evaluation.predictions import Prediction, check_rows, check_together
from offscript.experiment import fidelity
from offscript.experiment.artifacts import Predictions
from offscript.experiment.folder import Experiment
from offscript.json_types import Json
from offscript.settings import identity_of


def rows_of(parts: Sequence[Predictions], experiment: Experiment) -> list[Prediction]:
    """The rows of finished predictions."""
    rows = [row for part in parts for row in experiment.predictions(part)]
    return check_together(check_rows(rows, "predictions"))


def differing_settings(experiment: Experiment, other: Experiment) -> dict[str, tuple[Json, Json]]:
    """The settings that can change a result and differ, each with its F-number if it has one: the value of ``experiment``,
    and that of ``other``. A constitution is described by its size."""
    settings = experiment.planner.settings
    kept = {*identity_of(settings), "grid"} - {"persona"}
    plain, other_plain = (
        e.planner.settings.model_dump(mode="json", include=kept) for e in (experiment, other)
    )
    found = numbered(plain, other_plain)
    number = fidelity.number_of("persona.constitution")
    for persona in experiment.planner.personas:
        if persona in other.planner.personas:
            sizes = _constitution_size(experiment, persona), _constitution_size(other, persona)
            if experiment.planner.options.persona[persona] != other.planner.options.persona[persona]:
                found[f"persona.constitution of {persona} ({number})"] = sizes
    return found


def numbered(plain: dict[str, Json], other: dict[str, Json]) -> dict[str, tuple[Json, Json]]:
    """The keys in which the settings ``plain`` and ``other`` differ, with their F-numbers, and both values."""
    return {
        f"{key} ({number})" if (number := fidelity.number_of(key)) else key: pair
        for key, pair in differing(plain, other).items()
    }


def _constitution_size(experiment: Experiment, persona: str) -> str:
    constitution = experiment.planner.options.persona[persona].constitution
    return f"{len(constitution)} assertions with {sum(len(a.questions) for a in constitution)} questions"
