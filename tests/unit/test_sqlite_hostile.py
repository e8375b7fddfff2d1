"""A bus file from somebody else: nothing in it runs, nothing in it is believed, and nothing but our own errors comes of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from refold.bus import Place, TopicSpec
from refold.bus._sqlite_file import MOST_ROW_BYTES, _connect
from refold.bus.sqlite import SqliteBus
from refold.schemas.errors import ConfigurationError, IntegrityError

TOPIC = TopicSpec("unit.topic", partitions=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqliteBus(tmp_path / "bus.db") as bus:
        bus.create_topics([TOPIC])
        with bus.producer() as producer:
            producer.send(TOPIC.name, b"value", partition=0, headers=(("name", b"word"),))
    return tmp_path / "bus.db"


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join(("PRAGMA writable_schema = ON", *statements)))
        connection.commit()


def read(path: Path) -> Iterator[object]:
    with SqliteBus(path, create=False) as bus, bus.consumer(group="g") as consumer:
        bus.topics()
        bus.committed("g", Place(TOPIC.name, 0))
        bus.lag("g")
        consumer.assign([Place(TOPIC.name, partition) for partition in range(2)])
        yield from consumer.poll()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END", "trigger 't'"),
        ("CREATE VIEW v AS SELECT * FROM records", "view 'v'"),
        ("CREATE VIRTUAL TABLE f USING fts5(x)", "table 'f'"),
        ("ALTER TABLE records ADD COLUMN more GENERATED ALWAYS AS (abs(id))", "another table 'records'"),
        ("DROP INDEX tombstones", "no 'tombstones'"),
        ("DROP TABLE groups", "no 'groups'"),
        ("UPDATE topics SET partitions = 1000000000", "row of 'topics'"),
        ("UPDATE topics SET partitions = 'two'", "row of 'topics'"),
        ("UPDATE topics SET partitions = 0", "row of 'topics'"),
        ("UPDATE topics SET name = x'00ff'", "row of 'topics'"),
        ("UPDATE topics SET retention_s = 'soon'", "row of 'topics'"),
        ("UPDATE partitions SET next_offset = -1", "row of 'partitions'"),
        ("UPDATE partitions SET next_offset = 'far'", "row of 'partitions'"),
        ("INSERT INTO groups VALUES ('g', 'first', '{}')", "row of 'groups'"),
        ("INSERT INTO group_offsets VALUES ('g', 1, 'here', '')", "row of 'group_offsets'"),
    ],
)
def test_a_file_whose_tables_are_not_ours_is_refused_by_what_is_strange(path: Path, statement: str, named: str) -> None:
    change(path, statement)
    with pytest.raises(ConfigurationError, match="no Refold wrote") as caught:
        list(read(path))
    assert named in caught.value.message


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET value = 'a text'",
        "UPDATE records SET value = 17",
        "UPDATE records SET key = 'a text'",
        "UPDATE records SET timestamp_ms = 'now'",
        "UPDATE records SET headers = 'a text'",
        "UPDATE records SET headers = x'ff'",
        "UPDATE records SET headers = x'ffffffff00'",
        "UPDATE records SET headers = x'01000000ff'",
        "UPDATE records SET headers = x'0100000041'",
        "UPDATE records SET headers = x'01000000ff00000000'",
    ],
)
def test_a_record_that_is_none_is_told_of_by_its_place(path: Path, statement: str) -> None:
    change(path, statement)
    with pytest.raises(IntegrityError, match="bus file holds"):
        list(read(path))


def test_a_partition_that_is_not_there_is_told_of(path: Path) -> None:
    change(path, "UPDATE partitions SET partition = 7 WHERE partition = 1")
    with pytest.raises(IntegrityError, match="no such partition"):
        list(read(path))


def test_a_row_larger_than_any_record_is_not_read(path: Path) -> None:
    change(path, f"UPDATE records SET value = zeroblob({MOST_ROW_BYTES + 1})")
    with pytest.raises(IntegrityError, match="a row of more than"):
        list(read(path))


@pytest.mark.parametrize("membership", ["", "{", "[]", "null", '{"members": 3}', '{"members": [{"name": 1}]}', "[" * 100_000])
def test_a_group_that_is_none_is_told_of(path: Path, membership: str) -> None:
    change(path, f"INSERT INTO groups VALUES ('g', 3, '{membership}')")
    with SqliteBus(path) as bus, bus.consumer(group="g") as consumer:
        consumer.subscribe([TOPIC.name])
        with pytest.raises(IntegrityError, match="a group that cannot be read"):
            consumer.poll()


def test_no_schema_may_call_functions_and_no_cell_leave_its_page(path: Path) -> None:
    with closing(_connect(path)) as connection:
        assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
        assert connection.execute("PRAGMA cell_size_check").fetchone() == (1,)
        assert connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) == MOST_ROW_BYTES


def test_our_own_file_is_not_strange_and_neither_is_one_that_was_analysed(path: Path) -> None:
    change(path, "ANALYZE", "CREATE TABLE somebodys_notes (text)")
    assert len(list(read(path))) == 1
