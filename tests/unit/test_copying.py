"""A federation copied from one bus to another: every record at its offset, whatever cut the copy off."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import refold
from refold.bus import Bus, Place, Record, _copy_writer, open_bus
from refold.bus.comparing import content, head_at, is_filler, parting
from refold.bus.copy_place import COMPLETE, PARTIAL, SESSION_S, UNDER_WAY, CopyPlace, copy_state
from refold.bus.copying import copy_federation, export
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.bus.ranges import records_in
from refold.bus.sqlite import SqliteBus
from refold.bus.topics import KEPT, Topics
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.commits import Position, commit_hash, next_commit
from refold.schemas.errors import (
    BusError,
    ConfigurationError,
    IntegrityError,
    PlaceTakenError,
    RefoldError,
    TryAgainError,
    UsageError,
)
from refold.testing import LOST, UNSAID, FlakyBus

TOPICS = Topics("f")
Opener = Callable[[str], Bus]


@pytest.fixture(params=["memory to sqlite", "sqlite to memory", "sqlite to sqlite"])
def buses(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Bus, Bus]]:
    """Return a source with every topic, and a target with none."""
    first, second = request.param.split(" to ")
    source, target = _open(first, tmp_path / "source.db"), _open(second, tmp_path / "target.db")
    source.create_topics(TOPICS.specs(partitions=2))
    with source, target:
        yield source, target


def _open(kind: str, path: Path) -> Bus:
    return MemoryBus() if kind == "memory" else SqliteBus(path, clean_every_s=float("inf"))


def write(bus: Bus, short: str, *values: bytes | None, partition: int = 0, key: bytes | None = b"k") -> None:
    with bus.producer() as producer:
        for value in values:
            producer.send(f"f.{short}", value, key=key, partition=partition, headers=(("h", b"1"), ("h", b"2")))


def commit(bus: Bus, short: str, count: int = 1, *, writer: str = "a") -> None:
    """Append empty commits to a log."""
    for _ in range(count):
        topic = f"f.{short}"
        chain = head_at(bus, topic, bus.end_offset(Place(topic, 0)))
        with bus.producer() as producer:
            empty = next_commit(chain, (), Position(), writer=writer, epoch=1, time_ms=chain.commits)
            producer.send(topic, encode(empty), partition=0)


def records(bus: Bus, place: Place) -> list[Record]:
    return list(records_in(bus, place, 0, bus.end_offset(place)))


def places(bus: Bus) -> list[Place]:
    return [Place(name, p) for name, spec in bus.topics().items() for p in range(spec.partitions)]


def assert_same(source: Bus, target: Bus) -> None:
    """Check that every place ends where it does in the source, and that all its records lie at their offsets."""
    for place in places(source):
        assert target.end_offset(place) == source.end_offset(place), place
        theirs = {r.offset: content(r) for r in records(target, place) if not is_filler(r)}
        assert theirs == {r.offset: content(r) for r in records(source, place)}, place


def filled(bus: Bus) -> None:
    """Write something everywhere."""
    for short in KEPT:
        if short in ("accepted", "rounds"):
            commit(bus, short, 3)
        else:
            write(bus, short, b"1", b"2", b"", key=b"a")
    write(bus, "updates", b"3" * 5000, b"4", partition=1, key=None)


# What a copy is.


def test_every_record_keeps_offset_key_value_and_headers(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    filled(source)
    copied = copy_federation(source, target, "f", verify=True)
    assert_same(source, target)
    assert copied.records == copied.compared + 4 == sum(len(records(source, place)) for place in places(source))
    assert copied.complete
    assert copy_state(target, "f") == COMPLETE
    assert target.topics() == source.topics()


def test_a_second_run_takes_in_only_what_is_new(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    filled(source)
    copy_federation(source, target, "f")
    assert copy_federation(source, target, "f").records == 0
    write(source, "deltas", b"new", partition=1)
    commit(source, "accepted")
    assert copy_federation(source, target, "f").records == 2
    assert_same(source, target)


def test_a_deleted_beginning_is_deleted_in_the_copy_too(buses: tuple[Bus, Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copy_writer, "BATCH_RECORDS", 4)
    source, target = buses
    write(source, "updates", *[b"x"] * 11, b"left", b"over")
    write(source, "checked", *[b"x"] * 9)
    source.delete_records(Place("f.updates", 0), 11)
    source.delete_records(Place("f.checked", 0), 9)
    copied = copy_federation(source, target, "f")
    assert copied.fillers == 20
    assert [r.value for r in records(target, Place("f.updates", 0))] == [b"left", b"over"]
    assert records(target, Place("f.checked", 0)) == []
    assert_same(source, target)


def test_what_was_compacted_away_leaves_no_trace_once_the_copy_is_compacted(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    for round_ in (b"0", b"1", b"0", b"2", b"1"):
        write(source, "snapshots", b"manifest", key=round_)
    source.compact("f.snapshots")  # type: ignore[attr-defined]
    copied = copy_federation(source, target, "f", verify=True)
    assert copied.fillers == 2
    assert_same(source, target)
    target.compact("f.snapshots")  # type: ignore[attr-defined]
    assert sum(is_filler(record) for record in records(target, Place("f.snapshots", 0))) == 1


def test_what_the_source_judged_and_deleted_between_two_runs_goes_from_the_copy_too(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    updates = Place("f.updates", 0)
    write(source, "updates", b"1", b"2")
    copy_federation(source, target, "f")
    write(source, "updates", b"3", b"4", b"5")
    source.delete_records(updates, 4)
    copy_federation(source, target, "f", verify=True)
    assert [(r.offset, r.value) for r in records(target, updates)] == [(4, b"5")]


def test_what_is_kept_for_ever_stays_in_the_copy_whatever_the_source_lost(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    write(source, "deltas", b"1", b"2")
    copy_federation(source, target, "f")
    write(source, "deltas", b"3", b"4", b"5")
    source.delete_records(Place("f.deltas", 0), 4)
    copy_federation(source, target, "f", verify=True)
    found = records(target, Place("f.deltas", 0))
    assert [r.value for r in found] == [b"1", b"2", None, None, b"5"]
    assert [is_filler(r) for r in found] == [False, False, True, True, False]


def test_a_copy_of_a_copy_is_the_same(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    filled(source)
    source.delete_records(Place("f.updates", 1), 1)
    copy_federation(source, target, "f")
    third = MemoryBus()
    copy_federation(target, third, "f")
    assert_same(source, third)


# Cut off.


@pytest.mark.parametrize("fate", [LOST, UNSAID])
def test_a_copy_cut_off_anywhere_goes_on_without_doubling(
    buses: tuple[Bus, Bus], fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_copy_writer, "BATCH_RECORDS", 3)
    source, target = buses
    filled(source)
    write(source, "checked", *[b"x"] * 8)
    source.delete_records(Place("f.checked", 0), 7)
    for left in (1, 2, 5, 9, 4, 11):
        sent = iter(range(left))
        flaky: Any = FlakyBus(target, lambda _topic, _value, sent=sent: None if next(sent, None) is not None else fate)
        with pytest.raises(BusError):
            copy_federation(source, flaky, "f")
        assert copy_state(target, "f") == UNDER_WAY
    copy_federation(source, target, "f", verify=True)
    assert_same(source, target)
    assert target.begin_offset(Place("f.checked", 0)) == 7


def test_a_copy_cut_off_anywhere_reads_well_as_far_as_it_goes(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copy_writer, "BATCH_RECORDS", 1)
    total = sum(federation.bus.end_offset(place) for place in places(federation.bus))
    target = MemoryBus()
    seen = set()
    for _ in range(total):
        sent = iter(range(1))
        flaky: Any = FlakyBus(target, lambda _topic, _value, sent=sent: None if next(sent, None) is not None else LOST)
        try:
            copy_federation(federation.bus, flaky, "fed")
        except BusError:
            seen.add(_rounds_that_rebuild(target, federation))
        else:
            break
    assert _rounds_that_rebuild(target, federation) == federation.head
    assert seen >= {-1, 0, 1, 2}


def _rounds_that_rebuild(target: Bus, federation: Federation) -> int:
    """Rebuild every round that a cut-off copy tells of, and return the newest."""
    if not read_all(target, "fed.accepted"):
        return -1
    copy = Federation(target, "fed", federation.keyring.folder)
    history = copy.history()
    newest = history.lineage.head if history.lineage.opened else -1
    for round_ in range(newest + 1):
        assert history.rebuild(round_).digest == federation.history().lineage.state_digest(round_)
    history.close()
    return newest


# What is refused.


def refused(source: Bus, target: Bus) -> RefoldError:
    """Return the error of a copy that writes nothing."""
    before = {place: target.end_offset(place) for place in places(target)}
    with pytest.raises(RefoldError) as caught:
        copy_federation(source, target, "f")
    assert {place: target.end_offset(place) for place in places(target)} == before
    return caught.value


def test_another_log_of_the_same_name_is_refused(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    target.create_topics(TOPICS.specs(partitions=2))
    commit(source, "accepted", writer="a")
    commit(target, "accepted", 3, writer="b")
    error = refused(source, target)
    assert isinstance(error, IntegrityError)
    assert "another log" in error.message
    assert error.where == {"topic": "f.accepted", "partition": 0, "offset": 0}


def test_a_log_that_parted_later_is_refused(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    commit(source, "accepted", 2)
    copy_federation(source, target, "f")
    commit(target, "accepted", 80, writer="b")
    commit(source, "accepted", 90, writer="a")
    assert "another log" in refused(source, target).message
    found, common = parting(source, target, "f.accepted")
    assert found is not None
    assert (found.is_end, common) == (False, 0)


def test_a_target_that_went_on_is_refused(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    commit(source, "accepted", 2)
    copy_federation(source, target, "f")
    commit(target, "accepted", 3)
    error = refused(source, target)
    assert "3 records more than the source" in error.message


def test_topics_with_other_partitions_are_refused(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    target.create_topics(TOPICS.specs(partitions=3))
    assert isinstance(refused(source, target), ConfigurationError)


def test_a_bus_is_not_copied_onto_itself(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/a.db?federation=f"
    open_bus(url).close()
    with pytest.raises(UsageError, match="the same bus"):
        export(url, f"sqlite:{tmp_path}/a.db")
    with pytest.raises(UsageError, match="names no federation"):
        export(f"sqlite:{tmp_path}/a.db", f"sqlite:{tmp_path}/b.db")
    with pytest.raises(UsageError, match="no topic nowhere"):
        copy_federation(MemoryBus(), MemoryBus(), "f", topics=["nowhere"])


def test_two_copies_at_once_are_one_too_many(buses: tuple[Bus, Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = buses
    target.create_topics(TOPICS.specs(partitions=2))
    monkeypatch.setattr(CopyPlace.__init__, "__kwdefaults__", {"wait_s": 0.0})
    with CopyPlace(target, "f"):
        assert isinstance(refused(source, target), PlaceTakenError)
    copy_federation(source, target, "f")


def test_a_copy_that_slept_past_its_session_does_not_go_on_beside_another() -> None:
    now_s = [1000.0]
    with MemoryBus(clock=lambda: now_s[0]) as target:
        target.create_topics(TOPICS.specs(1))
        with CopyPlace(target, "f") as sleeper:
            now_s[0] += SESSION_S + 1
            with CopyPlace(target, "f") as other:
                with pytest.raises(PlaceTakenError):
                    sleeper.keep()
                other.keep()


def test_somebody_else_who_writes_to_the_target_is_noticed(buses: tuple[Bus, Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copy_writer, "BATCH_RECORDS", 2)
    source, target = buses
    write(source, "health", *[b"beat"] * 6)

    def meddle(_what: str, done: int, _total: int) -> None:
        write(target, "health", b"meddled") if done == 2 else None

    with pytest.raises(IntegrityError, match="somebody else writes"):
        copy_federation(source, target, "f", progress=meddle)
    assert copy_state(target, "f") == UNDER_WAY


def test_a_changed_record_is_found_by_verify(tmp_path: Path) -> None:
    with MemoryBus() as source, SqliteBus(tmp_path / "b.db") as target:
        source.create_topics(TOPICS.specs(2))
        write(source, "deltas", b"changed", *[b"chunk"] * 10)
        copy_federation(source, target, "f", verify=True)
        target._store._connection.execute("UPDATE records SET value = x'ff' WHERE value = CAST('changed' AS BLOB)")
        with pytest.raises(IntegrityError, match="holds another in its place"):
            copy_federation(source, target, "f", verify=True)


# While the source goes on.


class Judging:
    """A source whose server judges and deletes an update each time the copy asks where `accepted` ends."""

    def __init__(self, bus: Bus, times: int) -> None:
        self._bus = bus
        self._left = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def end_offset(self, place: Place) -> int:
        end = self._bus.end_offset(place)
        if place.topic == "f.rounds":  # asked just before `accepted`, and before the updates' second look
            return end
        if place.topic == "f.accepted" and self._left:
            self._left -= 1
            write(self._bus, "updates", b"one", b"two")
            commit(self._bus, "accepted")
            updates = Place("f.updates", 0)
            self._bus.delete_records(updates, self._bus.end_offset(updates) - 1)
        return end


def test_updates_judged_while_they_were_copied_make_it_look_again(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    write(source, "updates", b"waits")
    judging: Any = Judging(source, 5)
    copied = copy_federation(judging, target, "f")
    assert copied.heads["accepted"].commits == 5
    assert [r.value for r in records(target, Place("f.updates", 0))][-1] == b"two"
    assert target.end_offset(Place("f.updates", 0)) == source.end_offset(Place("f.updates", 0))


def test_a_source_that_never_rests_is_given_up_for_now(buses: tuple[Bus, Bus]) -> None:
    source, target = buses
    judging: Any = Judging(source, 1000)
    with pytest.raises(TryAgainError, match="faster than they are copied"):
        copy_federation(judging, target, "f")


# Who may serve.


def test_a_copy_of_some_topics_reads_and_does_not_serve(federation: Federation) -> None:
    with MemoryBus() as target:
        federation.export(target, topics=["steps", "snapshots", "snapshot-chunks"])
        assert copy_state(target, "fed") == PARTIAL
        copy = Federation(target, "fed", federation.keyring.folder)
        assert copy.rebuild(3).digest == federation.rebuild(3).digest
        with pytest.raises(UsageError, match="some topics only"):
            copy.serve()
        assert federation.export(target).complete
        copy.serve()


def test_a_copy_that_is_not_complete_serves_only_where_that_is_asked_for(federation: Federation) -> None:
    with MemoryBus() as target:
        federation.export(target)
        with CopyPlace(target, "fed") as place:
            place.mark(UNDER_WAY)
        copy = Federation(target, "fed", federation.keyring.folder)
        with pytest.raises(TryAgainError, match="not complete"):
            copy.serve()
        copy.serve(even_incomplete=True)


def test_the_copied_logs_have_the_same_commits(federation: Federation, tmp_path: Path) -> None:
    federation.export(f"sqlite:{tmp_path}/copy.db")
    with refold.connect(f"sqlite:{tmp_path}/copy.db") as copy:
        for log in ("accepted", "rounds"):
            ours, theirs = read_all(federation.bus, f"fed.{log}"), read_all(copy.bus, f"fed.{log}")
            assert [entry.hash for entry in theirs] == [entry.hash for entry in ours]
            assert [entry.offset for entry in theirs] == [entry.offset for entry in ours]
        assert commit_hash(b"") not in {entry.hash for entry in theirs}
