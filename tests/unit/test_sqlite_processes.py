"""Several processes on one file: killed writers, dead members, waking."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from refold.bus import Place, TopicSpec
from refold.bus.sqlite import SqliteBus

SPAWN = multiprocessing.get_context("spawn")
TOPIC = TopicSpec("unit.topic", partitions=2)
PLACES = [Place(TOPIC.name, 0), Place(TOPIC.name, 1)]


def _write_until_killed(path: str, writer: str, acknowledged_path: str) -> None:
    """Write batches, and note each on disk only after its flush returned."""
    with SqliteBus(path) as bus, bus.producer() as producer, Path(acknowledged_path).open("a") as acknowledged:
        number = 0
        while True:
            batch = range(number, number + 3)
            for each in batch:
                size = 300_000 if each % 5 == 0 else 20
                producer.send(TOPIC.name, f"{writer}:{each}".encode().ljust(size), partition=each % 2)
            producer.flush()
            acknowledged.write("".join(f"{writer}:{each}\n" for each in batch))
            acknowledged.flush()
            number += 3


def read_all(bus: SqliteBus):
    with bus.consumer() as consumer:
        consumer.assign(PLACES)
        records = []
        while any(consumer.position(place) < bus.end_offset(place) for place in PLACES):
            records += consumer.poll(1.0)
    return records


def test_killed_writers_lose_nothing_acknowledged_and_double_nothing(tmp_path, rng):
    path = tmp_path / "bus.db"
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    bus = SqliteBus(path)
    bus.create_topics([TOPIC])
    for life in range(6):
        writers = [
            SPAWN.Process(target=_write_until_killed, args=(str(path), f"{life}-{number}", str(acknowledged)))
            for number in range(2)
        ]
        for writer in writers:
            writer.start()
        wanted = len(acknowledged.read_text().splitlines()) + int(rng.integers(5, 40))
        deadline = time.monotonic() + 60
        while len(acknowledged.read_text().splitlines()) < wanted:
            assert time.monotonic() < deadline
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    records = read_all(bus)
    values = [record.value.strip().decode() for record in records]
    assert len(values) == len(set(values))
    assert set(acknowledged.read_text().splitlines()) <= set(values)
    for place in PLACES:
        offsets = [record.offset for record in records if record.partition == place.partition]
        assert offsets == list(range(bus.end_offset(place)))
    batches = {}
    for value in values:
        writer, number = value.split(":")
        batches.setdefault((writer, int(number) // 3), []).append(int(number))
    assert all(len(numbers) == 3 for numbers in batches.values()), "a batch was written by half"
    bus.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def _read_as_member(path: str, ready) -> None:
    with SqliteBus(path) as bus, bus.consumer(group="unit", session_timeout_s=600) as consumer:
        consumer.subscribe([TOPIC.name])
        while not consumer.assignment():
            consumer.poll(0.1)
        ready.set()
        while True:
            consumer.poll(1.0)


def test_a_member_whose_process_was_killed_is_replaced_without_waiting_for_its_lease(tmp_path):
    path = tmp_path / "bus.db"
    with SqliteBus(path) as bus:
        bus.create_topics([TOPIC])
        ready = SPAWN.Event()
        member = SPAWN.Process(target=_read_as_member, args=(str(path), ready))
        member.start()
        assert ready.wait(60)
        with bus.consumer(group="unit", session_timeout_s=600) as consumer:
            consumer.subscribe([TOPIC.name])
            consumer.poll(0.0)
            assert consumer.assignment() == frozenset()
            member.kill()
            member.join()
            killed = time.monotonic()
            while len(consumer.assignment()) < 2:
                consumer.poll(0.1)
                assert time.monotonic() - killed < 60
            assert time.monotonic() - killed < 30


def test_members_of_an_earlier_boot_are_removed(tmp_path):
    with SqliteBus(tmp_path / "bus.db") as bus:
        bus.create_topics([TOPIC])
        old = bus.consumer(group="unit", session_timeout_s=600)
        old.subscribe([TOPIC.name])
        old.poll()
        connection = sqlite3.connect(bus.path)
        [(text,)] = connection.execute("SELECT membership FROM groups").fetchall()
        kept = json.loads(text)
        kept["members"][0]["process"] = "an-earlier-boot/1 1 1"
        connection.execute("UPDATE groups SET membership = ?", (json.dumps(kept),))
        connection.commit()
        connection.close()
        with bus.consumer(group="unit") as new:
            new.subscribe([TOPIC.name])
            new.poll()
            assert new.assignment() == frozenset(PLACES)
        old.close()


def _echo(path: str, rounds: int) -> None:
    with SqliteBus(path) as bus, bus.producer() as producer, bus.consumer() as consumer:
        consumer.assign([PLACES[0]])
        for _ in range(rounds):
            [record] = consumer.poll(60.0, max_records=1)
            producer.send(TOPIC.name, record.value, partition=1).result()


def test_a_waiting_poll_wakes_for_a_record_of_another_process(tmp_path):
    path = tmp_path / "bus.db"
    with SqliteBus(path) as bus, bus.producer() as producer, bus.consumer() as consumer:
        bus.create_topics([TOPIC])
        echo = SPAWN.Process(target=_echo, args=(str(path), 10))
        echo.start()
        consumer.assign([PLACES[1]])
        for number in range(10):
            producer.send(TOPIC.name, str(number).encode(), partition=0).result()
            [record] = consumer.poll(60.0)
            assert record.value == str(number).encode()
        echo.join()
        assert echo.exitcode == 0


@pytest.mark.parametrize("session_timeout_s", [0.0, -1.0])
def test_a_session_needs_time(tmp_path, session_timeout_s):
    with SqliteBus(tmp_path / "bus.db") as bus, pytest.raises(Exception, match="session timeout"):
        bus.consumer(group="unit", session_timeout_s=session_timeout_s)
