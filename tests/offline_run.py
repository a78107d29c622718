"""Reads back what an offline W&B run holds: its LevelDB log of protobuf records."""

import struct
import time

BLOCK = 32 * 1024
FILE_HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path):
    """The ``Record`` messages in a ``.wandb`` file, up to a torn tail."""
    from wandb.proto import wandb_internal_pb2

    for data in _chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def _chunks(data):
    place, parts = FILE_HEADER, []
    while place + 7 <= len(data):
        room = BLOCK - place % BLOCK
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        body = data[place + 7 : place + 7 + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(body) < length:
            return
        parts = [body] if kind in (FULL, FIRST) else [*parts, body]
        if kind in (FULL, LAST):
            yield b"".join(parts)
        place += 7 + length


def _wait_for_exit(path, seconds=15.0):
    """The client's service writes the last records after ``finish`` has returned."""
    until = time.monotonic() + seconds
    while not any(r.HasField("exit") for r in records(path)) and time.monotonic() < until:
        time.sleep(0.1)


def told(folder):
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
