"""Faults 35 to 37: forged, stolen, revoked, copied, repeated, out of order, equivocating, stale: while honest clients train."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from faultkit.buses import AFTER, BEFORE
from faultkit.faults import Fault
from faultkit.processes import wait_until
from faultkit.world import GROUPS, Clients, World

import refold
from refold.bus import partition_for
from refold.bus.clock import SystemClock
from refold.bus.ledger import read_all
from refold.consumers.commands import send_command
from refold.producers.enrolment import make_request, read_token
from refold.producers.outbox import Parcel
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Alert, BanClient, EndFederation, EnrolClient, RevokeKeys
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.identity import ClientBanned, ClientEnrolled, KeyRequest, UpdatesRefused
from refold.schemas.keys import UPDATE_TAG, WEAK_KEYS, SigningKey
from refold.schemas.updates import ClientUpdate, update_digest
from refold.testing import craft_update, send_update
from tests.checker import read_topic

ROUNDS = 6
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group that Ed25519 signs in: a signature with it added to its second half is the same to a careless verifier."""


@contextmanager
def trained(world: World, *, clients: int = 4, honest: int = 3, **plan: Any) -> Iterator[refold.Federation]:
    """Make a federation, let honest clients train it to its end while the caller does harm, and check that all is sound."""
    world.found(clients=clients, minimum=honest, rounds=ROUNDS, deadline_s=1.0, **plan)
    world.serve(*GROUPS)
    world.wait_for_round(0)
    wait_until(lambda: world.check().rounds == 0 and opened(world), "the federation to open", tend=world.tend)
    with Clients(world, world.clients[:honest]):
        yield world.fed
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert findings.rounds == ROUNDS
    by_client = {event.origin.client for event in events(world, UpdateAccepted)}
    assert set(world.clients[:honest]) <= by_client, "nobody who is honest was kept out"


def opened(world: World) -> bool:
    with world.following() as lineage:
        return lineage().opened is not None


def key_of(world: World, client: str) -> SigningKey:
    return SigningKey.load(world.place.key(client))


def events(world: World, *kinds: type) -> list[Any]:
    return [e for entry in read_all(world.fed.bus, world.fed.topics.accepted) for e in entry.events if isinstance(e, kinds)]


def resigned(parcel: Parcel, key: SigningKey, **changes: Any) -> Parcel:
    """Return an update that says otherwise and is signed by whoever holds this key."""
    body = replace(decode(parcel.manifest, ClientUpdate).body, **changes)
    digest = update_digest(body)
    return Parcel(digest, encode(ClientUpdate(body, key.sign(UPDATE_TAG, digest))), parcel.chunks)


def with_signature(parcel: Parcel, signature: bytes) -> Parcel:
    return Parcel(parcel.digest, encode(replace(decode(parcel.manifest, ClientUpdate), signature=signature)), parcel.chunks)


def malleable(parcel: Parcel) -> Parcel:
    signature = decode(parcel.manifest, ClientUpdate).signature
    second = int.from_bytes(signature[32:], "little") + ORDER
    return with_signature(parcel, signature[:32] + second.to_bytes(32, "little"))


def test_f35_whoever_is_not_the_client_gets_nothing_in(world: World):
    mallory = SigningKey.generate()
    with trained(world) as federation:
        victim = key_of(world, "c3")
        parcel = craft_update(federation, "c3", victim)
        forged = [
            resigned(parcel, mallory),
            resigned(parcel, mallory, key_id=mallory.key_id),
            resigned(parcel, key_of(world, "c1"), key_id=key_of(world, "c1").key_id),
            resigned(parcel, mallory, client="nobody", key_id=mallory.key_id),
            resigned(parcel, victim, federation="another"),
            malleable(parcel),
            with_signature(parcel, b"\x01" + bytes(63)),
            with_signature(parcel, bytes(64)),
        ]
        for number, each in enumerate(forged):
            send_update(federation, each, "c3")
            wait_until(lambda n=number: anonymous(world) > n, "the verdict", tend=world.tend, pause_s=0.05)  # type: ignore[misc]
        federation.revoke("c3", victim.key_id, reason="stolen")
        wait_until(lambda: bool(federation.roster().clients["c3"].keys.retired), "the revocation", tend=world.tend)
        send_update(federation, parcel, "c3")
    assert not [event for event in events(world, UpdateAccepted) if event.origin.client == "c3"]
    reasons = world.check().reasons
    assert reasons["signature"] == 4
    assert reasons["unknown-key"] == 2
    assert (reasons["not-enrolled"], reasons["wrong-federation"], reasons["revoked-key"]) == (1, 1, 1)
    told = [alert.what for alert in alerts(world) if alert.subject == "identity"]
    for reason in ("signature", "unknown-key", "not-enrolled", "wrong-federation", "revoked-key"):
        assert any(reason in what for what in told), f"nobody was told of {reason}"


