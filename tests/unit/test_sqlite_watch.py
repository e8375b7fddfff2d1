"""Waiting for news in a bus file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refold.bus import Place, TopicSpec
from refold.bus._sqlite_watch import Watch
from refold.bus.sqlite import SqliteBus
from refold.testing import eventually

LONG_S = 20.0
"""A wait that only news can end."""

NEWS, OTHER = Place("news", 0), Place("other", 0)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[SqliteBus]:
    """Yield a bus with two topics."""
    with SqliteBus(tmp_path / "bus.db") as made:
        made.create_topics([TopicSpec("news", 1), TopicSpec("other", 1)])
        yield made


def lookers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "refold-bus-watch"]


class Waits(threading.Thread):
    """A consumer of one place that polls once, with all the time there is."""

    def __init__(self, bus: SqliteBus, place: Place) -> None:
        super().__init__(daemon=True)
        self.got: list[bytes | None] = []
        self._consumer = bus.consumer()
        self._consumer.assign([place])
        self.start()

    def run(self) -> None:
        with self._consumer:
            self.got = [record.value for record in self._consumer.poll(LONG_S)]


def test_only_those_whom_a_record_concerns_wake_for_it(bus: SqliteBus) -> None:
    concerned, spared = Waits(bus, NEWS), Waits(bus, OTHER)
    with bus.producer() as producer:
        producer.send("news", b"first")
        producer.flush()
        concerned.join(LONG_S / 2)
        assert concerned.got == [b"first"]
        assert spared.is_alive()
        producer.send("other", b"second")
        producer.flush()
    spared.join(LONG_S / 2)
    assert spared.got == [b"second"]


def test_what_another_bus_object_writes_ends_a_wait_too(bus: SqliteBus) -> None:
    waits = Waits(bus, NEWS)
    with SqliteBus(bus.path) as other, other.producer() as producer:
        producer.send("news", b"from elsewhere")
    waits.join(LONG_S / 2)
    assert waits.got == [b"from elsewhere"]


def test_what_was_written_between_a_fetch_and_the_wait_ends_the_wait_at_once(bus: SqliteBus) -> None:
    with bus.producer() as producer:
        producer.send("news", b"meanwhile")
    watch = Watch(bus.path)
    watch.open()
    began = time.monotonic()
    watch.wait(dict.fromkeys(range(1, 3), 0), None, LONG_S)
    assert time.monotonic() - began < LONG_S / 2
    watch.close()


def test_a_change_of_the_group_ends_a_members_wait(bus: SqliteBus) -> None:
    watch = Watch(bus.path)
    watch.open()
    waiting = threading.Thread(target=watch.wait, args=({}, ("readers", 0), LONG_S), daemon=True)
    waiting.start()
    with bus.consumer(group="readers") as member:
        member.subscribe(["news"])
        member.poll()
        waiting.join(LONG_S / 2)
        assert not waiting.is_alive()
    watch.close()


def test_however_many_wait_one_thread_looks_and_it_ends_with_the_last_of_them(tmp_path: Path) -> None:
    before = len(lookers())
    bus = SqliteBus(tmp_path / "bus.db")
    bus.create_topics([TopicSpec("news", 1)])
    waiting = [Waits(bus, NEWS) for _ in range(8)]
    eventually(lambda: len(lookers()) == before + 1)
    with bus.producer() as producer:
        producer.send("news", b"go")
    for one in waiting:
        one.join(LONG_S / 2)
    assert [one.got for one in waiting] == [[b"go"]] * 8
    assert len(lookers()) == before + 1
    bus.close()
    assert len(lookers()) == before


def test_a_watch_that_was_closed_can_be_waited_at_again(bus: SqliteBus) -> None:
    watch = Watch(bus.path)
    for value in (b"one", b"two"):
        watch.open()
        waiting = threading.Thread(target=watch.wait, args=({1: 0, 2: 0}, None, LONG_S), daemon=True)
        waiting.start()
        with bus.producer() as producer:
            producer.send("news", value)
        waiting.join(LONG_S / 2)
        assert not waiting.is_alive()
        watch.close()


def test_a_file_that_cannot_be_looked_at_leaves_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    path.write_bytes(b"no database" * 100)
    watch = Watch(path)
    watch.open()
    began = time.monotonic()
    watch.wait({1: 0}, None, LONG_S)
    assert time.monotonic() - began < LONG_S / 2
    watch.close()


def test_a_file_that_was_put_back_from_a_copy_is_waited_at_by_what_it_holds(bus: SqliteBus) -> None:
    watch = Watch(bus.path)
    watch.open()
    watch.tell(ends=[(1, 5)])
    watch.tell(ends=[(1, 2)])
    began = time.monotonic()
    watch.wait({1: 2}, None, 0.2)
    assert time.monotonic() - began >= 0.2
    watch.close()
