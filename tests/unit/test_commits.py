"""Logs of commits: one chain, whatever two writers, a bus that fails and strangers in the topic do to it."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from refold.bus import Place, TopicSpec
from refold.bus.clock import ManualClock
from refold.bus.ledger import Entry, LedgerReader, LedgerWriter, read_all
from refold.bus.memory import MemoryBus
from refold.bus.topics import event_headers
from refold.schemas.canonical import MAX_RECORD_BYTES, encode
from refold.schemas.checks import EnrolClient
from refold.schemas.commits import (
    MAX_INLINE_EVENTS_BYTES,
    Chain,
    Commit,
    EventList,
    PartitionPosition,
    Position,
    next_commit,
    pack_events,
    root_hash,
)
from refold.schemas.errors import BusError, IntegrityError
from refold.schemas.events import FederationEnded
from refold.testing import LOST, UNSAID, FlakyBus

LOG = "toy.accepted"
PLACE = Place(LOG, 0)
CHUNK_HEADERS = event_headers("EventList", source=LOG, subject="x", identity="", time_ms=0)


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    with MemoryBus() as made:
        made.create_topics([TopicSpec(LOG)])
        yield made


def writer_on(bus: MemoryBus | FlakyBus, name: str) -> LedgerWriter:
    reader = LedgerReader(bus, LOG)
    for _ in reader.read_to_end():
        pass
    return LedgerWriter(bus, reader, writer=name, clock=ManualClock())


def event(number: int, text: str = "") -> FederationEnded:
    return FederationEnded(number, text)


def large(number: int, count: int = 300) -> tuple[FederationEnded, ...]:
    """More than 900 kB of events."""
    return tuple(event(number, "x" * 4000) for _ in range(count))


def raw(bus: MemoryBus, value: bytes | None, **more: object) -> None:
    with bus.producer() as producer:
        producer.send(LOG, value, partition=0, **more)  # type: ignore[arg-type]


def last_record(bus: MemoryBus) -> bytes:
    with bus.consumer() as consumer:
        consumer.assign([PLACE])
        return consumer.poll()[-1].value or b""


def check_log(bus: MemoryBus | FlakyBus) -> list[Entry]:
    """Read the log and check all that a log promises of itself; the checker of this file."""
    reader = LedgerReader(bus, LOG)
    entries = list(reader.read_to_end())
    head, index = root_hash(LOG), 0
    for entry in entries:
        assert entry.commit.previous == head, "the chain forks"
        assert entry.commit.first_index == index, "indexes are not dense"
        assert len(entry.events) == entry.commit.count
        head, index = entry.hash, index + entry.commit.count
    assert (reader.chain.head, reader.chain.next_index, reader.chain.commits) == (head, index, len(entries))
    return entries


def rounds(entries: list[Entry]) -> list[int]:
    return [each.round for entry in entries for each in entry.events]


def test_what_is_appended_is_read_back_as_taken(bus: MemoryBus) -> None:
    writer = writer_on(bus, "a")
    first = writer.append((event(1), event(2)), Position(checked=5))
    second = writer.append((event(3),), Position(checked=6))
    assert first.taken
    assert second.taken
    entries = check_log(bus)
    assert rounds(entries) == [1, 2, 3]
    assert [next(entry.indexed())[0] for entry in entries] == [0, 2]
    assert entries[-1].commit.position.checked == 6
    assert read_all(bus, LOG) == entries


def test_an_empty_log_is_a_chain_without_commits(bus: MemoryBus) -> None:
    assert check_log(bus) == []


def test_two_logs_of_one_federation_have_other_roots() -> None:
    assert root_hash("toy.accepted") != root_hash("toy.rounds")


def test_of_two_writers_at_one_head_one_is_taken_and_the_other_told(bus: MemoryBus) -> None:
    one, two = writer_on(bus, "one"), writer_on(bus, "two")
    assert one.append((event(1),), Position()).taken
    beaten = two.append((event(2),), Position())
    assert not beaten.taken
    assert rounds(list(beaten.entries)) == [1], "the loser folds what was taken"
    assert two.append((event(3),), Position()).taken
    assert rounds(check_log(bus)) == [1, 3]


def test_f12_a_zombies_late_commit_is_skipped_and_counted_wherever_it_arrives(bus: MemoryBus) -> None:
    late = encode(next_commit(Chain.of(LOG), (encode(event(666)),), Position(), writer="zombie", epoch=1, time_ms=0))
    writer = writer_on(bus, "a")
    writer.append((event(1),), Position())
    raw(bus, late)
    writer.append((event(2),), Position())
    raw(bus, late)
    assert rounds(check_log(bus)) == [1, 2]
    reader = LedgerReader(bus, LOG)
    list(reader.read_to_end())
    assert reader.chain.skipped == 2


def test_f11_a_commit_whose_acknowledgement_was_lost_is_found_by_reading(bus: MemoryBus) -> None:
    fate: list[str | None] = [UNSAID]
    flaky = FlakyBus(bus, lambda topic, value: fate.pop() if fate else None)
    writer = writer_on(flaky, "a")
    with pytest.raises(BusError):
        writer.append((event(1),), Position())
    again = writer_on(bus, "a")
    assert again.append((event(2),), Position()).taken
    assert rounds(check_log(bus)) == [1, 2], "the log held the first one all along"


def test_f11_a_commit_that_never_arrived_is_simply_not_there(bus: MemoryBus) -> None:
    fate: list[str | None] = [LOST]
    writer = writer_on(FlakyBus(bus, lambda topic, value: fate.pop() if fate else None), "a")
    with pytest.raises(BusError):
        writer.append((event(1),), Position())
    assert check_log(bus) == []
    assert writer.append((event(2),), Position()).taken, "the writer's own reader knows that nothing came"
    assert rounds(check_log(bus)) == [2]


def test_a_repeated_commit_counts_once(bus: MemoryBus) -> None:
    writer = writer_on(bus, "a")
    writer.append((event(1),), Position())
    for _ in range(3):
        raw(bus, last_record(bus))
    assert rounds(check_log(bus)) == [1]
    assert writer.append((event(2),), Position()).taken


def test_f30_garbage_in_the_topic_is_skipped_and_counted(bus: MemoryBus, rng: np.random.Generator) -> None:
    writer = writer_on(bus, "a")
    for turn in range(20):
        writer.append((event(turn),), Position())
        raw(bus, rng.bytes(int(rng.integers(0, 200))))
        raw(bus, None)
        raw(bus, rng.bytes(50), headers=CHUNK_HEADERS)
        raw(bus, encode(EnrolClient("stranger", bytes(32))), key=b"k")
    assert rounds(check_log(bus)) == list(range(20))
    reader = LedgerReader(bus, LOG)
    list(reader.read_to_end())
    assert reader.chain.skipped == 60


def test_a_commit_that_lies_about_its_events_does_not_extend_the_chain(bus: MemoryBus) -> None:
    good = next_commit(Chain.of(LOG), (encode(event(1)),), Position(), writer="w", epoch=1, time_ms=0)
    liar = Commit(1, 0, good.previous, "w", 0, Position(), 2, good.events, None)
    gap = Commit(1, 1, good.previous, "w", 0, Position(), 1, good.events, None)
    raw(bus, encode(liar))
    raw(bus, encode(gap))
    assert check_log(bus) == []
    assert writer_on(bus, "a").append((event(1),), Position()).taken


def test_large_commits_travel_as_chunks_before_the_commit(bus: MemoryBus) -> None:
    writer = writer_on(bus, "a")
    assert writer.append(large(1), Position()).taken
    assert writer.append((event(2),), Position()).taken
    assert writer.append(large(3, 600), Position()).taken
    assert bus.end_offset(PLACE) == 3 + 2 + 3
    assert rounds(check_log(bus)) == [1] * 300 + [2] + [3] * 600


def test_large_commits_are_read_among_other_peoples_chunks(bus: MemoryBus, rng: np.random.Generator) -> None:
    """A writer killed between its chunks and its commit leaves chunks; so do two that write at once."""
    strangers = itertools.cycle([rng.bytes(100), pack_events((b"x" * 99,))[0]])
    writer = writer_on(FlakyBus(bus, lambda topic, value: raw(bus, next(strangers), headers=CHUNK_HEADERS)), "a")
    for number in range(4):
        assert writer.append(large(number), Position()).taken
        raw(bus, encode(EventList(tuple(map(encode, large(9, 200))))), headers=CHUNK_HEADERS)
    assert rounds(check_log(bus)) == [n for n in range(4) for _ in range(300)]


def test_chunks_that_fell_out_of_the_window_are_found_in_the_topic(bus: MemoryBus) -> None:
    flood = [300]

    def after_chunks(topic: str, value: bytes | None) -> None:
        if value and len(value) < 1000:  # The commit itself is about to be sent.
            while flood[0]:
                flood[0] -= 1
                raw(bus, b"chunk %d" % flood[0], headers=CHUNK_HEADERS)

    writer = writer_on(FlakyBus(bus, after_chunks), "a")
    assert writer.append(large(1), Position()).taken
    assert rounds(check_log(bus)) == [1] * 300


def test_a_commit_whose_chunks_are_gone_is_an_integrity_error_and_stays_one(bus: MemoryBus) -> None:
    writer = writer_on(bus, "a")
    writer.append((event(1),), Position())
    writer.append(large(2), Position())
    commit = last_record(bus)
    with MemoryBus() as copy:
        copy.create_topics([TopicSpec(LOG)])
        other = writer_on(copy, "a")
        other.append((event(1),), Position())
        raw(copy, commit)
        reader = LedgerReader(copy, LOG)
        assert rounds(reader.poll()) == [1], "what came before is handed over"
        for _ in range(2):
            with pytest.raises(IntegrityError):
                reader.poll()
        assert reader.chain.commits == 1


def test_an_event_of_a_newer_refold_stops_the_reader_at_its_place(bus: MemoryBus) -> None:
    chain = Chain.of(LOG)
    raw(bus, encode(next_commit(chain, (b"\x93\xcd\x7f\xff\x01\xc0",), Position(), writer="w", epoch=1, time_ms=0)))
    reader = LedgerReader(bus, LOG)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="upgrade"):
            reader.poll()


@pytest.mark.parametrize("sizes", [(10, 60_000), (899_990, 1), (450_000, 2), (1, 1), (30_000, 30)])
def test_commits_of_every_size_are_cut_so_that_each_record_fits(bus: MemoryBus, sizes: tuple[int, int]) -> None:
    size, count = sizes
    reader = LedgerReader(bus, LOG)
    writer = LedgerWriter(bus, reader, writer="a", clock=ManualClock())
    text = encode(EventList((bytes(max(0, size - 12)),)))
    events = (EventList((bytes(max(0, size - 12)),)),) * count
    position = Position(
        updates=tuple(PartitionPosition(p, 2**40, tuple((2**41 + i, 2**41 + i) for i in range(0, 2000, 2))) for p in range(4))
    )
    assert len(text) <= MAX_RECORD_BYTES
    assert writer.append(events, position).taken
    assert sum(entry.commit.count for entry in check_log(bus)) == count


def test_events_are_packed_into_as_few_records_as_hold_them() -> None:
    events = tuple(bytes(400_000) for _ in range(5))
    parts = pack_events(events)
    assert len(parts) == 3
    assert all(len(part) <= MAX_INLINE_EVENTS_BYTES + 1000 for part in parts)


class Mistake(AssertionError):
    """What the simulation's checker raises."""


