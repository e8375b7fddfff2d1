"""Records in the bus's file: appending, reading, looking up a time, deleting; all within the caller's transaction."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from refold.bus._sqlite_file import OFFSET_BITS, OFFSET_MASK
from refold.bus._store import Draft
from refold.bus.contract import Headers, Place, Record
from refold.schemas.errors import IntegrityError

_LENGTH = struct.Struct("<I")

DAMAGED = "the file was changed or damaged; restore it from a copy, `refold verify` says what is lost"


def pack_headers(headers: Headers) -> bytes | None:
    """Return names and values, each after its length; None for no headers."""
    parts: list[bytes] = []
    for name, value in headers:
        for part in (name.encode(), value):
            parts += (_LENGTH.pack(len(part)), part)
    return b"".join(parts) or None


def unpack_headers(packed: bytes | None) -> Headers:
    """Return what `pack_headers` packed.

    Raises
    ------
    IntegrityError
        The bytes are no headers.
    """
    if packed is None:
        return ()
    try:
        return _unpacked(packed)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise IntegrityError("the bus file holds headers that cannot be read", hint=DAMAGED) from error


def _unpacked(packed: bytes) -> Headers:
    parts: list[bytes] = []
    at = 0
    while at < len(packed):
        (length,) = _LENGTH.unpack_from(packed, at)
        parts.append(packed[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(packed):
        raise ValueError("the last header ends early")
    return tuple((name.decode(), value) for name, value in zip(parts[::2], parts[1::2], strict=True))


class Batch:
    """Drafts made ready to be written, outside the lock."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self._drafts = [(draft, pack_headers(draft.headers)) for draft in drafts]

    def write(self, connection: sqlite3.Connection, place_ids: dict[Place, int]) -> list[int]:
        """Insert all drafts and return their offsets."""
        ends: dict[Place, tuple[int, int]] = {}
        for draft, _ in self._drafts:
            if draft.place not in ends:
                sql = "SELECT next_offset, latest_ms FROM partitions WHERE place_id = ?"
                [ends[draft.place]] = connection.execute(sql, (place_ids[draft.place],)).fetchall()
        offsets: list[int] = []
        rows = self._rows(place_ids, ends, offsets)
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)
        update = "UPDATE partitions SET next_offset = ?, latest_ms = ? WHERE place_id = ?"
        connection.executemany(update, [(*end, place_ids[place]) for place, end in ends.items()])
        return offsets

    def _rows(
        self, place_ids: dict[Place, int], ends: dict[Place, tuple[int, int]], offsets: list[int]
    ) -> Iterator[tuple[int, int, int, bytes | None, bytes | None, bytes | None]]:
        for draft, headers in self._drafts:
            offset, latest_ms = ends[draft.place]
            latest_ms = max(latest_ms, draft.timestamp_ms)
            ends[draft.place] = offset + 1, latest_ms
            offsets.append(offset)
            record_id = place_ids[draft.place] << OFFSET_BITS | offset
            yield record_id, draft.timestamp_ms, latest_ms, draft.key, headers, draft.value


def read(
    connection: sqlite3.Connection,
    place: Place,
    place_id: int,
    first: int,
    end: int,
    max_records: int,
    room: int,
    *,
    force: bool,
) -> tuple[list[Record], int]:
    """Return records of [first, end) within the bounds, and where to go on (`end` if nothing was left out).

    The sizes are looked up before the values, so that no value is read that will not fit. `force` takes the first in any case.
    """
    base = place_id << OFFSET_BITS
    sizes = connection.execute(
        "SELECT id, ifnull(length(key), 0) + ifnull(length(headers), 0) + ifnull(length(value), 0) FROM records"
        " WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        (base | first, base + end, max_records),
    ).fetchall()
    fitting = 0
    for _, size in sizes:
        room -= size
        if room < 0 and not (force and fitting == 0):
            break
        fitting += 1
    if not fitting:
        return [], first if sizes else end
    last_id = sizes[fitting - 1][0]
    rows = connection.execute(
        "SELECT id, timestamp_ms, key, value, headers FROM records WHERE id >= ? AND id <= ? ORDER BY id",
        (base | first, last_id),
    ).fetchall()
    records = [
        _record(place, record_id & OFFSET_MASK, timestamp_ms, key, value, headers)
        for record_id, timestamp_ms, key, value, headers in rows
    ]
    read_all = fitting == len(sizes) < max_records
    return records, end if read_all else records[-1].offset + 1


def _record(place: Place, offset: int, timestamp_ms: Any, key: Any, value: Any, headers: Any) -> Record:
    """Return a row as a record; SQLite keeps no column to its type."""
    if type(timestamp_ms) is not int or not all(isinstance(part, bytes | None) for part in (key, value, headers)):
        raise IntegrityError("the bus file holds a record that is none", **place._asdict(), offset=offset, hint=DAMAGED)
    return Record(*place, offset, timestamp_ms, key, value, unpack_headers(headers))


def begin_offset(connection: sqlite3.Connection, place_id: int, end: int) -> int:
    """First offset that exists, or `end`."""
    base = place_id << OFFSET_BITS
    sql = "SELECT id FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 1"
    rows = connection.execute(sql, (base, base + end)).fetchall()
    return int(rows[0][0]) & OFFSET_MASK if rows else end


def offset_for_time(connection: sqlite3.Connection, place_id: int, end: int, timestamp_ms: int) -> int | None:
    """First offset whose record has this timestamp or a later one.

    `latest_ms` never falls along a partition, so the place is found by bisection. Where the record that raised it was deleted,
    the answer lies further on: hence the last query.
    """
    base = place_id << OFFSET_BITS
    low, high = 0, end
    sql = "SELECT id, latest_ms FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 1"
    while low < high:
        middle = (low + high) // 2
        rows = connection.execute(sql, (base | middle, base + high)).fetchall()
        if rows and rows[0][1] < timestamp_ms:
            low = (rows[0][0] & OFFSET_MASK) + 1
        else:
            high = middle
    sql = "SELECT id FROM records WHERE id >= ? AND id < ? AND timestamp_ms >= ? ORDER BY id LIMIT 1"
    rows = connection.execute(sql, (base | low, base + end, timestamp_ms)).fetchall()
    return int(rows[0][0]) & OFFSET_MASK if rows else None


def delete_before(connection: sqlite3.Connection, place_id: int, before: int, limit: int) -> int:
    """Delete up to `limit` of the oldest records below `before`, and return how many."""
    base = place_id << OFFSET_BITS
    sql = "DELETE FROM records WHERE id IN (SELECT id FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)"
    return connection.execute(sql, (base, base + before, limit)).rowcount
