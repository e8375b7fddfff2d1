"""The drivers that the conformance suite runs on. Every test of this folder takes `driver` and passes on each unchanged.

A new bus is one more subclass of `Driver` and one more name in the fixture's list.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from refold.bus import Bus, Consumer, Place, Record, TopicSpec
from refold.bus.kafka import KafkaBus
from refold.bus.memory import MemoryBus
from refold.bus.sqlite import SqliteBus


class Driver:
    """What the suite needs beside the contract. Waits are for conditions; time passes by hand where the bus allows it."""

    wait_s = 20.0
    session_timeout_s = 6.0
    delete_retention_s = 60.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 1_700_000_000.0
        self.group = f"suite-{os.urandom(4).hex()}"
        self._numbers = itertools.count(1)
        self._opened: list[Bus] = []

    def clock(self) -> float:
        """The hand-set clock, for leases and timestamps."""
        return self.now_s

    def open(self) -> Bus:
        """Open the test's bus; each call is another handle on the same one."""
        self._opened.append(self.make_bus())
        return self._opened[-1]

    def make_bus(self) -> Bus:
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """Let this much time pass on the hand-set clock, for timestamps and, where a bus reads it, for leases."""
        self.now_s += seconds

    def let_leases_age(self, seconds: float) -> None:
        """Let this much time pass for leases."""
        self.pass_time(seconds)

    def fall_silent(self, consumer: Consumer) -> None:
        """Make a consumer one that no longer answers: past its session timeout, without having left."""
        self.pass_time(self.session_timeout_s + 1)

    def run_cleaner(self, bus: Bus, topic: str) -> None:
        """Return once retention and compaction were applied to all that the topic holds."""
        bus.compact(topic)  # type: ignore[attr-defined]

    def topic(self, bus: Bus, *, partitions: int = 1, compacted: bool = False, retention_s: float | None = None) -> str:
        """Create a topic of a new name."""
        name = f"{self.group}.topic-{next(self._numbers)}"
        bus.create_topics([TopicSpec(name, partitions, compacted, retention_s)])
        return name

    def until(self, condition: Callable[[], bool], *consumers: Consumer) -> list[Record]:
        """Poll the consumers in turn until the condition holds; returns what they read."""
        records: list[Record] = []
        deadline = time.monotonic() + self.wait_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            for consumer in consumers:
                records += consumer.poll(0.01)
        return records

    def read_all(self, bus: Bus, places: Iterable[Place]) -> list[Record]:
        """Read places from beginning to end with a new consumer."""
        with bus.consumer() as consumer:
            consumer.assign(places)
            return self.until(
                lambda: all(consumer.position(place) >= bus.end_offset(place) for place in consumer.assignment()), consumer
            )

    def close(self) -> None:
        """Close every handle."""
        for bus in self._opened:
            bus.close()


class MemoryDriver(Driver):
    def make_bus(self) -> Bus:
        return MemoryBus(str(self.folder), clock=self.clock, delete_retention_s=self.delete_retention_s)


class SqliteDriver(Driver):
    def make_bus(self) -> Bus:
        path = self.folder / "bus.db"
        return SqliteBus(
            path,
            clock=self.clock,
            wall=self.clock,
            delete_retention_s=self.delete_retention_s,
            clean_every_s=float("inf"),
        )


class KafkaDriver(Driver):
    """A real broker. Timestamps follow the hand-set clock; leases are the broker's, and age in real time."""

    session_timeout_s = 2.0
    bootstrap = ""

    def make_bus(self) -> Bus:
        # Refold's topics take the broker's time, which nobody sets by hand.
        by_hand = {"message.timestamp.type": "CreateTime", "message.timestamp.before.max.ms": str(2**63 - 1)}
        return KafkaBus((self.bootstrap,), federation="suite", wall=self.clock, topic_settings=by_hand)

    def let_leases_age(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def fall_silent(self, consumer: Consumer) -> None:
        """Nothing to do: its heartbeats go out when it is polled, and nobody polls it now."""


CLEAN_WHEN_TOLD = [pytest.param(MemoryDriver, id="memory"), pytest.param(SqliteDriver, id="sqlite")]
ALL = [*CLEAN_WHEN_TOLD, pytest.param(KafkaDriver, id="kafka", marks=pytest.mark.kafka)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" in metafunc.fixturenames:
        restricted = getattr(metafunc.module, "ONLY_BUSES_THAT_CLEAN_WHEN_TOLD", False)
        metafunc.parametrize("driver", CLEAN_WHEN_TOLD if restricted else ALL, indirect=True)


@pytest.fixture
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    made: Driver = request.param(tmp_path)
    if isinstance(made, KafkaDriver):
        made.bootstrap = request.getfixturevalue("kafka").bootstrap
    yield made
    made.close()


@pytest.fixture
def bus(driver: Driver) -> Bus:
    return driver.open()
