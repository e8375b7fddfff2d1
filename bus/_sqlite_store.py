"""One connection to the bus's file, used by one thread at a time."""

from __future__ import annotations

import itertools
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from refold.bus import _sqlite_groups as groups
from refold.bus import _sqlite_records as rows
from refold.bus._groups import Group, Member
from refold.bus._process import Process, boot, this_process
from refold.bus._sqlite_cleaner import clean
from refold.bus._sqlite_file import as_ours, connect, translated
from refold.bus._sqlite_lock import WriteLock
from refold.bus._sqlite_read_only import NoLock
from refold.bus._sqlite_records import DAMAGED
from refold.bus._sqlite_watch import Watch
from refold.bus._store import Draft, Fetched, OutcomeUnknown, check_place, no_topic
from refold.bus.contract import Committed, Place, Record, TopicSpec
from refold.schemas.errors import IntegrityError, RefoldError, StorageFullError, TryAgainError

CLEAN_EVERY_S = 30.0
CLEAN_RECORDS = 256
"""Work that one flush may do for the cleaner: at 1 MB a record some 50 ms."""

WAL_BOUND_BYTES = 256 << 20
"""Above this the log is emptied even if writers must wait for readers; by itself it stays near SQLite's 1,000 pages."""


@dataclass(slots=True)
class Shared:
    """What all connections of one bus object share."""

    path: Path
    lock: WriteLock | NoLock
    clock: Callable[[], float]
    wall: Callable[[], float]
    delete_retention_s: float
    max_size_bytes: int | None
    clean_every_s: float
    clean_at: float
    watch: Watch


