"""The bootstrap: joint resampling of groups, strata, NaN for absent personas, and chunking."""

import numpy as np
import pytest

from offscript.evaluation.metrics import bootstrap
from offscript.evaluation.metrics.bootstrap import (
    EVERY_PERSONA,
    Episodes,
    bootstrap_f1,
    cluster_codes,
    macro,
    partition,
)
from offscript.evaluation.metrics.f1 import confusion, per_persona_f1


def episodes(rows: list[tuple], n_labels: int = 2) -> Episodes:
    """Episodes from rows of (group, persona, column, scenario). The family of a scenario is its first letter."""
    group, persona, column, scenario = (list(part) for part in zip(*rows, strict=True))
    return Episodes(
        max(group) + 1,
        n_labels,
        np.array(group),
        np.array(persona),
        np.array(column),
        np.array(scenario),
        np.array([name[0] for name in scenario]),
    )


def with_shared_scenarios(groups: int, scenarios: int, seed: int = 0, prefix: str = "s") -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [
        (g, p, int(p if rng.random() < 0.6 else rng.integers(3)), f"{prefix}{s}")
        for g in range(groups)
        for s in range(scenarios)
        for p in range(2)
    ]


def test_groups_that_share_scenarios_form_one_block():
    rows = with_shared_scenarios(2, 4) + [(2, p, p, f"chat{s}") for s in range(3) for p in range(2)]
    blocks = [list(b.groups) for b in partition(episodes(rows), "scenario")]
    assert blocks == [[0, 1], [2]]
    assert [list(b.groups) for b in partition(episodes(rows), "rows")] == [[0], [1], [2]]


def test_equal_rows_are_one_cluster_and_are_counted_as_many():
    rows = with_shared_scenarios(2, 50)
    given = episodes(rows)
    for block in partition(given, "rows"):
        mine = np.isin(given.group, block.groups)
        assert len(block.counts) <= 2 * 3 < block.multiplicity.sum() == mine.sum()
        whole = np.tensordot(block.multiplicity, block.counts, axes=1)[0]
        np.testing.assert_array_equal(whole, confusion(given.persona[mine], given.column[mine], 2))
    draws = bootstrap.bootstrap(given, "rows", 20, 0, within=np.ones(2, dtype=bool), null=np.zeros(2))
    assert draws.clusters.tolist() == draws.planned_clusters.tolist() == [100, 100]
    assert draws.persona_clusters.tolist() == [[50, 50], [50, 50]]


def test_blocks_are_connected_components():
    rows = [(0, 0, 0, "a"), (1, 0, 0, "a"), (1, 1, 1, "b"), (2, 0, 0, "b"), (3, 0, 0, "c")]
    assert [list(b.groups) for b in partition(episodes(rows), "scenario")] == [[0, 1, 2], [3]]


def test_equal_groups_get_equal_resamples_only_if_they_share_scenarios():
    one = with_shared_scenarios(1, 12)
    rows = one + [(1, p, c, s) for _, p, c, s in one] + [(2, p, c, "x" + s) for _, p, c, s in one]
    draws = macro(bootstrap_f1(episodes(rows), "scenario", 400, 0))
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert abs(np.corrcoef(draws[:, 0], draws[:, 2])[0, 1]) < 0.2
    by_row = macro(bootstrap_f1(episodes(rows), "rows", 400, 0))
    assert abs(np.corrcoef(by_row[:, 0], by_row[:, 1])[0, 1]) < 0.2


def test_family_resampling_keeps_variants_together():
    table = episodes(
        [(0, p, p if s[0] == "a" else 1 - p, s) for s in ("a1", "a2", "b1", "b2") for p in range(2)]
    )
    assert len(np.unique(cluster_codes(table, "family"))) == 2
    assert set(np.round(macro(bootstrap_f1(table, "family", 300, 0))[:, 0], 6)) == {0.0, 0.5, 1.0}
    assert len(set(np.round(macro(bootstrap_f1(table, "scenario", 300, 0))[:, 0], 6))) == 5


