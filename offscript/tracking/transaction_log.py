"""The file that a W&B run leaves on disk (``run-<id>.wandb``): read up to its last whole record, and written.

It is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB with pieces of records (crc32 of kind and bytes, length,
kind); each record is a ``Record`` of the client's protocol buffers. The client flushes it now and then, so that a file
that is still being written, or whose writer was killed, ends anywhere.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024
PIECE = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def new_record() -> Any:
    """An empty ``Record``."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made at import
    return messages.Record()


def records(path: Path, start: int = 0) -> Iterator[tuple[int, Any]]:
    """(offset behind it, ``Record``) of each whole record from ``start`` on, an offset that came from here before."""
    for end, data in _chunks(path.read_bytes(), max(start, len(HEADER))):
        record = new_record()
        record.ParseFromString(data)
        yield end, record


def _chunks(data: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    parts: list[bytes] = []
    while place + PIECE.size <= len(data):
        room = BLOCK - place % BLOCK
        if room < PIECE.size:
            place += room
            continue
        crc, length, kind = PIECE.unpack_from(data, place)
        place += PIECE.size
        body = data[place : place + length]
        if len(body) < length or zlib.crc32(bytes([kind]) + body) != crc:
            return
        place += length
        parts = [body] if kind in (FULL, FIRST) else [*parts, body]
        if kind in (FULL, LAST):
            yield place, b"".join(parts)


def write(path: Path, records: Iterable[Any]) -> None:
    """A log of ``records``."""
    log = bytearray(HEADER)
    for record in records:
        _append(log, record.SerializeToString())
    path.write_bytes(log)


def _append(log: bytearray, data: bytes) -> None:
    first = True
    while True:
        room = BLOCK - len(log) % BLOCK
        if room < PIECE.size:
            log += bytes(room)
            continue
        body, data = data[: room - PIECE.size], data[room - PIECE.size :]
        kind = (FIRST if first else MIDDLE) if data else (FULL if first else LAST)
        log += PIECE.pack(zlib.crc32(bytes([kind]) + body), len(body), kind) + body
        first = False
        if not data:
            return


def step_of(record: Any) -> int | None:
    """W&B's own step of a row (``_step``); None for any other record."""
    return record.history.step.num if record.HasField("history") else None


def last_step(paths: Iterable[Path]) -> int:
    """The highest ``_step`` in these files, -1 without rows."""
    steps = (step_of(record) for path in paths for _, record in records(path))
    return max((step for step in steps if step is not None), default=-1)
