"""From `updates` to verdicts, one turn at a time: holes, crashes over one update, open uploads, positions, deletion."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stepped import KEYS, NAMES, events, make, records, send

import refold
from refold.bus import Place
from refold.bus.clock import ManualClock
from refold.bus.ledger import LedgerReader, LedgerWriter, read_all
from refold.bus.memory import MemoryBus
from refold.bus.topics import chunk_headers, hint_header
from refold.consumers import aggregation
from refold.consumers.attempts import MAX_ATTEMPTS
from refold.consumers.commands import send_command
from refold.consumers.detection import _Active
from refold.consumers.intake import Intake
from refold.consumers.view import LogView
from refold.consumers.window import GRACE_S, ChunkWindow
from refold.federation import Federation
from refold.producers.outbox import Parcel
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Alert, Attempted, Checked, EndFederation, EnrolClient, Quarantined
from refold.schemas.errors import IntegrityError, InvalidRecord, PlaceTakenError
from refold.schemas.events import (
    ClientEnrolled,
    FederationEnded,
    Receipts,
    RolledBack,
    RoundClosed,
    RoundCommitted,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.keys import SigningKey
from refold.schemas.payload import Payload, chunk_digest, describe, payload_root
from refold.state.step import Void, compute_step
from refold.testing import SteppedServer, craft_update, random_delta, send_update


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    with MemoryBus() as made:
        yield made


@pytest.fixture
def federation(bus: MemoryBus, tmp_path: Path) -> Federation:
    return make(bus, tmp_path, deadline_s=30.0)


def verdicts(federation: Federation) -> list[tuple[str, int, str]]:
    """Every verdict as (client, offset, reason or "accepted"), in the order of the log."""
    found: list[tuple[str, int, str]] = []
    for entry in read_all(federation.bus, federation.topics.accepted):
        for event in entry.events:
            match event:
                case UpdateAccepted():
                    found.append((event.origin.client, event.origin.offset, "accepted"))
                case UpdateRejected():
                    found += [(event.origin.client, event.origin.offset, event.reasons[0])] * event.count
                case Unattributed():
                    found += [("", event.first_offset, event.reason)] * event.count
    return found


def write(federation: Federation, topic: str, *values: object) -> None:
    with federation.bus.producer() as producer:
        for value in values:
            producer.send(topic, encode(value), partition=0)


def test_a_round_goes_from_updates_to_a_new_model(federation: Federation) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        offsets = [send(federation, name) for name in NAMES]
        server.settle()
        assert verdicts(federation) == [(name, offset, "accepted") for name, offset in zip(NAMES, offsets, strict=True)]
        assert federation.head == 1
        assert federation.rebuild(1).digest != federation.rebuild(0).digest


def test_f13_a_hole_in_checked_is_found_and_looked_into(federation: Federation) -> None:
    """The producer of a member lost a batch: the next record's back-reference shows it."""
    with SteppedServer(federation) as server:
        server.settle()
        offsets = [send(federation, name) for name in NAMES]
        producer = server.members["consistency"]._producer  # type: ignore[attr-defined]
        real, lost = producer.send, list[object]()

        def lossy(topic: str, value: bytes, **more: Any) -> Any:
            fact: object = decode(value)
            if isinstance(fact, Checked) and fact.offset == offsets[1]:
                lost.append(fact)
                return None
            return real(topic, value, **more)

        producer.send = lossy
        server.step("consistency")
        assert len(lost) == 1
        server.step("detection")
        assert intake(server).holes == 1
        server.settle()
        assert [name for name, _, said in verdicts(federation) if said == "accepted"] == ["ann", "bob", "eve"]


def intake(server: SteppedServer) -> Intake:
    active: _Active = server.members["detection"]._active  # type: ignore[attr-defined]
    return active._intake


