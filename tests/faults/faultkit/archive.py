"""Everything that ever lay in a topic: what is deleted is copied first, so that a checker sees all that clients sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from refold.bus.contract import Bus, Place
from refold.bus.topics import is_chunk
from tests.checker import Kept, read_place, read_topic

_SCHEMA = "CREATE TABLE IF NOT EXISTS records (topic, partition, offset, value, PRIMARY KEY (topic, partition, offset))"


def archiver(path: Path, short: str = "updates") -> Callable[[Bus, Place, int], None]:
    """Return what copies a topic's records, chunks left out, before they are deleted."""

    def copy(bus: Bus, place: Place, before: int) -> None:
        if not place.topic.endswith(f".{short}"):
            return
        rows = [
            (place.topic, record.partition, record.offset, record.value or b"")
            for record in read_place(bus, place)
            if record.offset < before and not is_chunk(record.headers)
        ]
        connection = sqlite3.connect(path, timeout=30)
        with connection:
            connection.execute(_SCHEMA)
            connection.executemany("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)", rows)
        connection.close()

    return copy


def all_events(bus: Bus, topic: str, path: Path | None) -> list[Kept]:
    """Return every event record that ever lay in a topic, chunks left out, by partition and offset."""
    # The topic first: what is deleted meanwhile is in the archive by then.
    there = [record for record in read_topic(bus, topic) if not is_chunk(record.headers)]
    found = {(record.partition, record.offset): record.value or b"" for record in there}
    if path is not None and path.exists():
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.execute(_SCHEMA)  # Its writer may have made the file and not come to the table yet.
            rows = connection.execute("SELECT partition, offset, value FROM records WHERE topic = ?", (topic,)).fetchall()
        found |= {(partition, offset): value for partition, offset, value in rows}
    return [Kept(*place, value) for place, value in sorted(found.items())]
