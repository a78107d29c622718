"""Reads the files of offline W&B runs."""

import time

from offscript.tracking import transaction_log


def records(path):
    """Returns the complete records of a ``.wandb`` file."""
    return [record for _, record in transaction_log.records(path)]


def _wait_for_exit(path, seconds=15.0):
    """Waits for the last record, which the client's service process writes after ``finish`` has returned."""
    deadline = time.monotonic() + seconds
    while not any(r.HasField("exit") for r in records(path)) and time.monotonic() < deadline:
        time.sleep(0.1)


def read_runs(folder):
    """Returns {"id", "group", "job_type", "name", "tags", "logged", "summary"} of each run below ``folder``."""
    runs = []
    for path in sorted(folder.rglob("run-*.wandb")):
        _wait_for_exit(path)
        run = {"logged": set(), "summary": set()}
        for record in records(path):
            if record.HasField("run"):
                start = record.run
                run |= {"id": start.run_id, "group": start.run_group, "job_type": start.job_type}
                run |= {"name": start.display_name, "tags": list(start.tags)}
            for item in record.history.item:
                run["logged"].add(item.key or ".".join(item.nested_key))
            for item in record.summary.update:
                run["summary"].add(item.key or ".".join(item.nested_key))
        runs.append(run)
    return runs