def anonymous(world: World) -> int:
    reasons = world.check().reasons
    return sum(reasons[name] for name in ("signature", "unknown-key", "not-enrolled", "wrong-federation"))


def alerts(world: World) -> list[Alert]:
    return [decode(record.value or b"", Alert) for record in read_topic(world.fed.bus, world.fed.topics.alerts)]


def test_f35_who_is_no_operator_commands_nothing_and_copies_of_commands_do_nothing_more(world: World):
    with trained(world) as federation:
        for order in (EnrolClient("mallory", bytes(32)), RevokeKeys("c0", (), ""), BanClient("c1", ""), EndFederation("")):
            send_command(federation.bus, federation.topics, order, key_of(world, "c3"), SystemClock())
        federation.ban("c3")
        federation.release("c3")
        federation.ban("c3")
        wait_until(lambda: len(events(world, ClientBanned)) == 2, "the bans", tend=world.tend, pause_s=0.05)
        federation.release("c3")
        wait_until(lambda: not federation.roster().clients["c3"].state, "the release", tend=world.tend)
        with federation.bus.producer() as producer:
            for record in read_topic(federation.bus, federation.topics.commands):
                producer.send(federation.topics.commands, record.value, partition=0)
    assert [event.client for event in events(world, ClientBanned)] == ["c3", "c3"]
    assert len(events(world, ClientEnrolled)) == 4


def test_f35_a_token_enrols_once_whoever_copies_its_request(world: World):
    with trained(world) as federation:
        token = federation.token("late")
        authority = SigningKey.from_seed(read_token(token).seed)
        mine, thiefs = SigningKey.generate(), SigningKey.generate()
        federation.redeem(token, mine)
        request = make_request(federation.name, "late", authority, mine)
        other = replace(request, body=replace(request.body, public_key=thiefs.public))
        weak = replace(request, body=replace(request.body, public_key=min(WEAK_KEYS)))
        for each in (request, other, weak, make_request(federation.name, "late", authority, thiefs)):
            write(world, each, "late")
    assert [event.public_key for event in events(world, ClientEnrolled) if event.client == "late"] == [mine.public]
    assert sum(world.check().reasons[name] for name in ("duplicate", "token")) >= 4


def write(world: World, request: KeyRequest, client: str) -> None:
    topic = world.fed.topics.updates
    partition = partition_for(client.encode(), world.fed.bus.topics()[topic].partitions)
    with world.fed.bus.producer() as producer:
        producer.send(topic, encode(request), key=client.encode(), partition=partition)


def test_f36_thousands_of_copies_of_an_accepted_update_change_nothing(world: World, long_run: bool):
    copies = 10_000 if long_run else 1_000
    with trained(world) as federation:
        world.wait_for_round(1)
        copied = next(event for event in events(world, UpdateAccepted) if event.origin.client == "c0")
        parcel = next(
            kept.value
            for kept in archived(world)
            if (kept.partition, kept.offset) == (copied.origin.partition, copied.origin.offset)
        )
        with federation.bus.producer() as producer:
            for _ in range(copies):
                producer.send(federation.topics.updates, parcel, key=b"c0", partition=copied.origin.partition)
    # Those that come when the last round is over are told so.
    refused = [event for event in events(world, UpdateRejected) if event.origin.digest == copied.origin.digest]
    together = [event for event in events(world, UpdatesRefused) if event.client == "c0"]
    assert sum(event.count for event in [*refused, *together]) == copies
    assert {reason for event in refused for reason in event.reasons} <= {"duplicate", "federation-ended"}
    accepted = [event for event in events(world, UpdateAccepted) if event.origin.client == "c0"]
    assert len(accepted) == len({event.origin.base_round for event in accepted})
    assert len(events(world, UpdateRejected)) < 200


