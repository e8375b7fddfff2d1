"""Whether a bus file's tables are Refold's own and hold what they should: the file may have come from anywhere.

A trigger would run as Refold writes, a view or a generated column as it reads, a virtual table would call into an extension.
SQLite keeps no column to its type, so that a text may lie where an offset should: the small tables are looked through when the
file is opened, records as they are read (`refold.bus._sqlite_records`).
"""

from __future__ import annotations

import re
import sqlite3
from functools import lru_cache

_RUNS = ("trigger", "view")
_OWN = "sqlite_"

_SOUND = {
    "topics": """typeof(name) = 'text' AND typeof(partitions) = 'integer' AND typeof(compacted) = 'integer'
        AND typeof(retention_s) IN ('null', 'real', 'integer')
        AND partitions BETWEEN 1 AND 65536""",
    "partitions": """typeof(partition) = 'integer' AND typeof(next_offset) = 'integer' AND typeof(latest_ms) = 'integer'
        AND typeof(cleaned_offset) = 'integer' AND partition >= 0 AND place_id BETWEEN 1 AND (1 << 23) - 1
        AND next_offset BETWEEN 0 AND (1 << 40) - 1""",
    "groups": "typeof(name) = 'text' AND typeof(generation) = 'integer' AND typeof(membership) = 'text'",
    "group_offsets": "typeof(next_offset) = 'integer' AND typeof(metadata) = 'text'",
}


def strangeness(connection: sqlite3.Connection, schema: str) -> str:
    """Return what is not as Refold makes it, or ""."""
    found = {name: (kind, _plain(sql)) for kind, name, sql in _objects(connection)}
    expected = _expected(schema)
    for name, (kind, sql) in sorted(found.items()):
        if kind in _RUNS or sql.startswith("CREATE VIRTUAL"):
            return f"the {kind} {name!r}"
        if name in expected and expected[name] != (kind, sql):
            return f"another {kind} {name!r}"
    if missing := sorted(expected.keys() - found.keys()):
        return f"no {missing[0]!r}"
    for table, sound in _SOUND.items():
        if connection.execute(f"SELECT 1 FROM {table} WHERE NOT coalesce({sound}, 0) LIMIT 1").fetchall():
            return f"a row of {table!r} with values of other kinds"
    return ""


@lru_cache(maxsize=2)
def _expected(schema: str) -> dict[str, tuple[str, str]]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(schema)
        return {name: (kind, _plain(sql)) for kind, name, sql in _objects(connection)}
    finally:
        connection.close()


def _objects(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
    return [(str(kind), str(name), str(sql)) for kind, name, sql in rows if not str(name).startswith(_OWN)]


def _plain(sql: str) -> str:
    """Return a statement without its comments and line breaks: those may change from version to version."""
    return " ".join(re.sub(r"--[^\n]*", " ", sql).split())
