"""Reads and writes the transaction log of a W&B run (``run-<id>.wandb``).

It is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB that hold chunks of records (crc32 of kind and bytes,
length, kind, bytes). Each record is a protocol buffer of the client. The client flushes the file at intervals, so the
log of a running or killed job can end in the middle of a record; it is read up to its last complete one.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

HEADER = b":W&B\xe1\xbe\x00"
BLOCK_BYTES = 32 * 1024
CHUNK_HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class RunRecord(Protocol):
    run_id: str
    project: str
    entity: str


class HistoryStep(Protocol):
    num: int


class HistoryRecord(Protocol):
    step: HistoryStep


class Record(Protocol):
    """The part that is used here of the client's ``Record``, a class made at import that type checkers cannot see."""

    run: RunRecord
    history: HistoryRecord

    def HasField(self, name: str) -> bool: ...
    def WhichOneof(self, group: str) -> str | None: ...
    def ParseFromString(self, data: bytes) -> int: ...
    def SerializeToString(self) -> bytes: ...


def new_record(**fields: object) -> Record:
    """Returns a record with these fields; a field that is a message is given as a dictionary."""
    from wandb.proto import wandb_internal_pb2

    messages: ModuleType = wandb_internal_pb2
    record: Record = messages.Record(**fields)
    return record


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yields (offset of its end in bytes, record) for each complete record of a log."""
    for end, data in _record_bytes(path.read_bytes()):
        record = new_record()
        record.ParseFromString(data)
        yield end, record


def _record_bytes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = len(HEADER)
    chunks: list[bytes] = []
    while offset + CHUNK_HEADER.size <= len(data):
        room = BLOCK_BYTES - offset % BLOCK_BYTES
        if room < CHUNK_HEADER.size:
            offset += room
            continue
        crc, length, kind = CHUNK_HEADER.unpack_from(data, offset)
        offset += CHUNK_HEADER.size
        body = data[offset : offset + length]
        if len(body) < length or zlib.crc32(bytes([kind]) + body) != crc:
            return
        offset += length
        chunks = [body] if kind in (FULL, FIRST) else [*chunks, body]
        if kind in (FULL, LAST):
            yield offset, b"".join(chunks)


def write(path: Path, records: Iterable[Record]) -> None:
    """Writes a log of ``records``."""
    log = bytearray(HEADER)
    for record in records:
        _append(log, record.SerializeToString())
    path.write_bytes(log)


def _append(log: bytearray, data: bytes) -> None:
    first = True
    while True:
        room = BLOCK_BYTES - len(log) % BLOCK_BYTES
        if room < CHUNK_HEADER.size:
            log += bytes(room)
            continue
        body, data = data[: room - CHUNK_HEADER.size], data[room - CHUNK_HEADER.size :]
        kind = (FIRST if first else MIDDLE) if data else (FULL if first else LAST)
        log += CHUNK_HEADER.pack(zlib.crc32(bytes([kind]) + body), len(body), kind) + body
        first = False
        if not data:
            return


def step_of(record: Record) -> int | None:
    """Returns the ``_step`` of a row; None for any other record."""
    return record.history.step.num if record.HasField("history") else None


def last_step(paths: Iterable[Path]) -> int:
    """Returns the highest ``_step`` in these logs, -1 if they hold no rows."""
    steps = (step_of(record) for path in paths for _, record in records(path))
    return max((step for step in steps if step is not None), default=-1)
