"""The cleaner: retention by age, compaction by key, end of tombstones; a bounded piece of work at a time.

Compaction reads each record once: `newest` holds, for every key seen so far, where its newest record is, so that a newer one
finds what it replaces. Freed pages are used again by later records; the file does not shrink, but does not grow for ever
either.
"""

from __future__ import annotations

import sqlite3

from refold.bus._sqlite_file import OFFSET_BITS, OFFSET_MASK
from refold.bus._sqlite_records import delete_before, offset_for_time
from refold.bus.contract import TopicSpec


def clean(
    connection: sqlite3.Connection, place_id: int, spec: TopicSpec, now_ms: int, grace_ms: int, limit: int
) -> tuple[int, int]:
    """Do up to `limit` records' worth of work on a partition, within the caller's transaction.

    Returns
    -------
    worked, removed
        Records looked at, below `limit` when nothing is left to do; and records deleted.
    """
    worked = removed = 0
    if spec.retention_s is not None:
        worked = removed = _expire(connection, place_id, now_ms - int(spec.retention_s * 1000), limit)
    if spec.compacted and worked < limit:
        seen, replaced = _compact(connection, place_id, now_ms, limit - worked)
        worked, removed = worked + seen, removed + replaced
    if spec.compacted and worked < limit:
        ended = _end_tombstones(connection, place_id, now_ms - grace_ms, limit - worked)
        worked, removed = worked + ended, removed + ended
    return worked, removed


def _expire(connection: sqlite3.Connection, place_id: int, before_ms: int, limit: int) -> int:
    [(end,)] = connection.execute("SELECT next_offset FROM partitions WHERE place_id = ?", (place_id,)).fetchall()
    kept_from = offset_for_time(connection, place_id, end, before_ms)
    before = end if kept_from is None else kept_from
    removed = delete_before(connection, place_id, before, limit)
    if removed:
        connection.execute("DELETE FROM newest WHERE place_id = ? AND offset < ?", (place_id, before))
    return removed


def _compact(connection: sqlite3.Connection, place_id: int, now_ms: int, limit: int) -> tuple[int, int]:
    base = place_id << OFFSET_BITS
    sql = "SELECT cleaned_offset, next_offset FROM partitions WHERE place_id = ?"
    [(cleaned, end)] = connection.execute(sql, (place_id,)).fetchall()
    if cleaned == end:
        return 0, 0
    rows = connection.execute(
        "SELECT id, key, value IS NULL FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        (base | cleaned, base + end, limit),
    ).fetchall()
    removed = 0
    for record_id, key, is_tombstone in rows:
        found = connection.execute("SELECT offset FROM newest WHERE place_id = ? AND key = ?", (place_id, key)).fetchall()
        if found:
            removed += connection.execute("DELETE FROM records WHERE id = ?", (base | found[0][0],)).rowcount
        row = (place_id, key, record_id & OFFSET_MASK, now_ms if is_tombstone else None)
        connection.execute("INSERT OR REPLACE INTO newest VALUES (?, ?, ?, ?)", row)
    cleaned = end if len(rows) < limit else (rows[-1][0] & OFFSET_MASK) + 1
    connection.execute("UPDATE partitions SET cleaned_offset = ? WHERE place_id = ?", (cleaned, place_id))
    return len(rows), removed


def _end_tombstones(connection: sqlite3.Connection, place_id: int, before_ms: int, limit: int) -> int:
    sql = "SELECT key, offset FROM newest WHERE place_id = ? AND tombstone_ms <= ? LIMIT ?"
    rows = connection.execute(sql, (place_id, before_ms, limit)).fetchall()
    connection.executemany("DELETE FROM records WHERE id = ?", [(place_id << OFFSET_BITS | offset,) for _, offset in rows])
    connection.executemany("DELETE FROM newest WHERE place_id = ? AND key = ?", [(place_id, key) for key, _ in rows])
    return len(rows)