def test_f13_what_consistency_never_told_of_is_found_before_a_deadline_closes_the_round(bus: MemoryBus, tmp_path: Path) -> None:
    federation = make(bus, tmp_path, minimum=1, heartbeat_s=60.0, deadline_s=30.0)
    with SteppedServer(federation) as server:
        server.settle()
        first = send(federation, "ann")
        beat(federation, server.clock, *NAMES)
        server.settle()
        late = send(federation, "bob")
        server.clock.advance(31)
        server.settle("detection", "aggregation")
        assert verdicts(federation) == [("ann", first, "accepted"), ("bob", late, "accepted")]
        assert events(federation, RoundClosed)[0].closed_by == "deadline"


def test_f30_a_flood_at_the_deadline_is_taken_in_bit_by_bit_and_closes_the_round_all_the_same(
    bus: MemoryBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make(bus, tmp_path, minimum=1, heartbeat_s=60.0, deadline_s=30.0)
    monkeypatch.setattr(Intake.inspect_to_ends, "__kwdefaults__", {"most_bytes": 500})
    most = 0
    with SteppedServer(federation) as server:
        server.settle()
        send(federation, "ann")
        beat(federation, server.clock, *NAMES)
        server.settle()
        with bus.producer() as producer:
            for number in range(300):
                producer.send(federation.topics.updates, b"garbage %d" % number, partition=0)
        late = send(federation, "bob")
        server.clock.advance(31)
        for _ in range(100):
            server.step("detection", "aggregation")
            most = max(most, len(intake(server).waiting))
        found = verdicts(federation)
    assert most < 60
    assert found.count(("bob", late, "accepted")) == 1
    assert len([one for one in found if one[0] == ""]) == 300
    assert events(federation, RoundClosed)[0].closed_by == "deadline"


def test_f07_an_update_that_crashes_every_member_is_judged_undecoded_and_without_blame(federation: Federation) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        offset = send(federation, "ann")
        for life in range(MAX_ATTEMPTS):
            for _ in range(3):  # A life that begins again because the bus failed counts once.
                write(federation, federation.topics.checked, Attempted(0, offset, f"killed-{life}"))
            server.settle("detection")
            assert verdicts(federation) == []
        write(federation, federation.topics.checked, Attempted(0, offset, "the next"))
        server.settle("detection")
        assert verdicts(federation) == [("ann", offset, "poison")]
        assert not refold.schemas.reasons.blames("poison")


def test_f07_attempts_are_counted_across_a_restart_of_detection(federation: Federation) -> None:
    offset = 0
    for turn in range(MAX_ATTEMPTS + 1):
        with SteppedServer(federation, groups=("detection", "aggregation"), member=f"life-{turn}") as server:
            server.settle()
            if turn == 0:
                offset = send(federation, "ann")
            write(federation, federation.topics.checked, Attempted(0, offset, f"killed-{turn}"))
            server.settle()
    assert verdicts(federation) == [("ann", offset, "poison")]


def test_f07_attempts_that_were_followed_by_a_result_count_for_nothing(federation: Federation) -> None:
    """Members that come and go check one update many times over."""
    with SteppedServer(federation) as server:
        server.settle()
        offset = send(federation, "ann")
        server.members["consistency"].close()
        for turn in range(6):
            with SteppedServer(federation, groups=("consistency",), member=f"other-{turn}") as other:
                other.settle()
            server.settle("detection")
        assert len(records(federation, federation.topics.checked, Attempted)) > MAX_ATTEMPTS
        assert verdicts(federation) == []
        assert list(intake(server).waiting) == [(0, offset)]


def test_a_successor_finds_what_waits_and_judges_it_once(federation: Federation) -> None:
    with SteppedServer(federation, member="first") as server:
        server.settle()
        offsets = [send(federation, name) for name in NAMES[:2]]
        refused = send(federation, "eve", base_digest=bytes(32))
        server.settle()
        assert verdicts(federation) == [("eve", refused, "wrong-base")]
    with SteppedServer(federation, member="second") as server:
        server.settle()
        offsets.append(send(federation, "eve", sequence=1))
        server.settle()
    assert [v for v in verdicts(federation) if v[2] == "accepted"] == [
        (name, offset, "accepted") for name, offset in zip(NAMES, offsets, strict=True)
    ]


def test_f08_a_flood_of_garbage_above_an_update_that_waits_neither_stops_detection_nor_swells_its_commits(
    federation: Federation, rng: np.random.Generator
) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        send(federation, "ann")
        for _ in range(3):
            with federation.bus.producer() as producer:
                for _ in range(1000):
                    producer.send(federation.topics.updates, rng.bytes(8), partition=0)
            server.settle()
        for name in ("bob", "eve"):
            send(federation, name)
        server.settle()
        assert sum(said == "accepted" for _, _, said in verdicts(federation)) == 3
        assert len(verdicts(federation)) == 3003
        largest = max(len(encode(entry.commit)) for entry in read_all(federation.bus, federation.topics.accepted)[4:-1])
        assert largest < 20_000


def sized(federation: Federation, count: int = 3) -> tuple[bytes, ...]:
    """An honest delta cut into several chunks."""
    from refold.schemas.codec import encode_integers
    from refold.schemas.layout import Layout

    schema = federation.genesis.schema
    arrays = [np.arange(1, tensor.size + 1, dtype=np.int32) for tensor in schema.tensors]
    return tuple(encode_integers(arrays, Layout.of(schema), max_chunk_bytes=1))


def test_what_is_judged_is_deleted_and_what_is_still_being_uploaded_is_not(bus: MemoryBus, tmp_path: Path) -> None:
    """Chunks of an open upload lie below other clients' manifests."""
    federation = make(bus, tmp_path, minimum=1)
    topic, place = federation.topics.updates, Place(federation.topics.updates, 0)
    with SteppedServer(federation) as server:
        server.settle()
        parcel = craft_update(federation, "ann", KEYS["ann"], chunks=random_delta(federation.genesis.schema), inline=False)
        with bus.producer() as producer:
            chunk = producer.send(topic, parcel.chunks[0], key=b"ann", partition=0, headers=chunk_headers()).result()
        for turn in range(5):
            send(federation, "bob", sequence=turn, base_digest=bytes(32))
            server.settle()
        assert bus.begin_offset(place) == chunk
        send_update(federation, parcel, "ann", chunks=(), headers=dict([hint_header(chunk, chunk)]))
        server.settle()
        server.clock.advance(10)
        server.settle()
        assert [said for name, _, said in verdicts(federation) if name == "ann"] == ["accepted"]
        assert bus.begin_offset(place) == bus.end_offset(place), "now there is nothing left to keep"


def test_an_upload_outlives_restarts_of_every_group(bus: MemoryBus, tmp_path: Path) -> None:
    federation = make(bus, tmp_path, minimum=1)
    topic = federation.topics.updates
    parcel = craft_update_opened(federation, inline=False)
    with bus.producer() as producer:
        chunk = producer.send(topic, parcel.chunks[0], key=b"ann", partition=0, headers=chunk_headers()).result()
    for turn in range(4):
        with SteppedServer(federation, member=f"life-{turn}") as server:
            server.settle()
            send(federation, "bob", sequence=turn, base_digest=bytes(32))
            server.settle()
    with SteppedServer(federation, member="last") as server:
        server.settle()
        send_update(federation, parcel, "ann", chunks=(), headers=dict([hint_header(chunk, chunk)]))
        server.settle()
        server.clock.advance(10)
        server.settle()
    assert [said for name, _, said in verdicts(federation) if name == "ann"] == ["accepted"]


def test_an_upload_outlives_a_hole_that_detection_looks_into_itself(bus: MemoryBus, tmp_path: Path) -> None:
    """Detection sees only the hole; what began before it is not its to delete."""
    federation = make(bus, tmp_path, minimum=1, heartbeat_s=60.0, deadline_s=30.0)
    place = Place(federation.topics.updates, 0)
    parcel = craft_update_opened(federation, inline=False)
    with bus.producer() as producer:
        chunk = producer.send(place.topic, parcel.chunks[0], key=b"ann", partition=0, headers=chunk_headers()).result()
    with SteppedServer(federation) as server:
        server.settle()
        send(federation, "bob", base_digest=bytes(32))
        server.settle()
        beat(federation, server.clock, *NAMES)
        send(federation, "eve", seed=3)
        server.settle()
        send(federation, "bob", sequence=1, seed=4)
        for _ in range(2):
            server.clock.advance(16)
            server.settle("detection", "aggregation")
        assert federation.head == 1
        assert bus.begin_offset(place) == chunk


def craft_update_opened(federation: Federation, **changes: Any) -> Parcel:
    with SteppedServer(federation, member="opener") as server:
        server.settle()
    chunks = random_delta(federation.genesis.schema)
    return craft_update(federation, "ann", KEYS["ann"], chunks=chunks, **changes)


def test_f34_an_update_that_names_anothers_bytes_cannot_stop_detection_when_these_are_gone(
    bus: MemoryBus, tmp_path: Path
) -> None:
    """The first manifest is refused and its chunk deleted while the second, which names the same chunk, waits for its round."""
    federation = make(bus, tmp_path)
    chunks = random_delta(federation.genesis.schema)
    with SteppedServer(federation) as server:
        server.settle()
        both: dict[str, Any] = {"chunks": chunks, "inline": False, "session": (1, bytes(8))}
        first = craft_update(federation, "eve", KEYS["eve"], base_digest=bytes(32), **both)
        second = craft_update(federation, "eve", KEYS["eve"], sequence=1, **both)
        send_update(federation, first, "eve")
        borrowed = send_update(federation, second, "eve", chunks=())
        server.settle()
        assert (0, borrowed) in intake(server).waiting
        bus.delete_records(Place(federation.topics.updates, 0), borrowed)
        for name in ("ann", "bob"):
            send(federation, name, seed=1)
        server.settle()
        assert ("eve", borrowed, "missing-chunk") in verdicts(federation)
        send(federation, "eve", sequence=2, seed=2)
        server.settle()
        assert federation.head == 1


def test_quarantine_keeps_the_bytes_as_they_came_and_why(federation: Federation) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        parcel = craft_update(federation, "ann", KEYS["ann"], inline=False, schema_digest=bytes(32))
        offset = send_update(federation, parcel, "ann")
        with federation.bus.producer() as producer:
            strange = producer.send(federation.topics.updates, b"not a record", partition=0).result()
        server.settle()
    kept = {item.offset: item for item in records(federation, federation.topics.quarantine, Quarantined)}
    assert kept[offset].reasons == ("schema",)
    assert kept[offset].record_bytes == len(parcel.manifest)
    assert kept[strange].client == ""
    assert kept[strange].payload.inline == b"not a record"


def test_a_missed_quorum_extends_the_deadline_and_keeps_the_updates(federation: Federation) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        sent = [send(federation, "ann")]
        beat(federation, server.clock, "ann", "bob", "eve")
        server.settle()
        for _ in range(4):
            server.clock.advance(10)
            beat(federation, server.clock, "ann", "bob", "eve")
            server.settle()
        assert verdicts(federation) == []
        assert [alert.subject for alert in records(federation, federation.topics.alerts, Alert)] == ["round"]
        sent += [send(federation, name) for name in ("bob", "eve")]
        server.settle()
        assert [offset for _, offset, said in verdicts(federation) if said == "accepted"] == sent


def beat(federation: Federation, clock: ManualClock, *names: str) -> None:
    from refold.schemas.keys import HEARTBEAT_TAG
    from refold.schemas.updates import Heartbeat, heartbeat_digest

    with federation.bus.producer() as producer:
        for name in names:
            session = (2**40, int(clock.monotonic_s() * 1000).to_bytes(8, "big"))
            heartbeat = Heartbeat("toy", name, *session, 0, 60_000, "waiting", 0, bytes(32), (), 0, KEYS[name].key_id)
            signature = KEYS[name].sign(HEARTBEAT_TAG, heartbeat_digest(heartbeat))
            heartbeat = replace(heartbeat, signature=signature)
            producer.send(federation.topics.health, encode(heartbeat), partition=0)


def test_a_command_sent_twice_has_its_effect_once(federation: Federation) -> None:
    operator = federation.keyring.operator()
    send_command(federation.bus, federation.topics, EnrolClient("new", KEYS["ann"].public), operator, ManualClock())
    with federation.bus.consumer() as consumer, federation.bus.producer() as producer:
        consumer.assign([Place(federation.topics.commands, 0)])
        for record in consumer.poll():
            producer.send(federation.topics.commands, record.value, partition=0)
    for _ in range(2):
        send_command(federation.bus, federation.topics, EndFederation("enough"), operator, ManualClock())
    with SteppedServer(federation) as server:
        server.settle()
    assert sorted(event.client for event in events(federation, ClientEnrolled)) == ["ann", "bob", "eve", "new"]
    assert len(events(federation, FederationEnded)) == 1


def test_f35_a_command_that_no_operator_signed_has_no_effect(federation: Federation) -> None:
    stranger = SigningKey.generate()
    send_command(federation.bus, federation.topics, EnrolClient("mallory", stranger.public), stranger, ManualClock())
    with SteppedServer(federation) as server:
        server.settle()
    assert "mallory" not in {event.client for event in events(federation, ClientEnrolled)}


def test_f14_a_log_that_lost_its_tail_is_refused_at_the_start(federation: Federation, tmp_path: Path) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        for name in NAMES:
            send(federation, name)
        server.settle()
    with MemoryBus() as shorter:
        shorter.create_topics(federation.bus.topics().values())
        with shorter.producer() as producer, federation.bus.consumer() as consumer:
            consumer.assign([Place(federation.topics.accepted, 0), Place(federation.topics.rounds, 0)])
            read = consumer.poll(max_records=10_000)
            last = max(record.offset for record in read if record.topic == federation.topics.accepted)
            for record in read:
                if (record.topic, record.offset) != (federation.topics.accepted, last):
                    producer.send(record.topic, record.value, key=record.key, partition=0, headers=record.headers)
        copy = Federation(shorter, "toy", tmp_path)
        with pytest.raises(IntegrityError, match="no longer has"):
            SteppedServer(copy, groups=("detection",)).settle()


# The window of chunks that consistency keeps.


def chunk(offset: int, value: bytes, partition: int = 0) -> Any:
    from refold.bus import Record

    return Record("toy.updates", partition, offset, 0, None, value, chunk_headers())


@pytest.fixture
def window_on(bus: MemoryBus, federation: Federation) -> Callable[..., tuple[ChunkWindow, ManualClock]]:
    def make_window(**bounds: int) -> tuple[ChunkWindow, ManualClock]:
        clock = ManualClock()
        return ChunkWindow(bus, federation.topics.updates, clock, **bounds), clock

    return make_window


def test_chunks_that_fell_out_of_the_window_still_hold_back_deletion(
    window_on: Callable[..., tuple[ChunkWindow, ManualClock]],
) -> None:
    window, _ = window_on(max_bytes=1000)
    for offset in range(50):
        window.add(chunk(offset, bytes([offset]) * 100))
    assert window._bytes <= 1000
    assert window.open_from(0, 50) == 0
    assert window.open_from(1, 50) == 50


def test_f34_chunks_without_a_manifest_are_bounded_in_count_bytes_and_time(
    window_on: Callable[..., tuple[ChunkWindow, ManualClock]],
) -> None:
    window, clock = window_on(max_bytes=10_000, max_open=500)
    for offset in range(20_000):
        window.add(chunk(offset, offset.to_bytes(3, "big")))
    assert len(window) == 500
    assert window.open_from(0, 20_000) == 0, "those forgotten too have their grace"
    clock.advance(GRACE_S + 1)
    assert window.open_from(0, 20_000) == 20_000
    window.add(chunk(20_000, b"new"))
    assert len(window) == 1
    assert window._bytes == 3


def test_f34_a_writers_key_as_long_as_a_record_costs_the_window_no_more_than_a_short_one(
    window_on: Callable[..., tuple[ChunkWindow, ManualClock]],
) -> None:
    window, _ = window_on()
    tracemalloc.start()
    try:
        for number in range(100):
            window.add(replace(chunk(number, b"%d" % number), key=bytes(900_000) + b"%d" % number))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(window) == 100
    assert held < 1 << 20


def test_f34_a_chunk_of_another_length_than_the_manifest_says_is_as_good_as_missing(
    window_on: Callable[..., tuple[ChunkWindow, ManualClock]],
) -> None:
    window, _ = window_on()
    window.add(chunk(0, b"four"))
    digest = chunk_digest(b"four")
    payload = Payload(payload_root([digest], [1]), (digest,), (1,), None, None)
    with pytest.raises(InvalidRecord) as caught:
        list(window.read(payload, None))
    assert caught.value.reason == "missing-chunk"


def test_the_window_hands_over_chunks_until_they_are_forgotten(
    window_on: Callable[..., tuple[ChunkWindow, ManualClock]],
) -> None:
    window, _ = window_on()
    values = [b"one", b"two"]
    payload = describe(values, inline_bytes=-1)
    for offset, value in enumerate(values):
        window.add(chunk(offset, value))
    for _ in range(2):
        assert list(window.read(payload, None)) == values
    assert window.first_offset(payload, chunk(9, b"manifest")) == 0
    window.forget(payload, b"another")
    assert len(window) == 2
    window.forget(payload, None)
    assert (len(window), window.open_from(0, 9), window._bytes) == (0, 9, 0)
    with pytest.raises(InvalidRecord) as caught:
        list(window.read(payload, None))
    assert caught.value.reason == "missing-chunk"


def test_a_partition_begun_anew_is_forgotten_and_others_are_not(
    window_on: Callable[..., tuple[ChunkWindow, ManualClock]],
) -> None:
    window, _ = window_on()
    window.add(chunk(3, b"mine", 0))
    window.add(chunk(4, b"yours", 1))
    window.begin_anew(0)
    assert (window.open_from(0, 9), window.open_from(1, 9)) == (9, 4)


def test_f36_a_repeat_of_an_accepted_update_after_the_end_is_a_repeat_and_gets_no_receipt(
    bus: MemoryBus, tmp_path: Path
) -> None:
    federation = make(bus, tmp_path, rounds=1, deadline_s=30.0)
    with SteppedServer(federation) as server:
        server.settle()
        parcels = {name: craft_update(federation, name, KEYS[name]) for name in NAMES}
        for name, parcel in parcels.items():
            send_update(federation, parcel, name)
        server.settle()
        assert len(events(federation, FederationEnded)) == 1
        repeat = send_update(federation, parcels["ann"], "ann")
        server.settle()
    assert verdicts(federation)[-1] == ("ann", repeat, "duplicate")
    told = [
        receipt.outcome
        for entry in read_all(bus, federation.topics.rounds)
        for event in entry.events
        if isinstance(event, Receipts)
        for receipt in event.receipts
        if receipt.digest == parcels["ann"].digest
    ]
    assert told == ["accepted"]


def test_f12_a_detection_that_a_late_commit_went_past_stands_back_though_it_has_nothing_to_write(
    federation: Federation,
) -> None:
    """Its predecessor's last commit arrives after it took over; only `rounds` tells it so."""
    with SteppedServer(federation) as server:
        server.settle()
        reader = LedgerReader(federation.bus, federation.topics.accepted)
        assert list(reader.read_to_end())
        writer = LedgerWriter(federation.bus, reader, writer="dead", clock=server.clock)
        assert writer.append((FederationEnded(0, "late"),), reader.chain.position).taken
        server.step("aggregation")
        with pytest.raises(PlaceTakenError):
            server.step("detection")
        reader.close()
        writer.close()


def test_what_a_rollback_refuses_and_the_next_one_allows_is_taken(bus: MemoryBus, tmp_path: Path) -> None:
    """Both commands lie there when detection comes back: it obeys one after the other before it gives verdicts."""
    federation = make(bus, tmp_path, deadline_s=30.0, max_staleness=5)
    with SteppedServer(federation) as server:
        server.settle()
        for _ in range(2):
            for name in NAMES:
                send(federation, name)
            server.settle()
        offset = send(federation, "ann")
        server.settle()
        for parent in (1, 2):
            federation.roll_back(parent, "to and fro")
        server.settle()
        assert [(event.parent, event.abandoned) for event in events(federation, RolledBack)] == [(1, 2), (2, 3)]
        for name in ("bob", "eve"):
            send(federation, name)
        server.clock.advance(31)
        server.settle()
        assert ("ann", offset, "accepted") in verdicts(federation)
        assert federation.head == 5


def test_a_rollback_that_is_undone_makes_no_unsound_update_sound(federation: Federation) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        for _ in range(2):
            for name in NAMES:
                send(federation, name)
            server.settle()
        parcel = craft_update(federation, "ann", KEYS["ann"])
        offset = send_update(federation, replace(parcel, chunks=(b"not what was signed",)), "ann")
        server.step("consistency")
        for parent in (1, 2):
            federation.roll_back(parent, "to and fro")
        server.settle()
        (found,) = [said for name, at, said in verdicts(federation) if (name, at) == ("ann", offset)]
        assert found != "accepted"


class Counted(int):
    """A number that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < other

    def __ge__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) >= other


def test_what_a_commit_costs_does_not_grow_with_how_far_aggregation_lies_behind(federation: Federation) -> None:
    view = LogView(federation.bus, federation.topics)
    view._roster = SimpleNamespace(fold=lambda entry: None)  # type: ignore[assignment]
    for index in range(1, 3001):
        commit = SimpleNamespace(next_index=Counted(index))
        view.fold(SimpleNamespace(commit=commit, hash=index.to_bytes(32, "big")))  # type: ignore[arg-type]
    assert Counted.compared < 10 * 3000
    view.rounds.lineage.position = replace(view.rounds.lineage.position, accepted_index=2999)
    view.fold(SimpleNamespace(commit=SimpleNamespace(next_index=3001), hash=bytes(32)))  # type: ignore[arg-type]
    assert list(view._hashes) == [2999, 3000, 3001]
    view.close()


@pytest.mark.parametrize("voids", [0, 1])
def test_a_last_round_that_is_void_is_made_up_for_before_the_federation_ends(
    bus: MemoryBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voids: int
) -> None:
    real, left = compute_step, [Void("w", "beyond its lattice", (0,))] * voids
    monkeypatch.setattr(aggregation, "compute_step", lambda *args: left.pop() if left else real(*args))
    federation = make(bus, tmp_path, rounds=1)
    with SteppedServer(federation) as server:
        server.settle()
        for sequence in range(1 + voids):
            assert events(federation, FederationEnded) == []
            history = federation.history()
            history.close()
            schema_digest = history.lineage.schema_of(history.lineage.head).digest
            for name in NAMES:
                send(federation, name, session=(0, b"s" * 8), sequence=sequence, schema_digest=schema_digest)
            server.settle()
        last = 1 + 2 * voids
        assert events(federation, FederationEnded) == [FederationEnded(last, "all rounds are done")]
        assert [event.outcome for event in committed(federation)] == ["void", "regrid"] * voids + ["applied"]
        offset = send(federation, "ann", session=(0, b"s" * 8), sequence=9)
        server.settle()
    assert verdicts(federation)[-1] == ("ann", offset, "federation-ended")
    # The audit takes the planted void for what it is, and nothing else is amiss.
    assert [finding.check for finding in federation.verify().findings] == ["steps"] * voids


def committed(federation: Federation) -> list[RoundCommitted]:
    entries = read_all(federation.bus, federation.topics.rounds)
    return [event for entry in entries for event in entry.events if isinstance(event, RoundCommitted)]