def test_distribution_equals_that_of_explicit_resampling():
    """Mean and quantiles of the multinomial resamples against drawing scenarios one by one."""
    rows = with_shared_scenarios(1, 15, seed=3)
    table = episodes(rows)
    fast = macro(bootstrap_f1(table, "scenario", 4000, 0))[:, 0]
    rng, codes, slow = np.random.default_rng(9), cluster_codes(table, "scenario"), []
    for _ in range(4000):
        take = np.concatenate([np.flatnonzero(codes == c) for c in rng.integers(15, size=15)])
        slow.append(per_persona_f1(confusion(table.persona[take], table.column[take], 2)).mean())
    assert fast.mean() == pytest.approx(np.mean(slow), abs=0.006)
    np.testing.assert_allclose(
        np.quantile(fast, [0.05, 0.5, 0.95]), np.quantile(slow, [0.05, 0.5, 0.95]), atol=0.02
    )


def test_no_persona_is_absent_from_a_resample_if_each_has_its_own_scenarios():
    rows = [(0, 0, 0, "only")] + [(0, 1, 1, f"s{i}") for i in range(30)]
    (block,) = partition(episodes(rows), "scenario")
    assert len(np.unique(block.stratum)) == 2
    assert not np.isnan(bootstrap_f1(episodes(rows), "scenario", 500, 0)).any()


def test_a_base_text_is_counted_for_every_label_in_a_resample():
    table = episodes([(0, EVERY_PERSONA, c, f"s{i}") for i, c in enumerate([0, 0, 1, 2])])
    (block,) = partition(table, "scenario")
    np.testing.assert_array_equal(block.counts.sum(axis=0)[0], [[2, 1, 1, 0], [2, 1, 1, 0]])
    f1 = bootstrap_f1(table, "scenario", 300, 0)[:, 0]
    # n of 4 texts are labelled q, each a true positive and a false positive for q: F1_q = 2n / (4 + 2n)
    assert set(np.round(f1[:, 0], 6)) <= {round(2 * n / (4 + 2 * n), 6) for n in range(5)}


def test_base_scenarios_do_not_merge_strata():
    rows = [(0, 0, 0, "a"), (0, 1, 1, "b"), (1, EVERY_PERSONA, 0, "a"), (1, EVERY_PERSONA, 1, "b")]
    (block,) = partition(episodes(rows), "scenario")
    assert len(np.unique(block.stratum)) == 2


def test_a_persona_absent_from_a_resample_is_left_out_of_its_mean():
    rows = [
        (0, 0, 0, "s0"),
        *[(0, 0, 3, f"s{i}") for i in range(1, 6)],
        *[(0, 1, 1, f"s{i}") for i in range(6)],
    ]
    f1 = bootstrap_f1(episodes(rows), "scenario", 300, 0)[:, 0]
    absent = np.isnan(f1[:, 0])
    # Expected: (5/6)^6 = 0.33.
    assert 0.2 < absent.mean() < 0.5
    np.testing.assert_allclose(macro(f1)[absent], 1.0)


def test_a_persona_without_texts_has_f1_zero_in_every_resample():
    f1 = bootstrap_f1(episodes([(0, 0, 0, f"s{i}") for i in range(5)]), "scenario", 50, 0)[:, 0]
    np.testing.assert_array_equal(f1[:, 1], 0.0)
    np.testing.assert_allclose(macro(f1), 0.5)


@pytest.mark.parametrize("unit", bootstrap.RESAMPLE_UNITS)
def test_results_do_not_depend_on_the_chunk_size(unit, monkeypatch):
    table = episodes(with_shared_scenarios(4, 50))
    whole = bootstrap_f1(table, unit, 10_000, 0)
    assert whole.shape == (10_000, 4, 2)
    monkeypatch.setattr(bootstrap, "_CHUNK_BYTES", 64 * 1024)
    np.testing.assert_array_equal(bootstrap_f1(table, unit, 10_000, 0), whole)


def test_resamples_depend_on_the_seed_and_not_on_the_order_of_rows():
    rows = with_shared_scenarios(2, 20)
    first = bootstrap_f1(episodes(rows), "scenario", 200, 0)
    np.testing.assert_array_equal(first, bootstrap_f1(episodes(rows[::-1]), "scenario", 200, 0))
    assert (first != bootstrap_f1(episodes(rows), "scenario", 200, 1)).any()


def test_an_unknown_unit_is_rejected():
    with pytest.raises(ValueError, match="one of family, scenario, rows"):
        cluster_codes(episodes(with_shared_scenarios(1, 2)), "paragraph")
