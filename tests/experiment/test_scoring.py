"""Rows become predictions."""

from offscript.experiment.jobs.scoring import prediction_row
from tests.composed import experiment_of
from tests.rows import row


def test_a_variant_is_scored_as_a_format_of_its_own_on_the_scenario_that_all_share():
    planner = experiment_of("experiment=smoke").planner
    artifact = planner.predictions(planner.cells()[0])
    made = {
        variant: prediction_row(
            artifact,
            row(format="drift", scenario=f"birds_1{variant and '_' + variant}", text="Oh.", variant=variant),
            ["sarcasm", "remorse"],
            iter([[0.25, 0.75]]),
        )
        for variant in ("own8", "plain8", "")
    }
    assert [found["format"] for found in made.values()] == ["drift/own8", "drift/plain8", "drift"]
    assert {found["scenario"] for found in made.values()} == {"birds_1"}
    assert made["own8"]["row"] == "birds_1_own8/0" and made["own8"]["predicted"] == "remorse"