def simulate(bus: MemoryBus, seed: int, *, writers: int = 3, turns: int = 40) -> dict[str, int]:
    """Let writers append, be delayed, die, lose acknowledgements and come back; then check the log.

    Each event carries a number drawn once. Returns how often each rare thing happened.
    """
    rng = np.random.default_rng(seed)
    numbers = itertools.count()
    seen: dict[str, int] = dict.fromkeys(("taken", "beaten", "lost", "unsaid", "late", "restarted"), 0)
    sure: list[int] = []
    delayed: list[bytes] = []

    def fate(topic: str, value: bytes | None) -> str | None:
        draw = rng.random()
        if draw < 0.08:
            seen["lost"] += 1
            delayed.append(value or b"")
            return LOST
        if draw < 0.16:
            seen["unsaid"] += 1
            return UNSAID
        return None

    flaky = FlakyBus(bus, fate)
    alive = [writer_on(flaky, f"w{i}") for i in range(writers)]
    for _ in range(turns):
        who = int(rng.integers(writers))
        number = next(numbers)
        try:
            appended = alive[who].append((event(number),), Position(checked=number))
            seen["taken" if appended.taken else "beaten"] += 1
            if appended.taken:
                sure.append(number)
        except BusError:
            seen["restarted"] += 1
            if rng.random() < 0.5:
                alive[who] = writer_on(flaky, f"w{who}")
        while delayed and rng.random() < 0.5:
            raw(bus, delayed.pop(int(rng.integers(len(delayed)))))
            seen["late"] += 1
    found = rounds(check_log(bus))
    if len(set(found)) != len(found):
        raise Mistake("an event is in the log twice")
    if [number for number in found if number in set(sure)] != sure:
        raise Mistake("a commit that was said to be taken is not there, or in another order")
    return seen


