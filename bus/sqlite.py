"""The embedded bus: one SQLite file, used by any number of processes on one machine at once.

Beside FILE lie FILE-lock (the writers' queue) and, while someone has it open, FILE-wal and FILE-shm. Put it on a local disk:
network file systems neither lock nor share memory. Where nothing can be written, a bus can be read (`_sqlite_read_only`).
`_sqlite_file` has the tables, `_sqlite_store` the transactions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from refold.bus._consumer import LogConsumer
from refold.bus._producer import QueueProducer
from refold.bus._sqlite_examination import examine_file, remedy
from refold.bus._sqlite_file import is_prepared, prepare
from refold.bus._sqlite_lock import LEASE_S, WriteLock
from refold.bus._sqlite_read_only import NoLock, is_read_only
from refold.bus._sqlite_store import CLEAN_EVERY_S, CLEAN_RECORDS, Shared, SqliteStore
from refold.bus._sqlite_watch import Watch
from refold.bus._store import check_deletable, check_specs
from refold.bus._url import sqlite_url
from refold.bus.contract import Committed, Place, TopicSpec
from refold.bus.examination import examine_specs
from refold.bus.symptoms import Symptom
from refold.schemas.errors import ConfigurationError, NotFoundError, UsageError


class SqliteBus:
    """A bus in a file.

    Parameters
    ----------
    path
        The file.
    federation
        Goes into `url`; the bus itself makes no use of it.
    create
        Make the file if it is not there.
    clock, wall
        Seconds, for leases and for timestamps; the first must be the same in all processes, hence the system's monotonic clock.
    delete_retention_s
        How long the cleaner keeps a tombstone after it first saw it.
    max_size_bytes
        Let the file grow to this size only; writing then raises StorageFullError.
    lease_s
        How long a process may be stopped while it holds the write lock, before others end it.
    clean_every_s
        How often a producer that flushes does some of the cleaner's work; infinity leaves it to `compact`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        federation: str | None = None,
        create: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        delete_retention_s: float = 86_400.0,
        max_size_bytes: int | None = None,
        lease_s: float = LEASE_S,
        clean_every_s: float = CLEAN_EVERY_S,
    ) -> None:
        self._path = Path(path).absolute()
        self._url = sqlite_url(self._path, federation)
        _check_path(self._path, create)
        lock: WriteLock | NoLock = NoLock(self._path)
        if not is_read_only(self._path):
            lock = WriteLock(self._path.with_name(self._path.name + "-lock"), lease_s=lease_s)
        if not self._path.exists() or not is_prepared(self._path):
            with lock.hold():
                prepare(self._path)
        self._shared = Shared(
            self._path,
            lock,
            clock,
            wall,
            delete_retention_s,
            max_size_bytes,
            clean_every_s,
            clock() + clean_every_s,
            Watch(self._path),
        )
        self._store = SqliteStore(self._shared, durable=True)
        # The bus's own connection serves all threads in turn; producers and consumers have theirs.
        self._mutex = threading.Lock()
        self._closed = False

    @property
    def url(self) -> str:
        """The URL that opens it again, from any folder."""
        return self._url

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def create_topics(self, specs: Iterable[TopicSpec]) -> None:
        """Create what is not there. Idempotent; all or nothing."""
        wanted = list(specs)
        with self._mutex:
            self._open_store()
            if check_specs(wanted, self._store.topics()):
                self._store.create_topics(lambda present: check_specs(wanted, present))

    def topics(self) -> dict[str, TopicSpec]:
        """All topics by name."""
        with self._mutex:
            return self._open_store().topics()

    def producer(self, *, max_in_flight_bytes: int = 16 << 20) -> QueueProducer:
        """Open a producer."""
        self._check_open()
        return QueueProducer(SqliteStore(self._shared, durable=True), max_in_flight_bytes)

    def consumer(
        self,
        *,
        group: str | None = None,
        instance: str | None = None,
        max_in_flight_bytes: int = 16 << 20,
        session_timeout_s: float = 10.0,
    ) -> LogConsumer:
        """Open a consumer."""
        self._check_open()
        return LogConsumer(SqliteStore(self._shared, durable=False), group, instance, max_in_flight_bytes, session_timeout_s)

    def begin_offset(self, place: Place) -> int:
        """First offset that still exists, or the end."""
        with self._mutex:
            return self._open_store().begin_offset(place)

    def end_offset(self, place: Place) -> int:
        """Offset of the next record."""
        with self._mutex:
            return self._open_store().end_offset(place)

    def offset_for_time(self, place: Place, timestamp_ms: int) -> int | None:
        """First offset whose record has this timestamp or a later one."""
        with self._mutex:
            return self._open_store().offset_for_time(place, timestamp_ms)

    def delete_records(self, place: Place, before_offset: int) -> None:
        """Delete every record below `before_offset`, in batches. Their room is used again; the file does not shrink."""
        with self._mutex:
            check_deletable(self._open_store().spec(place.topic))
            self._store.delete_before(place, before_offset)

    def compact(self, topic: str | None = None) -> int:
        """Apply retention and compaction to one topic or all, and return how many records went.

        Producers do a little of this now and then, when they flush.
        """
        removed = 0
        while True:
            with self._mutex:
                store = self._open_store()
                if topic is not None:
                    store.spec(topic)
                worked, gone = store.clean_some(topic)
            removed += gone
            if worked < CLEAN_RECORDS:
                return removed

    def committed(self, group: str, place: Place) -> Committed | None:
        """The group's stored position, or None."""
        with self._mutex:
            return self._open_store().committed(group, place)

    def lag(self, group: str) -> dict[Place, int]:
        """End offset − stored next offset, for each place where the group stored a position."""
        with self._mutex:
            return self._open_store().lag(group)

    def examine(self, specs: Iterable[TopicSpec], *, thorough: bool = False) -> list[Symptom]:
        """Look at disk, file and topics."""
        return [*examine_file(self._path, thorough=thorough), *examine_specs(specs, self.topics(), remedy)]

    def _open_store(self) -> SqliteStore:
        self._check_open()
        return self._store

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the bus is closed", path=self._path)

    def close(self) -> None:
        """Let go. Producers and consumers that are open stay usable. Idempotent."""
        with self._mutex:
            if not self._closed:
                self._closed = True
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_path(path: Path, create: bool) -> None:
    if path.is_dir():
        raise ConfigurationError("the bus file is a folder", path=path, hint="name a file in it")
    if not path.parent.is_dir():
        raise ConfigurationError("the bus file's folder is not there", path=path, hint=f"make {path.parent} first")
    if not create and not path.exists():
        raise NotFoundError("no such bus file", path=path, hint="check the name, or create the federation first")
    if not create and path.is_file() and path.stat().st_size == 0:
        # Somebody else's, or of a process that died while it made a bus: whoever only reads makes none of it.
        raise NotFoundError("the bus file is empty", path=path, hint="check the name, or create the federation first")
