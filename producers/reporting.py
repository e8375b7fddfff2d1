"""What a node's heartbeats tell beside that it lives: measures, the bus as its own beats find it, progress, its log.

One reporter belongs to one heartbeat thread. The program's thread calls `progress` and `watch`; the heartbeat's asks for the
`condition` before each beat and says afterwards whether it was acknowledged.
"""

from __future__ import annotations

import logging
import math
import operator
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Literal, SupportsFloat, SupportsIndex, TypedDict, Unpack

from refold.bus.clock import Clock
from refold.producers.logs.follower import LogFollower
from refold.producers.logs.handler import WatchHandler
from refold.producers.logs.watch import LogWatch
from refold.producers.measuring import Meter
from refold.schemas.condition import Condition, Measures, Progress
from refold.schemas.errors import ConfigurationError, UsageError

log = logging.getLogger("refold.heartbeat")

BEAT_BYTES = 2_000
"""A beat with all that it tells; the log's digest gets what the rest leaves."""

DIGEST_BYTES = 1_300
REMEMBERED_BEATS = 32
MEASURE_S = 1.0
"""Beats that come faster tell the same measures again: to measure costs more than to send."""

COUNTS: tuple[Literal["epoch", "epochs", "batch", "batches"], ...] = ("epoch", "epochs", "batch", "batches")

FOLLOWED_TURNS = 8
"""How often a file is read before one beat; a reader that falls behind goes on after it."""


class Said(TypedDict, total=False):
    """What a program may say of its progress; what it leaves out is not told.

    ``epochs`` and ``batches`` are how many there are to be: of epochs in the task, of batches in an epoch.
    """

    epoch: SupportsIndex
    epochs: SupportsIndex
    batch: SupportsIndex
    batches: SupportsIndex
    loss: SupportsFloat


class Reporter:
    """Puts a node's condition together.

    Parameters
    ----------
    folder
        On the file system whose room matters; no measures of the machine if None.
    """

    def __init__(self, clock: Clock, folder: Path | None = None) -> None:
        self._clock = clock
        self._meter = None if folder is None else Meter(folder, clock)
        self._measured: Measures = ()
        self._measured_at_s = -math.inf
        self._said: tuple[Progress, float] | None = None
        self._latencies_s: deque[float] = deque(maxlen=REMEMBERED_BEATS)
        self._losses: deque[bool] = deque(maxlen=REMEMBERED_BEATS)
        self._left_out = 0
        self._watch: LogWatch | None = None
        self._followers: list[LogFollower] = []
        self._handlers: list[tuple[logging.Logger, WatchHandler]] = []
        self._lock = threading.Lock()

    # -- for the program -----------------------------------------------------------------------------------------------------

    def progress(self, **said: Unpack[Said]) -> None:
        """Take note of how far the program is. Cheap enough for every batch.

        Raises
        ------
        UsageError
            A count is negative or no whole number, or the loss no number.
        """
        try:
            counts = {name: operator.index(count) for name in COUNTS if (count := said.get(name)) is not None}
            loss = None if (told := said.get("loss")) is None else float(told)
        except (TypeError, ValueError) as error:
            raise UsageError(f"progress is told in whole numbers, and a loss as a number: {error}") from error
        if not all(0 <= count < 2**63 for count in counts.values()):
            raise UsageError("progress is told in numbers from 0 on")
        diverged = loss is not None and not math.isfinite(loss)
        epoch, epochs, batch, batches = map(counts.get, COUNTS)
        progress = Progress(epoch, epochs, batch, batches, None if diverged else loss, diverged, 0)
        self._said = (progress, self._clock.monotonic_s())

    def forget_progress(self) -> None:
        """Begin anew: another task."""
        self._said = None

    def watch(self, file: str | Path | None = None, *, logger: str = "", from_start: bool = False) -> None:
        """Tell from now on what a file, or else a logger of Python's `logging` and those below it, came to.

        Parameters
        ----------
        from_start
            Begin with what is in the file.

        Raises
        ------
        ConfigurationError
            The file is no regular one, or may not be read.
        """
        with self._lock:
            self._watch = self._watch or LogWatch(clock=self._clock)
            if file is not None:
                self._followers.append(LogFollower(file, self._watch, from_start=from_start, clock=self._clock))
                return
            handler = WatchHandler(self._watch)
            self._handlers.append((logging.getLogger(logger), handler))
            logging.getLogger(logger).addHandler(handler)

    # -- for the heartbeat ---------------------------------------------------------------------------------------------------

    def condition(self, lateness_s: float, room_bytes: int) -> Condition:
        """Return what to tell now, in at most so many bytes unless the measures alone take more.

        Parameters
        ----------
        lateness_s
            How much later than planned the beat is made.
        """
        bare = Condition(self._measures(lateness_s), self._left_out, self._progress(), None)
        with self._lock:
            if self._watch is None:
                return bare
            self._follow()
            digest = self._watch.digest(min(DIGEST_BYTES, room_bytes - _size(bare)))
        return replace(bare, log=digest)

    def acknowledged(self, latency_s: float) -> None:
        """Take note that the beat with the last condition arrived, after so long."""
        self._latencies_s.append(latency_s)
        self._losses.append(False)
        if self._watch is not None:
            self._watch.confirm()

    def lost(self) -> None:
        """Take note that it could not be sent, or that nobody said that it arrived."""
        self._losses.append(True)
        self._left_out += 1

    def begin_session(self) -> None:
        """Count the beats left out anew."""
        self._left_out = 0

    def close(self) -> None:
        """Watch no more."""
        with self._lock:
            for logger, handler in self._handlers:
                logger.removeHandler(handler)
            for follower in self._followers:
                follower.close()
            self._handlers, self._followers = [], []

    def _measures(self, lateness_s: float) -> Measures:
        now_s = self._clock.monotonic_s()
        if self._meter is not None and now_s - self._measured_at_s >= MEASURE_S:
            self._measured, self._measured_at_s = self._meter.measure(), now_s
        found = dict(self._measured)
        found["beat_lateness_s"] = max(0.0, lateness_s)
        if self._losses:
            found["bus_loss_ratio"] = sum(self._losses) / len(self._losses)
        if self._latencies_s:
            found["bus_latency_s"] = self._latencies_s[-1]
            found["bus_latency_worst_s"] = max(self._latencies_s)
        return tuple(sorted(found.items()))

    def _progress(self) -> Progress | None:
        if self._said is None:
            return None
        progress, at_s = self._said
        return replace(progress, age_ms=max(0, int((self._clock.monotonic_s() - at_s) * 1000)))

    def _follow(self) -> None:
        for follower in tuple(self._followers):
            try:
                for _ in range(FOLLOWED_TURNS):
                    if not follower.poll():
                        break
            except ConfigurationError as error:
                log.warning("watched no more: %s", error)
                follower.close()
                self._followers.remove(follower)


def _size(condition: Condition) -> int:
    """Return about how many bytes a condition takes; a measure's name and value take all but all of it."""
    return 40 + sum(len(name) + 11 for name, _ in condition.measures) + (60 if condition.progress else 0)
