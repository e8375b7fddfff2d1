"""The bus's file: how it is opened, what tables it has, and what SQLite's errors mean to us.

A record's id is its place in the upper 23 bits and its offset in the lower 40, so that the table itself is the index: a
partition is one range of ids, and nothing else has to be written or looked up. 10^12 records fit a partition.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from refold.bus._sqlite_read_only import COPY, is_read_only, opening
from refold.bus._sqlite_schema import strangeness
from refold.schemas.errors import BusError, ConfigurationError, IntegrityError, RefoldError, StorageFullError, TryAgainError

APPLICATION_ID = 0x52464C44  # "RFLD"
SCHEMA_VERSION = 1
OFFSET_BITS = 40
OFFSET_MASK = (1 << OFFSET_BITS) - 1

PAGE_BYTES = 65_536
"""SQLite's largest page: with 1 MB values twice as fast to read and write as the default of 4 KiB."""

BUSY_TIMEOUT_S = 10.0
"""For the waits that the writers' queue does not cover: recovery after a crash, a closing peer, tools such as `sqlite3`."""

MOST_ROW_BYTES = 16 << 20
"""Largest row that is read or written: a record takes 1 MiB, the members of a group 200 bytes each."""

_SCHEMA = f"""
CREATE TABLE topics (
    topic_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    compacted INTEGER NOT NULL,
    retention_s REAL
);
CREATE TABLE partitions (
    place_id INTEGER PRIMARY KEY,
    topic_id INTEGER NOT NULL REFERENCES topics,
    partition INTEGER NOT NULL,
    next_offset INTEGER NOT NULL DEFAULT 0,
    latest_ms INTEGER NOT NULL DEFAULT 0,       -- largest timestamp so far
    cleaned_offset INTEGER NOT NULL DEFAULT 0   -- compaction has seen everything below
);
CREATE TABLE records (
    id INTEGER PRIMARY KEY,                     -- place_id << {OFFSET_BITS} | offset
    timestamp_ms INTEGER NOT NULL,
    latest_ms INTEGER NOT NULL,                 -- largest timestamp up to here: makes looking up a time a binary search
    key BLOB,
    headers BLOB,
    value BLOB                                  -- last, so that reading the others never touches its overflow pages
);
CREATE TABLE newest (                           -- of compacted topics, as far as cleaned
    place_id INTEGER NOT NULL,
    key BLOB NOT NULL,
    offset INTEGER NOT NULL,
    tombstone_ms INTEGER,                       -- when compaction first saw the tombstone
    PRIMARY KEY (place_id, key)
) WITHOUT ROWID;
CREATE INDEX tombstones ON newest (place_id, tombstone_ms) WHERE tombstone_ms IS NOT NULL;
CREATE TABLE groups (
    name TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    membership TEXT NOT NULL                    -- JSON
) WITHOUT ROWID;
CREATE TABLE group_offsets (
    group_name TEXT NOT NULL,
    place_id INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    PRIMARY KEY (group_name, place_id)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


def connect(path: Path, *, durable: bool = True, max_size_bytes: int | None = None) -> sqlite3.Connection:
    """Open a connection to a prepared file.

    Parameters
    ----------
    durable
        False lets a power failure (never a crash of the process) undo the newest transactions of this connection; group
        memberships and positions can bear that, records cannot.
    """
    with translated(path, "open"):
        connection = _connect(path)
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        # Zeroes what is deleted only where the page is written anyway: full zeroing (Debian's default) is ten times slower.
        connection.execute("PRAGMA secure_delete = FAST")
        connection.execute("PRAGMA cache_size = -1024")
        connection.execute(f"PRAGMA journal_size_limit = {128 << 20}")
        if max_size_bytes is not None:
            connection.execute(f"PRAGMA max_page_count = {max(1, max_size_bytes // PAGE_BYTES)}")
        return connection


def is_prepared(path: Path) -> bool:
    """Return whether the file is a bus of ours that is ready for use.

    Raises
    ------
    ConfigurationError
        It is something else, or from a newer Refold.
    """
    with translated(path, "open"):
        connection = _connect(path)
        try:
            # One look at all of it: between two, another process may have made the file a bus.
            connection.execute("BEGIN")
            [(application_id,)] = connection.execute("PRAGMA application_id").fetchall()
            [(version,)] = connection.execute("PRAGMA user_version").fetchall()
            [(tables,)] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            [(journal,)] = connection.execute("PRAGMA journal_mode").fetchall()
            ours = application_id == APPLICATION_ID and version == SCHEMA_VERSION
            strange = strangeness(connection, _SCHEMA) if ours else ""
        finally:
            connection.close()
    if application_id != APPLICATION_ID and (application_id or tables):
        raise ConfigurationError("the file is a SQLite database, but not a Refold bus", path=path, hint="choose another file")
    if version > SCHEMA_VERSION:
        hint = f"this one reads versions up to {SCHEMA_VERSION}; install the newer one"
        raise ConfigurationError("the bus was written by a newer Refold", path=path, version=version, hint=hint)
    if strange:
        hint = "somebody changed the file; do not use it, or copy its tables into a new one"
        raise ConfigurationError(f"the bus file holds what no Refold wrote: {strange}", path=path, hint=hint)
    return bool(application_id == APPLICATION_ID and (journal == "wal" or is_read_only(path)))


def prepare(path: Path) -> None:
    """Make an empty file a bus; the caller holds the write lock. Idempotent.

    1. Page size and tables, in one transaction. A crash before its end leaves an empty file.
    2. The write-ahead log, which sticks to the file. A crash before it is made good by the next who opens the bus.
    """
    if is_prepared(path):
        return
    with translated(path, "create"):
        connection = _connect(path)
        try:
            # 1.
            [(tables,)] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            if not tables:
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            # 2.
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        finally:
            connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    # Each connection is used by one thread at a time, but not always by the one that opened it.
    uri = f"file:{quote(str(path))}?{opening(path) if is_read_only(path) else 'mode=rwc'}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_ROW_BYTES)
    # The file may be somebody else's: nothing in its schema may call a function, and no cell may reach out of its page.
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


@contextmanager
def translated(path: Path, doing: str) -> Iterator[None]:
    """Raise SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_ours(error, path, doing) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def as_ours(error: sqlite3.Error, path: Path, doing: str) -> RefoldError:
    """Return our error for one of SQLite's."""
    if "decode to UTF-8" in str(error):
        return _damaged(path, error)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    match str(name).split("_")[1] if str(name).startswith("SQLITE_") else "":
        case "FULL":
            return StorageFullError("the disk behind the bus is full", path=path, hint="free some space and try again")
        case "BUSY" | "LOCKED":
            hint = "a program other than Refold has it open, such as sqlite3 or a backup"
            return TryAgainError("the bus file is locked", path=path, hint=hint)
        case "NOTADB":
            return ConfigurationError("the file is not a SQLite database", path=path, hint="choose another file")
        case "TOOBIG":
            return IntegrityError(f"the bus file holds a row of more than {MOST_ROW_BYTES:,} bytes", path=path, cause=error)
        case "CORRUPT":
            return _damaged(path, error)
        case "READONLY" | "CANTOPEN" | "PERM" | "AUTH":
            hint = f"the file and its folder must be writable; where they are not, {COPY}"
            return ConfigurationError(f"cannot {doing} the bus file: {error}", path=path, hint=hint)
    return BusError(f"cannot {doing} the bus file: {error} ({name})", path=path, hint="see the system's log for disk errors")


def _damaged(path: Path, cause: Exception) -> IntegrityError:
    # Not what the file says itself: that may hold anything.
    said = cause if isinstance(cause, sqlite3.Error) and str(cause).isprintable() else type(cause).__name__
    return IntegrityError("the bus file is damaged", path=path, hint="copy it, then try sqlite3's .recover", cause=said)