class SqliteStore:
    """A `Store` on the bus's file. `durable` False for those who write nothing but group affairs."""

    def __init__(self, shared: Shared, *, durable: bool) -> None:
        self._shared = shared
        self._connection = connect(shared.path, durable=durable, max_size_bytes=shared.max_size_bytes)
        self._specs: dict[str, TopicSpec] = {}
        self._place_ids: dict[Place, int] = {}
        self._closed = False
        shared.watch.open()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view; it ends with the block, because an open one keeps the write-ahead log from being emptied.

        Within a transaction of our own it is that transaction's view.
        """
        if self._connection.in_transaction:
            yield self._connection
            return
        with translated(self._shared.path, "read"):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def writing(self, timeout_s: float = 30.0) -> Iterator[sqlite3.Connection]:
        """One transaction, all or nothing.

        1. Wait in the writers' queue, then begin.
        2. The block. Whatever it raises, nothing was written.
        3. Commit. Full or busy means that nothing was written; any other failure leaves it open (`OutcomeUnknown`), because a
           commit whose fsync failed may still be found in the log after a crash.
        """
        # 1.
        with self._shared.lock.hold(timeout_s):
            with translated(self._shared.path, "write to"):
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                # 2.
                with translated(self._shared.path, "write to"):
                    yield self._connection
                # 3.
                self._commit()
            except BaseException:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            ours = as_ours(error, self._shared.path, "commit to")
            if isinstance(ours, StorageFullError | TryAgainError):
                raise ours from error
            hint = "read the end of the log before writing this again"
            raise OutcomeUnknown(f"The commit failed: {error}", path=self._shared.path, hint=hint) from error

    def topics(self) -> dict[str, TopicSpec]:
        """All topics by name."""
        with self.reading() as connection:
            self._load_topics(connection)
        return dict(self._specs)

    def _load_topics(self, connection: sqlite3.Connection) -> None:
        sql = "SELECT name, partitions, compacted, retention_s FROM topics ORDER BY name"
        for name, partitions, compacted, retention_s in connection.execute(sql).fetchall():
            if not isinstance(name, str):
                raise IntegrityError("the bus file holds a topic without a name", path=self._shared.path, hint=DAMAGED)
            self._specs[name] = TopicSpec(name, partitions, bool(compacted), retention_s)
        sql = "SELECT name, partition, place_id FROM partitions JOIN topics USING (topic_id)"
        for name, partition, place_id in connection.execute(sql).fetchall():
            self._place_ids[Place(name, partition)] = place_id

    def create_topics(self, choose: Callable[[Mapping[str, TopicSpec]], Sequence[TopicSpec]]) -> None:
        """Create the topics that `choose` picks, given those that are there."""
        with self.writing() as connection:
            self._load_topics(connection)
            for spec in choose(self._specs):
                sql = "INSERT INTO topics (name, partitions, compacted, retention_s) VALUES (?, ?, ?, ?)"
                topic = connection.execute(sql, (spec.name, spec.partitions, spec.compacted, spec.retention_s)).lastrowid
                places = [(topic, partition) for partition in range(spec.partitions)]
                connection.executemany("INSERT INTO partitions (topic_id, partition) VALUES (?, ?)", places)

    def spec(self, topic: str) -> TopicSpec:
        if topic not in self._specs and topic not in self.topics():
            raise no_topic(topic)
        return self._specs[topic]

    def place_id(self, place: Place) -> int:
        """Return the place's number in the file."""
        if place not in self._place_ids:
            check_place(self.spec(place.topic), place.partition)
        if place not in self._place_ids:
            # Their names are kept twice, in a table and in its index.
            raise IntegrityError("the bus file has no such partition", **place._asdict(), path=self._shared.path, hint=DAMAGED)
        return self._place_ids[place]

    def append(self, drafts: Sequence[Draft], timeout_s: float) -> list[int]:
        batch = rows.Batch(drafts)
        place_ids = {draft.place: self.place_id(draft.place) for draft in drafts}
        with self.writing(timeout_s) as connection:
            offsets = batch.write(connection, place_ids)
        self._shared.watch.tell((place_ids[draft.place], offset + 1) for draft, offset in zip(drafts, offsets, strict=True))
        # The batch is durable: what the chores below run into must not look like its failure, and meets the next flush anyway.
        with suppress(RefoldError):
            self._chores()
        return offsets

    def fetch(self, positions: Sequence[tuple[Place, int]], max_records: int, max_bytes: int) -> Fetched:
        records: list[Record] = []
        after: dict[Place, int] = {}
        served = 0
        if not positions:
            return Fetched(records, after, served)
        wanted = [(place, self.place_id(place), position) for place, position in positions]
        with self.reading() as connection:
            ends = dict(connection.execute("SELECT place_id, next_offset FROM partitions").fetchall())
            for looked_at, (place, place_id, position) in enumerate(wanted, 1):
                end = ends.get(place_id, 0)
                if position >= end:
                    continue
                count = max_records - len(records)
                found, after[place] = rows.read(connection, place, place_id, position, end, count, max_bytes, force=not records)
                records += found
                max_bytes -= sum(record.size_bytes for record in found)
                served = looked_at if found else served
                if len(records) >= max_records or after[place] < end:
                    break
        return Fetched(records, after, served)

    def begin_offset(self, place: Place) -> int:
        place_id = self.place_id(place)
        with self.reading() as connection:
            return rows.begin_offset(connection, place_id, _end(connection, place_id))

    def end_offset(self, place: Place) -> int:
        place_id = self.place_id(place)
        with self.reading() as connection:
            return _end(connection, place_id)

    def offset_for_time(self, place: Place, timestamp_ms: int) -> int | None:
        """First offset whose record has this timestamp or a later one."""
        place_id = self.place_id(place)
        with self.reading() as connection:
            return rows.offset_for_time(connection, place_id, _end(connection, place_id), timestamp_ms)

    def delete_before(self, place: Place, before_offset: int) -> None:
        """Delete all records below an offset, in batches that each are one transaction."""
        place_id = self.place_id(place)
        for _ in itertools.count():
            with self.writing() as connection:
                before = min(before_offset, _end(connection, place_id))
                removed = rows.delete_before(connection, place_id, before, CLEAN_RECORDS)
                connection.execute("DELETE FROM newest WHERE place_id = ? AND offset < ?", (place_id, before))
            if removed < CLEAN_RECORDS:
                return

    def clean_some(self, topic: str | None = None, limit: int = CLEAN_RECORDS) -> tuple[int, int]:
        """Do a bounded piece of cleaning; returns records looked at (`limit` if more is to do) and records removed."""
        grace_ms = int(self._shared.delete_retention_s * 1000)
        worked = removed = 0
        with self.writing() as connection:
            self._load_topics(connection)
            for place, place_id in self._place_ids.items():
                spec = self._specs[place.topic]
                if topic in (None, place.topic) and (spec.compacted or spec.retention_s is not None) and worked < limit:
                    done = clean(connection, place_id, spec, self.now_ms(), grace_ms, limit - worked)
                    worked, removed = worked + done[0], removed + done[1]
        return worked, removed

    def _chores(self) -> None:
        if self.now() >= self._shared.clean_at:
            worked, _ = self.clean_some()
            self._shared.clean_at = self.now() + (self._shared.clean_every_s if worked < CLEAN_RECORDS else 0.0)
        log = f"{self._shared.path}-wal"
        if os.path.exists(log) and os.path.getsize(log) > WAL_BOUND_BYTES:
            with self._shared.lock.hold(), translated(self._shared.path, "check-point"):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def now(self) -> float:
        return self._shared.clock()

    def now_ms(self) -> int:
        return int(self._shared.wall() * 1000)

    def wait(self, positions: Mapping[Place, int], group: tuple[str, int] | None, timeout_s: float) -> None:
        """Return when there is something to fetch or the group has changed; other processes' writes show within 5 ms."""
        wanted = {self.place_id(place): position for place, position in positions.items()}
        self._shared.watch.wait(wanted, group, timeout_s)

    def new_member(self) -> tuple[str, str]:
        return f"{os.getpid()}-{uuid.uuid4().hex}", str(this_process())

    def is_gone(self, member: Member) -> bool:
        process = Process.parse(member.process)
        return process.boot != boot() or member.lease_until <= self.now() or process.is_gone()

    def generation(self, group: str) -> int:
        with translated(self._shared.path, "read"):
            return groups.load_generation(self._connection, group)

    def group(self, name: str) -> Group:
        with translated(self._shared.path, "read"):
            return groups.load_group(self._connection, name)

    def change_group(
        self, name: str, change: Callable[[Group], Group], offsets: Mapping[Place, Committed] | None = None
    ) -> Group:
        stored = {self.place_id(place): at for place, at in (offsets or {}).items()}
        with self.writing() as connection:
            before = groups.load_group(connection, name)
            after = change(before)
            if after != before:
                groups.save_group(connection, name, after)
            groups.save_offsets(connection, name, stored)
        self._shared.watch.tell(generations=[(name, after.generation)])
        return after

    def committed(self, group: str, place: Place) -> Committed | None:
        place_id = self.place_id(place)
        with translated(self._shared.path, "read"):
            return groups.load_offset(self._connection, group, place_id)

    def lag(self, group: str) -> dict[Place, int]:
        """End offset − stored next offset."""
        with translated(self._shared.path, "read"):
            return groups.load_lag(self._connection, group)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._connection.close()
            self._shared.watch.close()


def _end(connection: sqlite3.Connection, place_id: int) -> int:
    rows = connection.execute("SELECT next_offset FROM partitions WHERE place_id = ?", (place_id,)).fetchall()
    if len(rows) != 1:
        raise IntegrityError("the bus file lost a partition", hint=DAMAGED)
    return int(rows[0][0])
