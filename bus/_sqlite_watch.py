"""Waiting for news in a bus file: one thread looks on behalf of all consumers of a bus object, and wakes only whom it concerns.

SQLite tells no one that another process has written, so somebody must look, every few milliseconds. Were every consumer to look
for itself, the threads of a process with many would spend their time handing Python's lock to each other (measured with twenty
clients in one process: 170,000 switches a second).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from refold.bus._sqlite_file import connect, translated
from refold.schemas.errors import RefoldError

_PAUSE_FIRST_S, _PAUSE_LAST_S, _PAUSE_GROWTH = 0.0005, 0.005, 1.3
_PAUSE_FAILED_S = 0.05


class _Waiter:
    """One consumer that waits: for records from these positions on (by place id), or for its group to change."""

    def __init__(self, positions: Mapping[int, int], group: tuple[str, int] | None) -> None:
        self.woken = threading.Event()
        self._positions = positions
        self._group = group

    def is_concerned(self, ends: Mapping[int, int], generations: Mapping[str, int]) -> bool:
        if self._group is not None and generations.get(self._group[0], 0) > self._group[1]:
            return True
        return any(ends.get(place_id, 0) > position for place_id, position in self._positions.items())


class Watch:
    """What is known of the ends of a bus file's partitions and of its groups' generations, and who waits for more.

    It opens a connection and starts a thread when somebody waits for the first time; both end when the last store that uses the
    file is closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._wanted = threading.Condition(self._mutex)
        self._ends: dict[int, int] = {}
        self._generations: dict[str, int] = {}
        self._waiters: set[_Waiter] = set()
        self._users = 0
        self._looker: _Looker | None = None
        self._is_resting = False

    def open(self) -> None:
        """Count a store that may wait."""
        with self._mutex:
            self._users += 1

    def close(self) -> None:
        """Count it no more; with the last one the thread ends."""
        with self._mutex:
            self._users -= 1
            looker = self._looker if self._users == 0 else None
            if looker is not None:
                looker.is_over, self._looker = True, None
                self._wanted.notify_all()
        if looker is not None:
            looker.join()

    def tell(self, ends: Iterable[tuple[int, int]] = (), generations: Iterable[tuple[str, int]] = ()) -> None:
        """Take in what was committed, and wake whom it concerns."""
        with self._mutex:
            # Not the greatest ever seen: a file that was put back from a copy has less, and waits go by what is there. What a
            # look saw just before a commit is set right by the next look.
            self._ends.update(ends)
            self._generations.update(generations)
            for waiter in self._waiters:
                if waiter.is_concerned(self._ends, self._generations):
                    waiter.woken.set()

    def wait(self, positions: Mapping[int, int], group: tuple[str, int] | None, timeout_s: float) -> None:
        """Return when a place has a record at its position or later, or the group another generation, or the time is over.

        Other processes' commits show within 5 ms, those of this bus object at once. May return early.
        """
        waiter = _Waiter(positions, group)
        with self._mutex:
            if waiter.is_concerned(self._ends, self._generations):
                return
            self._waiters.add(waiter)
            self._start()
        try:
            waiter.woken.wait(timeout_s)
        finally:
            with self._mutex:
                self._waiters.discard(waiter)

    def _start(self) -> None:
        if self._looker is None:
            self._looker = _Looker(self)
            self._looker.start()
        elif self._is_resting:
            self._wanted.notify_all()

    def look(self, looker: _Looker) -> None:
        """Look until the looker is told that it is over."""
        try:
            with translated(self._path, "read"):
                connection = connect(self._path, durable=False)
                try:
                    self._look_with(connection, looker)
                finally:
                    connection.close()
        except (RefoldError, TypeError):
            # Whoever waits finds the same when it reads, and says so; the next to wait has somebody look again. A damaged file
            # may hold other things than numbers.
            time.sleep(_PAUSE_FAILED_S)
        finally:
            self._end(looker)

    def _look_with(self, connection: sqlite3.Connection, looker: _Looker) -> None:
        seen, pause_s = -1, _PAUSE_FIRST_S
        while not looker.is_over:
            [(version,)] = connection.execute("PRAGMA data_version").fetchall()
            if version == seen:
                pause_s = min(pause_s * _PAUSE_GROWTH, _PAUSE_LAST_S)
            else:
                seen, pause_s = version, _PAUSE_FIRST_S
                ends = connection.execute("SELECT place_id, next_offset FROM partitions").fetchall()
                self.tell(ends, connection.execute("SELECT name, generation FROM groups").fetchall())
            self._pause(pause_s, looker)

    def _pause(self, pause_s: float, looker: _Looker) -> None:
        """Pause, and for as long as nobody waits."""
        with self._mutex:
            if not looker.is_over:
                self._is_resting = not self._waiters
                self._wanted.wait(None if self._is_resting else pause_s)
                self._is_resting = False

    def _end(self, looker: _Looker) -> None:
        with self._mutex:
            if self._looker is looker:
                self._looker = None
            for waiter in self._waiters:
                waiter.woken.set()


class _Looker(threading.Thread):
    """The thread that looks. `is_over` tells it to end; it is guarded by the watch's mutex."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(name="refold-bus-watch", daemon=True)
        self.is_over = False
        self._watch = watch

    def run(self) -> None:
        """Look on behalf of the others."""
        self._watch.look(self)
