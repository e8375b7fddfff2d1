"""Who may take part: commands about clients, what they do to updates of every age, and noise that is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stepped import KEYS, NAMES, events, make, records, send

import refold
from refold.bus import Place, Record
from refold.bus.clock import ManualClock
from refold.bus.memory import MemoryBus
from refold.bus.topics import chunk_headers
from refold.consumers.audit import Audit
from refold.consumers.commands import send_command
from refold.consumers.window import ChunkWindow
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.checks import Alert, BanClient, Quarantined, RevokeKeys
from refold.schemas.errors import ConfigurationError, UsageError
from refold.schemas.events import Unattributed, UpdateAccepted, UpdateRejected
from refold.schemas.identity import ClientBanned, ClientEnrolled, ClientReleased, ClientRevoked, UpdatesRefused
from refold.schemas.keys import SigningKey
from refold.schemas.payload import describe
from refold.testing import SteppedServer, craft_update, send_update


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    with MemoryBus() as made:
        yield made


@pytest.fixture
def federation(bus: MemoryBus, tmp_path: Path) -> Federation:
    return make(bus, tmp_path)


@pytest.fixture
def server(federation: Federation) -> Iterator[SteppedServer]:
    with SteppedServer(federation) as made:
        made.settle()
        yield made


def verdicts(federation: Federation) -> list[tuple[str, str, int]]:
    """Every verdict as (client, reason or "accepted", count), in the order of the log."""
    found: list[tuple[str, str, int]] = []
    for event in events(federation, UpdateAccepted, UpdateRejected, UpdatesRefused, Unattributed):
        match event:
            case UpdateAccepted():
                found.append((event.origin.client, "accepted", 1))
            case UpdateRejected():
                found.append((event.origin.client, event.reasons[0], event.count))
            case UpdatesRefused():
                found.append((event.client, event.reason, event.count))
            case Unattributed():
                found.append(("", event.reason, event.count))
    return found


def assert_sound(federation: Federation) -> None:
    assert [str(finding) for finding in Audit(federation.bus, federation.topics).run() if finding.is_broken] == []


# Revoked keys.


def test_f35_what_a_revoked_key_signs_is_refused_and_told_to_people(federation: Federation, server: SteppedServer) -> None:
    federation.revoke("ann", reason="lost laptop")
    server.settle()
    send(federation)
    server.settle()
    assert events(federation, ClientRevoked)[0].key_ids == (KEYS["ann"].key_id,)
    assert verdicts(federation) == [("", "revoked-key", 1)]
    assert any("revoked-key" in alert.what for alert in records(federation, federation.topics.alerts, Alert))
    assert_sound(federation)


def test_what_waits_for_its_round_is_refused_when_its_key_is_revoked(federation: Federation, server: SteppedServer) -> None:
    send(federation)
    server.settle()
    assert verdicts(federation) == []
    federation.revoke("ann", KEYS["ann"].key_id)
    server.settle()
    assert verdicts(federation) == [("", "revoked-key", 1)]
    for name in ("bob", "eve"):
        send(federation, name)
    server.settle()
    assert federation.head == 0, "the round has two updates and needs three"
    assert_sound(federation)


def test_a_successor_refuses_alike_what_waited_when_the_key_was_revoked(federation: Federation) -> None:
    with SteppedServer(federation, member="first") as first:
        first.settle()
        send(federation)
        first.settle()
    federation.revoke("ann")
    with SteppedServer(federation, member="second") as second:
        second.settle()
    assert verdicts(federation) == [("", "revoked-key", 1)]


def test_one_key_of_two_is_revoked_and_the_other_speaks_on(federation: Federation, server: SteppedServer) -> None:
    other = SigningKey.generate()
    federation.enroll("ann", other.public)
    federation.revoke("ann", KEYS["ann"].key_id)
    server.settle()
    send(federation)
    send(federation, key=other, base_digest=bytes(32))
    server.settle()
    assert verdicts(federation) == [("", "revoked-key", 1), ("ann", "wrong-base", 1)]


def test_a_revoked_key_that_is_enrolled_again_speaks_again(federation: Federation, server: SteppedServer) -> None:
    federation.revoke("ann")
    federation.enroll("ann", KEYS["ann"].public)
    server.settle()
    send(federation, base_digest=bytes(32))
    server.settle()
    assert verdicts(federation) == [("ann", "wrong-base", 1)]
    assert_sound(federation)


def test_a_client_has_so_many_keys_and_no_more(federation: Federation, server: SteppedServer) -> None:
    for _ in range(9):
        federation.enroll("ann", SigningKey.generate().public)
    server.settle()
    assert len(federation.roster().clients["ann"].keys.valid) == 8
    complaints = [alert.what for alert in records(federation, federation.topics.alerts, Alert) if alert.subject == "commands"]
    assert len(complaints) == 2
    assert "may have 8" in complaints[0]


@pytest.mark.parametrize("order", [RevokeKeys("ann", (bytes(8),), ""), RevokeKeys("nobody", (), "")])
def test_what_is_not_there_cannot_be_revoked(federation: Federation, server: SteppedServer, order: RevokeKeys) -> None:
    federation.command(order)
    server.settle()
    assert events(federation, ClientRevoked) == []


# Banned, frozen, released.


def test_a_ban_refuses_what_waits_and_what_comes_and_leaves_what_was_judged(
    federation: Federation, server: SteppedServer
) -> None:
    for name in NAMES:
        send(federation, name)
    server.settle()
    assert federation.head == 1
    send(federation)
    server.settle()
    federation.ban("ann", "sells its data")
    server.settle()
    send(federation, sequence=1)
    server.settle()
    assert verdicts(federation)[3:] == [("ann", "banned", 1), ("ann", "banned", 1)]
    assert federation.head == 1
    assert events(federation, ClientBanned)[0].reason == "sells its data"
    assert_sound(federation)


def test_a_round_does_not_wait_for_who_is_banned(bus: MemoryBus, tmp_path: Path) -> None:
    federation = make(bus, tmp_path, minimum=2)
    with SteppedServer(federation) as server:
        server.settle()
        federation.ban("ann")
        server.settle()
        for name in ("bob", "eve"):
            send(federation, name)
        server.settle()
        assert federation.head == 1


def test_f36_equivocation_freezes_the_client_and_takes_its_update_that_waits(
    federation: Federation, server: SteppedServer
) -> None:
    session = (1, bytes(8))
    send(federation, session=session, seed=1)
    server.settle()
    send(federation, session=session, seed=2)
    server.settle()
    send(federation, session=session, sequence=1, seed=3)
    server.settle()
    assert verdicts(federation) == [("ann", "equivocation", 1), ("ann", "frozen", 1), ("ann", "frozen", 1)]
    alerts = [alert for alert in records(federation, federation.topics.alerts, Alert) if alert.subject == "ann"]
    assert len(alerts) == 1
    assert "frozen" in alerts[0].what
    assert_sound(federation)


def test_f36_nothing_of_an_equivocating_client_is_accepted_in_the_commit_that_freezes_it(
    federation: Federation, server: SteppedServer
) -> None:
    session = (1, bytes(8))
    for name in ("bob", "eve"):
        send(federation, name)
    send(federation, session=session, seed=1)
    send(federation, session=session, seed=2)
    server.settle()
    assert verdicts(federation) == [("ann", "equivocation", 1), ("ann", "frozen", 1)]
    assert_sound(federation)


def test_who_is_released_takes_part_again(federation: Federation, server: SteppedServer) -> None:
    session = (1, bytes(8))
    for seed in (1, 2):
        send(federation, session=session, seed=seed)
    server.settle()
    federation.release("ann", "a restored backup")
    server.settle()
    for name in NAMES:
        send(federation, name, sequence=5)
    server.settle()
    assert federation.head == 1
    assert events(federation, ClientReleased)[0].reason == "a restored backup"
    assert_sound(federation)


def test_who_is_neither_frozen_nor_banned_cannot_be_released(federation: Federation, server: SteppedServer) -> None:
    federation.release("ann")
    server.settle()
    assert events(federation, ClientReleased) == []


def test_commands_about_one_client_have_their_effects_in_their_order(federation: Federation, server: SteppedServer) -> None:
    federation.ban("ann")
    federation.release("ann")
    federation.ban("ann")
    federation.revoke("ann")
    server.settle()
    assert [type(event).__name__ for event in events(federation, ClientBanned, ClientReleased, ClientRevoked)] == [
        "ClientBanned", "ClientReleased", "ClientBanned", "ClientRevoked",
    ]  # fmt: skip
    assert_sound(federation)


# Who commands.


def test_f35_commands_of_others_than_operators_and_copied_ones_have_no_effect(
    federation: Federation, server: SteppedServer
) -> None:
    for order in (BanClient("bob", ""), RevokeKeys("bob", (), "")):
        send_command(federation.bus, federation.topics, order, KEYS["eve"], ManualClock())
    federation.ban("ann")
    federation.release("ann")
    server.settle()
    with federation.bus.consumer() as consumer, federation.bus.producer() as producer:
        consumer.assign([Place(federation.topics.commands, 0)])
        for record in consumer.poll():
            producer.send(federation.topics.commands, record.value, partition=0)
    server.settle()
    assert [event.client for event in events(federation, ClientBanned, ClientRevoked)] == ["ann"]
    assert not federation.roster().clients["ann"].state
    assert len(events(federation, ClientEnrolled)) == len(NAMES)


def test_f35_a_command_for_another_federation_has_no_effect(federation: Federation, server: SteppedServer) -> None:
    from dataclasses import replace

    from refold.schemas.checks import Command

    federation.ban("ann")
    sent = records(federation, federation.topics.commands, Command)[-1]
    with federation.bus.producer() as producer:
        forged = replace(sent, federation="other", command_id=bytes(16))
        producer.send(federation.topics.commands, encode(forged), partition=0)
    server.settle()
    assert len(events(federation, ClientBanned)) == 1


# Noise.


def test_f36_ten_thousand_copies_are_one_verdict_and_take_nothing_of_the_client(
    federation: Federation, server: SteppedServer
) -> None:
    parcel = craft_update(federation, "ann", KEYS["ann"])
    other = craft_update(federation, "bob", KEYS["bob"])
    for copied, name in ((parcel, "ann"), (other, "bob")):
        send_update(federation, copied, name)
    server.settle()
    with federation.bus.producer() as producer:
        for number in range(10_000):
            copied, name = ((parcel, b"ann"), (other, b"bob"))[number % 2]
            producer.send(federation.topics.updates, copied.manifest, key=name, partition=0)
    server.settle()
    send(federation, "eve")
    server.settle()
    assert federation.head == 1
    assert [name for name, said, _ in verdicts(federation) if said == "accepted"] == ["ann", "bob", "eve"]
    assert sum(count for _, said, count in verdicts(federation) if said == "duplicate") == 10_000
    assert len(verdicts(federation)) < 200
    assert records(federation, federation.topics.quarantine, Quarantined) == []
    assert_sound(federation)


def test_a_noisy_client_is_refused_in_rows_until_the_next_round_and_others_are_not_held_up(
    bus: MemoryBus, tmp_path: Path
) -> None:
    federation = make(bus, tmp_path, minimum=2)
    with SteppedServer(federation) as server:
        server.settle()
        session = (1, bytes(8))
        for sequence in range(300):
            send(federation, session=session, sequence=sequence, base_digest=bytes(32), seed=sequence)
        server.settle()
        said = verdicts(federation)
        assert sum(count for _, reason, count in said if reason == "wrong-base") == 32
        assert sum(count for _, reason, count in said if reason == "over-limit") == 268
        assert len(said) < 60
        assert len(records(federation, federation.topics.quarantine, Quarantined)) == 8
        for name in ("bob", "eve"):
            send(federation, name)
        server.settle()
        assert federation.head == 1
        send(federation, sequence=0, base_digest=bytes(32))
        server.settle()
        assert verdicts(federation)[-1] == ("ann", "wrong-base", 1)
    assert_sound(federation)


def test_garbage_of_strangers_is_counted_and_kept_within_bounds(
    federation: Federation, server: SteppedServer, rng: np.random.Generator
) -> None:
    kinds = [encode(BanClient("x", "")), b"", b"\xff" * 20]
    with federation.bus.producer() as producer:
        for number in range(5_000):
            producer.send(federation.topics.updates, kinds[number % 3] + rng.bytes(number % 3 * 4), partition=0)
    server.settle()
    strangers = events(federation, Unattributed)
    assert sum(event.count for event in strangers) == 5_000
    assert len(strangers) < 1000
    assert len(records(federation, federation.topics.quarantine, Quarantined)) == 256
    for name in NAMES:
        send(federation, name)
    server.settle()
    assert federation.head == 1
    assert_sound(federation)


# Insecure federations.


def make_insecure(bus: MemoryBus, keys: Path, **said: Any) -> Federation:
    plan = refold.Plan(minimum=2, deadline_s=None, heartbeat_s=1.0)
    initial = {"w": np.zeros((40, 5), "f4")}
    return refold.create("memory:toy", initial, plan=plan, keys=keys, partitions=1, bus=bus, insecure=True, **said)


def test_in_an_insecure_federation_anyone_takes_part_and_every_start_says_so(
    bus: MemoryBus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation = make_insecure(bus, tmp_path)
    with SteppedServer(federation) as server:
        assert "INSECURE" in caplog.text
        server.settle()
        send(federation)
        send(federation, "stranger", KEYS["bob"])
        server.clock.advance(30)
        server.settle()
        assert federation.head == 1
        caplog.clear()
        with federation.client("anyone", outbox=tmp_path / "outbox"):
            assert "INSECURE" in caplog.text
    assert_sound(federation)


def test_in_an_insecure_federation_equivocation_freezes_nobody_since_anyone_can_say_anything(
    bus: MemoryBus, tmp_path: Path
) -> None:
    federation = make_insecure(bus, tmp_path)
    with SteppedServer(federation) as server:
        server.settle()
        for seed in (1, 2):
            send(federation, session=(1, bytes(8)), seed=seed)
        send(federation, "bob")
        server.clock.advance(30)
        server.settle()
        assert federation.head == 1
        federation.ban("bob")
        server.settle()
        send(federation, "bob")
        server.settle()
        assert verdicts(federation)[-1] == ("bob", "banned", 1)
    assert_sound(federation)


def test_a_client_without_a_key_is_told_where_that_does_not_do(federation: Federation, tmp_path: Path) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        with pytest.raises(ConfigurationError, match="asks who its clients are"):
            federation.client("anyone", outbox=tmp_path / "outbox").__enter__()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"rate": 5}, "no limit is called rate"),
        ({"keys": 0}, "limit keys is 0"),
        ({"updates_per_round": True}, "not a whole number"),
    ],
)
def test_limits_are_checked_when_a_federation_is_made(
    bus: MemoryBus, tmp_path: Path, limits: dict[str, int], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make_insecure(bus, tmp_path, limits=limits)


def test_an_update_larger_than_its_limit_is_refused(bus: MemoryBus, tmp_path: Path) -> None:
    federation = make_insecure(bus, tmp_path, limits={"update_bytes": 100})
    with SteppedServer(federation) as server:
        server.settle()
        send(federation)
        server.settle()
    assert verdicts(federation) == [("ann", "too-large", 1)]


def test_f34_who_opens_uploads_without_end_loses_their_beginnings_and_holds_up_nobody(bus: MemoryBus, tmp_path: Path) -> None:
    federation = make_insecure(bus, tmp_path, limits={"open_chunks": 4, "open_chunk_bytes": 1000})
    window = ChunkWindow(bus, federation.topics.updates, ManualClock(), of_one_writer=(4, 1000))
    add(window, 0, b"theirs", b"bob")
    for offset in range(1, 100):
        add(window, offset, offset.to_bytes(2, "big"), b"ann")
    assert len(window) == 5
    assert window.open_from(0, 100) == 0
    window.forget(describe([b"theirs"], inline_bytes=-1), b"bob")
    assert window.open_from(0, 100) == 96
    add(window, 100, bytes(900), b"ann")
    add(window, 101, bytes(901), b"ann")
    assert len(window) == 1
    assert window.open_from(0, 102) == 101


def add(window: ChunkWindow, offset: int, value: bytes, key: bytes) -> None:
    window.add(Record("toy.updates", 0, offset, 0, key, value, chunk_headers()))


def test_after_the_end_noise_is_counted_in_rows_too(federation: Federation, server: SteppedServer) -> None:
    federation.end()
    server.settle()
    for sequence in range(100):
        send(federation, session=(1, bytes(8)), sequence=sequence, seed=sequence)
    server.settle()
    said = verdicts(federation)
    assert sum(count for _, reason, count in said if reason == "federation-ended") == 32
    assert sum(count for _, reason, count in said if reason == "over-limit") == 68
    assert len(said) < 50
    assert_sound(federation)
