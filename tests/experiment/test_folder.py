"""What artifacts look like to those that are made from them."""

import json

from tests.composed import experiment_of


def test_rows_are_read_in_one_order_whatever_finished_first(tmp_path):
    own = experiment_of("experiment=smoke", f"root={tmp_path}")
    cell = own.planner.cells()[0]
    rows = [{"scenario": s, "sample": i} for s in ("b", "a") for i in (10, 9)]
    path = own.path(cell)
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(row["scenario"], row["sample"]) for row in own.rows(cell)] == [
        ("a", 9),
        ("a", 10),
        ("b", 9),
        ("b", 10),
    ]