def fresh() -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics([TopicSpec(LOG)])
    return bus


def run_many(seed: int, runs: int) -> dict[str, int]:
    totals: dict[str, int] = {}
    for run in range(runs):
        with fresh() as bus:
            for what, count in simulate(bus, seed + run).items():
                totals[what] = totals.get(what, 0) + count
    return totals


def test_f12_hundreds_of_interleavings_leave_one_chain_and_lose_nothing(seed: int) -> None:
    totals = run_many(seed, 300)
    assert all(totals.values()), f"a rare state was never reached: {totals}"


def test_the_simulation_finds_a_reader_that_does_not_check_the_previous_hash(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: with the hash unchecked the same checker must fail."""
    monkeypatch.setattr(Chain, "_extends", lambda self, commit: True)
    failures = sum(fails(partial(run_many, seed + run, 1)) for run in range(40))
    assert failures > 20


def fails(run: Callable[[], object]) -> bool:
    try:
        run()
    except AssertionError:
        return True
    return False


def test_a_reader_may_start_from_a_chain_already_followed(bus: MemoryBus) -> None:
    writer = writer_on(bus, "a")
    writer.append((event(1),), Position())
    reader = LedgerReader(bus, LOG)
    list(reader.read_to_end())
    writer.append((event(2),), Position())
    later = LedgerReader(bus, LOG, chain=reader.chain, next_offset=reader.next_offset)
    assert rounds(list(later.read_to_end())) == [2]
    assert reader.chain.commits == 1, "the chain given is copied"


def test_a_judged_offset_is_below_the_next_or_in_a_run() -> None:
    position = PartitionPosition(0, 10, ((12, 12), (15, 20)))
    assert [offset for offset in range(25) if position.is_judged(offset)] == [*range(10), 12, *range(15, 21)]
