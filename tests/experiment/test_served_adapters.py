"""Trained stages of a model whose server holds the adapters that are trained here: names, keys, refusals."""

import pytest

from offscript.errors import UserError
from offscript.experiment.jobs.rollouts import served_names
from tests.composed import experiment_of

SMOKE = ("experiment=smoke", "grid.stage=[base,distillation]", "grid.format=[chat]")
URL = "model.endpoint.url=http://127.0.0.1:9/v1"
NAMED = "model.endpoint.adapters='{persona}-{stage}'"


def cells(*overrides):
    experiment = experiment_of(*SMOKE, *overrides)
    return experiment, experiment.planner.cells()


def test_a_server_of_the_same_weights_gives_the_cells_the_same_keys():
    """Which engine answers is in no key, so that rows of both belong to one cell."""
    assert [cell.key for cell in cells(URL, NAMED)[1]] == [cell.key for cell in cells()[1]]


def test_adapters_are_named_by_the_pattern():
    experiment, found = cells(URL, NAMED)
    model = experiment.planner.options.model["pocket"]
    trained = [cell for cell in found if cell.adapter is not None]
    names = served_names(found, model)
    assert trained and names == {cell.adapter.key: f"{cell.adapter.persona}-distillation" for cell in trained}


def test_two_adapters_of_one_name_are_refused():
    experiment, found = cells(URL, "model.endpoint.adapters=trained")
    with pytest.raises(
        UserError, match=r"'trained' gives two adapters the name trained; .*\{persona\}, \{stage\}"
    ):
        served_names(found, experiment.planner.options.model["pocket"])


@pytest.mark.parametrize(
    "overrides, message",
    [
        ((URL,), r"^model.endpoint: pocket is on a server alone, and distillation .*model.endpoint.adapters"),
        ((URL, NAMED, "grid.scale=[0.5]"), r"^model.endpoint.adapters: pocket is asked for scale 0.5"),
        ((URL, "model.endpoint.adapters='{name}'"), r"model.endpoint.adapters: .*\{name\}.*\{persona\}"),
    ],
)
def test_what_no_server_can_do_is_refused_before_anything_runs(overrides, message):
    with pytest.raises(UserError, match=message):
        cells(*overrides)
