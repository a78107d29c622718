"""Reads back what an offline W&B run holds."""

import time

from offscript.tracking import transaction_log


def records(path):
    """The ``Record`` messages in a ``.wandb`` file, up to a torn tail."""
    return [record for _, record in transaction_log.records(path)]


def _wait_for_exit(path, seconds=15.0):
    """The client's service writes the last records after ``finish`` has returned."""
    until = time.monotonic() + seconds
    while not any(r.HasField("exit") for r in records(path)) and time.monotonic() < until:
        time.sleep(0.1)


def read_runs(folder):
    """Of every offline run below ``folder``: {"id", "group", "job_type", "name", "tags", "logged", "summary"}."""
    runs = []
    for path in sorted(folder.rglob("run-*.wandb")):
        _wait_for_exit(path)
        run = {"logged": set(), "summary": set()}
        for record in records(path):
            if record.HasField("run"):
                made = record.run
                run |= {"id": made.run_id, "group": made.run_group, "job_type": made.job_type}
                run |= {"name": made.display_name, "tags": list(made.tags)}
            for item in record.history.item:
                run["logged"].add(item.key or ".".join(item.nested_key))
            for item in record.summary.update:
                run["summary"].add(item.key or ".".join(item.nested_key))
        runs.append(run)
    return runs
