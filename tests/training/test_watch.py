"""When a training is stopped because its reward and the other measures part."""

import pytest

from offscript.training.watch import curve_of, parting, points_to_keep


def curve(*points, names=("reward", "classifier")):
    return [{"step": 5 * i, **dict(zip(names, values, strict=True))} for i, values in enumerate(points)]


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(0, 0), (1, 2), (2, 0.9)], 5),
        # It fell by no more than the margin.
        ([(0, 0), (1, 2), (2, 1.0)], None),
        # Both fell: the training fails, but does not exploit its reward.
        ([(0, 0), (3, 2), (2, 0.5)], None),
        # Both rise.
        ([(0, 0), (1, 1), (2, 2)], None),
        # From the start on.
        ([(0, 3), (1, 2.5), (2, 1.9)], 0),
        ([(0, 0)], None),
    ],
)
def test_a_parting_is_a_fall_beyond_the_margin_while_the_reward_rose(points, best):
    found = parting(curve(*points), margin=1.0)
    assert (found.best if found else None) == best


def test_of_several_measures_the_one_that_parted_first_decides_which_weights_are_kept():
    names = ("reward", "classifier", "oracle")
    found = parting(curve((0, 0, 3), (1, 2, 2), (2, 0.5, 1.5), names=names), margin=1.0)
    assert (found.name, found.best) == ("oracle", 0)
    assert "the oracle fell by 1.50" in str(found)


def test_weights_that_may_still_be_chosen_are_kept_also_after_a_kill():
    points = curve((0, 0), (1, 1), (2, 2), (3, 3), (4, 4))
    assert points_to_keep(points) == {5, 10, 15, 20}
    assert points_to_keep(curve((0, 9), (1, 1), (2, 2), (3, 3), (4, 4))) == {0}


def test_the_curve_is_read_from_the_log():
    log = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "watch/reward": 1.0, "watch/classifier": 0.5, "epoch": 0.1},
        {"step": 0, "watch/reward": 0.0, "watch/classifier": 0.0},
    ]
    assert curve_of(log) == [
        {"step": 0, "reward": 0.0, "classifier": 0.0},
        {"step": 2, "reward": 1.0, "classifier": 0.5},
    ]