def archived(world: World) -> list[Any]:
    from faultkit.archive import all_events

    return all_events(world.fed.bus, world.fed.topics.updates, world.place.archive)


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 7, 300)], ids=["reordered", "gapped"])
def test_f36_sequences_out_of_order_and_with_gaps_are_judged_once_each(world: World, order: tuple[int, ...]):
    with trained(world) as federation:
        key, session = key_of(world, "c3"), (1, bytes(8))
        parcels = [craft_update(federation, "c3", key, session=session, sequence=n, seed=n) for n in order]
        for parcel in parcels + parcels[::-1]:
            send_update(federation, parcel, "c3")
    verdicts = [event for event in events(world, UpdateAccepted, UpdateRejected) if event.origin.client == "c3"]
    accepted = [event for event in verdicts if isinstance(event, UpdateAccepted)]
    assert len({event.origin.base_round for event in accepted}) == len(accepted) <= 1
    assert sum(event.count for event in verdicts if isinstance(event, UpdateRejected) and "duplicate" in event.reasons) == 3


def test_f36_who_says_two_things_under_one_number_is_frozen_until_released(world: World):
    with trained(world) as federation:
        key, session = key_of(world, "c3"), (1, bytes(8))
        for seed in (1, 2):
            send_update(federation, craft_update(federation, "c3", key, session=session, seed=seed), "c3")
        wait_until(lambda: federation.roster().clients["c3"].state == "frozen", "the freeze", tend=world.tend)
        send_update(federation, craft_update(federation, "c3", key, session=session, sequence=1, seed=3), "c3")
        wait_until(lambda: world.check().reasons["frozen"] > 0, "the refusal", tend=world.tend, pause_s=0.05)
        federation.release("c3")
        wait_until(lambda: not federation.roster().clients["c3"].state, "the release", tend=world.tend)
        send_update(federation, craft_update(federation, "c3", key, session=session, sequence=2, base_digest=bytes(32)), "c3")
    reasons = world.check().reasons
    assert reasons["equivocation"] == 1
    assert reasons["wrong-base"] == 1
    assert [alert.severity for alert in alerts(world) if alert.subject == "c3"] == ["error"]


def test_f37_stale_future_and_wrong_bases_are_refused_each_for_its_reason(world: World):
    with trained(world) as federation:
        key, session = key_of(world, "c3"), (1, bytes(8))
        world.wait_for_round(2)
        for sequence, changes in enumerate(
            (
                {"base_round": 0},
                {"base_round": 1_000},
                {"base_round": 2**62},
                {"base_round": 1, "base_digest": bytes(32)},
                {"base_round": 2, "base_digest": bytes(32)},
            )
        ):
            parcel = craft_update(federation, "c3", key, session=session, sequence=sequence, **changes)
            send_update(federation, parcel, "c3")
    reasons = world.check().reasons
    assert (reasons["stale"], reasons["future-base"], reasons["wrong-base"]) == (1, 2, 2)
    assert not [event for event in events(world, UpdateAccepted) if event.origin.client == "c3"]


@pytest.mark.parametrize("side", [BEFORE, AFTER])
@pytest.mark.parametrize("point", ["checked/Checked", "accepted/Commit", "rounds/Commit"])
def test_f02_death_over_a_request_for_a_key_neither_loses_nor_doubles_it(world: World, point: str, side: str):
    world.found(clients=1, deadline_s=1.0)
    # The first commits are the enrolment and the federation's opening.
    deaths = {"checked/Checked": "consistency", "accepted/Commit": "detection", "rounds/Commit": "aggregation"}
    time = {"checked/Checked": 1, "accepted/Commit": 2, "rounds/Commit": 3}[point]
    for group in GROUPS:
        world.serve(group, queue=[Fault(point, side, time)] if group == deaths[point] else [])
    wait_until(lambda: opened(world), "the federation to open", tend=world.tend)
    wait_until(lambda: "c0" in world.fed.roster().clients, "the enrolment", tend=world.tend)
    with ThreadPoolExecutor() as pool:
        rotated = pool.submit(world.fed.rotate, "c0", world.place.key("c0"), world.place.folder / "new.pem")
        wait_until(rotated.done, "the new key", tend=world.tend)
    new = rotated.result()
    world.wait_until_settled()
    world.stop()
    world.assert_sound()
    assert [event.public_key for event in events(world, ClientEnrolled)] == [key_of(world, "c0").public, new.public]
    assert world.faults().total() == 1
