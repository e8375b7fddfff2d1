"""The bus's file: what is taken for one, what is refused, and what the disk has to say."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from refold.bus import Place, TopicSpec, open_bus
from refold.bus._sqlite_file import PAGE_BYTES, SCHEMA_VERSION
from refold.bus._sqlite_store import SqliteStore
from refold.bus._store import OutcomeUnknown
from refold.bus.sqlite import SqliteBus
from refold.schemas.errors import BusError, ConfigurationError, NotFoundError, StorageFullError, TryAgainError

TOPIC = TopicSpec("unit.topic")
PLACE = Place(TOPIC.name, 0)


def bus_in(folder: Path, **options) -> SqliteBus:
    bus = SqliteBus(folder / "bus.db", **options)
    bus.create_topics([TOPIC])
    return bus


def test_a_new_file_has_large_pages_and_a_write_ahead_log(tmp_path):
    with bus_in(tmp_path) as bus:
        connection = sqlite3.connect(bus.path)
        assert connection.execute("PRAGMA page_size").fetchone() == (PAGE_BYTES,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def test_text_is_no_bus(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigurationError, match="not a SQLite database"):
        SqliteBus(path)


def test_another_programs_database_is_no_bus_and_stays_as_it_is(tmp_path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="not a Refold bus"):
        SqliteBus(path)
    assert path.read_bytes() == before


def test_a_newer_version_is_refused(tmp_path):
    bus_in(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "bus.db")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigurationError, match="newer Refold"):
        SqliteBus(tmp_path / "bus.db")


def test_a_damaged_file_is_not_served(tmp_path):
    with bus_in(tmp_path) as bus, bus.producer() as producer:
        for _ in range(50):
            producer.send(TOPIC.name, os.urandom(50_000))
    path = tmp_path / "bus.db"
    content = bytearray(path.read_bytes())
    content[PAGE_BYTES:] = b"\xff" * (len(content) - PAGE_BYTES)
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"damaged") as caught:
        SqliteBus(path).topics()
    assert caught.value.exit_code == 3


def test_a_missing_folder_a_folder_and_a_missing_file_are_told_apart(tmp_path):
    with pytest.raises(ConfigurationError, match="folder is not there"):
        SqliteBus(tmp_path / "none" / "bus.db")
    with pytest.raises(ConfigurationError, match="is a folder"):
        SqliteBus(tmp_path)
    with pytest.raises(NotFoundError, match="no such bus file"):
        open_bus(f"sqlite:{tmp_path}/typo.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_becomes_no_bus_where_one_is_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotFoundError, match="is empty"):
        open_bus(f"sqlite:{tmp_path}/notes.txt", create=False)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("notes.txt", 0)]


def test_an_empty_file_becomes_a_bus(tmp_path):
    (tmp_path / "bus.db").touch()
    with bus_in(tmp_path) as bus:
        assert bus.topics() == {TOPIC.name: TOPIC}


@pytest.mark.parametrize("name", ["plain.db", "with space.db", "100%41?.db", "größe#1.db", "a:b.db"])
def test_the_url_of_any_file_name_opens_it_again(tmp_path, name):
    with SqliteBus(tmp_path / name, federation="my ward/7") as bus:
        bus.create_topics([TOPIC])
        with open_bus(bus.url, create=False) as again:
            assert again.url == bus.url
            assert again.topics() == {TOPIC.name: TOPIC}
    assert (tmp_path / name).exists()


def test_a_relative_path_is_one_from_the_folder_of_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_bus("sqlite:bus.db") as bus:
        assert bus.url == f"sqlite:{tmp_path}/bus.db"


def _create(path: str, barrier) -> None:
    barrier.wait()
    with SqliteBus(path) as bus:
        bus.create_topics([TopicSpec(f"unit.{number}", 2) for number in range(5)])


def test_processes_that_create_one_bus_at_once_agree(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(4)
    makers = [spawn.Process(target=_create, args=(str(tmp_path / "bus.db"), barrier)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0, 0]
    with SqliteBus(tmp_path / "bus.db") as bus:
        assert sorted(bus.topics()) == [f"unit.{number}" for number in range(5)]
        assert bus.end_offset(Place("unit.4", 1)) == 0


def fill_up(bus: SqliteBus, value: bytes = b"x" * 100_000) -> int:
    """Write until the storage is full; returns how many records were acknowledged."""
    producer = bus.producer()
    acknowledged = 0
    while acknowledged < 10_000:
        producer.send(TOPIC.name, value)
        producer.send(TOPIC.name, value)
        try:
            producer.flush()
        except StorageFullError:
            break
        acknowledged += 2
    assert acknowledged < 10_000, "the bound on the size was not kept"
    assert bus.end_offset(PLACE) == acknowledged
    assert producer.in_flight_bytes == 2 * len(value)
    return resume(bus, producer, acknowledged)


def resume(bus: SqliteBus, producer, acknowledged: int) -> int:
    """Make room and flush again: the batch that did not fit goes in, once."""
    bus.delete_records(PLACE, acknowledged - 2)
    producer.flush()
    producer.close()
    with bus.consumer() as consumer:
        consumer.assign([PLACE])
        offsets = []
        while consumer.position(PLACE) < bus.end_offset(PLACE):
            offsets += [record.offset for record in consumer.poll(1.0)]
    assert offsets == list(range(acknowledged - 2, acknowledged + 2))
    return acknowledged


def test_a_full_bus_writes_nothing_by_half_and_goes_on_when_there_is_room(tmp_path):
    with bus_in(tmp_path, max_size_bytes=6 << 20) as bus:
        fill_up(bus)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    mount = shutil.which("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_writes_nothing_by_half_and_goes_on_when_there_is_room(small_disk):
    with bus_in(small_disk) as bus, bus.producer() as producer:
        ballast = small_disk / "ballast"
        producer.send(TOPIC.name, b"before")
        producer.flush()
        with suppress(OSError), ballast.open("wb") as file:
            file.write(b"x" * (64 << 20))
        delivery = producer.send(TOPIC.name, b"y" * 1_000_000)
        for _ in range(3):
            with pytest.raises(StorageFullError):
                producer.flush()
        assert bus.end_offset(PLACE) == 1
        ballast.unlink()
        assert delivery.result() == 1
        connection = sqlite3.connect(bus.path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def test_a_read_only_file_system_is_named(tmp_path):
    mount = shutil.which("mount")
    folder = tmp_path / "medium"
    folder.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a read-only file system needs root")
    try:
        with pytest.raises(ConfigurationError, match="Read-only file system"):
            SqliteBus(folder / "bus.db")
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def read_only(tmp_path):
    """Return what shows a folder once more, where nothing in it can be written."""
    mount, shown = shutil.which("mount"), tmp_path / "read-only"
    shown.mkdir()
    mounted = []

    def show(folder: Path) -> Path:
        if mount is None or subprocess.run([mount, "--bind", folder, shown], capture_output=True).returncode:
            pytest.skip("mounting a folder read-only needs root")
        mounted.append(shown)
        subprocess.run([mount, "-o", "remount,bind,ro", shown], check=True)
        return shown

    yield show
    for folder in mounted:  # `os.path.ismount` knows nothing of a folder that is shown twice on one device.
        subprocess.run(["umount", "-l", folder], check=True)


def read_all(bus: SqliteBus) -> list[bytes | None]:
    consumer = bus.consumer()
    consumer.assign([PLACE])
    consumer.seek(PLACE, 0)
    values = [record.value for record in consumer.poll(0.0)]
    consumer.close()
    return values


def test_a_bus_on_a_read_only_medium_is_read_and_says_why_it_is_not_written(tmp_path, read_only):
    (tmp_path / "bus").mkdir()
    with bus_in(tmp_path / "bus") as bus, bus.producer() as producer:
        producer.send(TOPIC.name, b"told")
        producer.flush()
    (tmp_path / "bus" / "bus.db-lock").unlink()
    folder = read_only(tmp_path / "bus")
    with SqliteBus(folder / "bus.db", create=False) as bus:
        bus.create_topics([TOPIC])
        assert read_all(bus) == [b"told"]
        assert bus.end_offset(PLACE) == 1
        with pytest.raises(ConfigurationError, match=r"can only be read here .*: to change it, copy it"):
            bus.producer().send(TOPIC.name, b"more").result()
    assert [path.name for path in folder.iterdir()] == ["bus.db"]


def test_what_is_written_elsewhere_shows_where_a_bus_can_only_be_read(tmp_path, read_only):
    (tmp_path / "bus").mkdir()
    with bus_in(tmp_path / "bus") as bus, bus.producer() as producer:
        folder = read_only(tmp_path / "bus")
        with SqliteBus(folder / "bus.db", create=False) as reading:
            assert read_all(reading) == []
            producer.send(TOPIC.name, b"told")
            producer.flush()
            assert read_all(reading) == [b"told"]


def test_a_log_that_only_a_writer_could_take_in_is_to_be_copied_from_a_read_only_medium(tmp_path, read_only):
    (tmp_path / "bus").mkdir()
    with bus_in(tmp_path / "bus") as bus, bus.producer() as producer:
        producer.send(TOPIC.name, b"in the log")
        producer.flush()
        shutil.copytree(tmp_path / "bus", tmp_path / "left", ignore=shutil.ignore_patterns("*-shm"))
    folder = read_only(tmp_path / "left")
    with pytest.raises(ConfigurationError, match="copy it, with its -wal file"):
        SqliteBus(folder / "bus.db", create=False)
    copy = shutil.copytree(folder, tmp_path / "copy")
    with SqliteBus(copy / "bus.db", create=False) as bus:
        assert read_all(bus) == [b"in the log"]


def test_a_commit_that_fails_otherwise_is_never_repeated(tmp_path, monkeypatch):
    with bus_in(tmp_path) as bus:
        producer = bus.producer()
        commit = SqliteStore._commit

        def commit_then_fail(store: SqliteStore) -> None:
            commit(store)
            raise OutcomeUnknown("The commit failed: disk I/O error")

        delivery = producer.send(TOPIC.name, b"perhaps")
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_commit", commit_then_fail)
            with pytest.raises(BusError):
                producer.flush()
        with pytest.raises(BusError):
            delivery.result()
        producer.send(TOPIC.name, b"next")
        producer.close()
        assert bus.end_offset(PLACE) == 2


def test_an_interrupt_never_doubles_a_batch(tmp_path, monkeypatch):
    with bus_in(tmp_path) as bus:
        producer = bus.producer()
        append = SqliteStore.append

        def interrupted(store: SqliteStore, drafts, timeout_s):
            append(store, drafts, timeout_s)
            raise KeyboardInterrupt

        delivery = producer.send(TOPIC.name, b"perhaps")
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                producer.flush()
        with pytest.raises(BusError):
            delivery.result()
        producer.close()
        assert bus.end_offset(PLACE) == 1


def test_a_file_locked_by_another_program_is_tried_again_later(tmp_path, monkeypatch):
    monkeypatch.setattr("refold.bus._sqlite_file.BUSY_TIMEOUT_S", 0.05)
    with bus_in(tmp_path) as bus, bus.producer() as producer:
        foreign = sqlite3.connect(bus.path, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        producer.send(TOPIC.name, b"later")
        with pytest.raises(TryAgainError, match="locked"):
            producer.flush()
        foreign.execute("ROLLBACK")
        foreign.close()
        producer.flush()
        assert bus.end_offset(PLACE) == 1


def test_room_of_deleted_records_is_used_again(tmp_path):
    with bus_in(tmp_path) as bus, bus.producer() as producer:
        sizes = []
        for _ in range(6):
            for _ in range(20):
                producer.send(TOPIC.name, b"x" * 500_000)
            producer.flush()
            bus.delete_records(PLACE, bus.end_offset(PLACE))
            connection = sqlite3.connect(bus.path, isolation_level=None)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.close()
            sizes.append(bus.path.stat().st_size)
        assert sizes[-1] <= sizes[1]


def test_producers_clean_in_passing(tmp_path):
    now = [1000.0]
    compacted = TopicSpec("unit.compacted", compacted=True)
    with bus_in(tmp_path, clock=lambda: now[0]) as bus, bus.producer() as producer:
        bus.create_topics([compacted])
        for number in range(1000):
            producer.send(compacted.name, str(number).encode(), key=b"key")
        producer.flush()
        assert bus.begin_offset(Place(compacted.name, 0)) == 0
        now[0] += 60
        for _ in range(5):
            producer.send(TOPIC.name, b"")
            producer.flush()
        assert bus.begin_offset(Place(compacted.name, 0)) == 999


def test_the_write_ahead_log_stays_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("refold.bus._sqlite_store.WAL_BOUND_BYTES", 10 << 20)
    with bus_in(tmp_path) as bus, bus.producer() as producer:
        for _ in range(60):
            producer.send(TOPIC.name, b"x" * 1_000_000)
            producer.flush()
            assert bus.path.with_name("bus.db-wal").stat().st_size < 12 << 20
