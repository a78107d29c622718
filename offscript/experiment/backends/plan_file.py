"""The layout of ``plan.json``: the plan of one launch as JSON, read by its jobs, its supervisor and the status."""

from pathlib import Path

from pydantic import JsonValue
from typing_extensions import TypedDict

from offscript.storage.files import read_record

PLAN = "plan.json"


class ArtifactRecord(TypedDict):
    """One artifact. ``needs`` are the positions of its inputs in the list of artifacts; ``path`` is relative to the
    experiment's folder; ``planned`` is the number of its rows, null if it has no rows."""

    key: str
    name: str
    kind: str
    path: str
    planned: int | None
    needs: list[int]


class JobRecord(TypedDict):
    """One job: the keys of the artifacts that one process (training: one group of ranks) makes."""

    kind: str
    layer: int
    name: str
    keys: list[str]


class ArrayRecord(TypedDict):
    """One array. ``tasks`` lists the positions of each task's jobs; ``after`` the arrays that must end before."""

    kind: str
    layer: int
    tasks: list[list[int]]
    after: list[int]


class CodeLocation(TypedDict):
    """``home`` is the folder of the code that the jobs run, ``code`` its commit, ``cwd`` their working folder."""

    home: str
    cwd: str
    code: str | None


class PlanFile(CodeLocation):
    """A whole plan. ``attempts`` counts the earlier retries of an artifact, by key."""

    settings: dict[str, JsonValue]
    options: dict[str, dict[str, JsonValue]]
    overrides: list[str]
    created: str
    attempts: dict[str, int]
    artifacts: list[ArtifactRecord]
    jobs: list[JobRecord]
    arrays: list[ArrayRecord]


def read_plan_file(path: Path) -> PlanFile:
    """The content of a ``plan.json``.

    Raises:
        UserError: the file is damaged.
    """
    return read_record(
        path, PlanFile, f"delete {path.parent} to forget this launch (its jobs run on), and submit again"
    )
