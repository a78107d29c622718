"""What artifacts look like to those that are made from them."""

import json

import pytest

from offscript.errors import UserError
from offscript.experiment.folder import now, write_artifact_manifest
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


def test_rows_that_changed_after_they_were_finished_are_refused(tmp_path):
    own = experiment_of("experiment=smoke", f"root={tmp_path}")
    cell = own.planner.cells()[0]
    path = own.path(cell)
    path.parent.mkdir(parents=True)
    lines = [json.dumps({"scenario": s, "sample": 0}) + "\n" for s in ("a", "b", "c")]
    path.write_text("".join(lines))
    write_artifact_manifest(cell, own, now())
    assert len(own.rows(cell)) == 3
    for changed in (lines[1:], [lines[0].replace("a", "z"), *lines[1:]], ["{}\n"]):
        path.write_text("".join(changed))
        with pytest.raises(
            UserError, match=r"has changed since it was made .*; restore it, or delete .*manifest"
        ):
            own.rows(cell)
    path.write_text("".join(lines))
    assert len(own.rows(cell)) == 3
