"""Clients that enrol and replace keys by themselves: what a request must be, what it does, and that no crash doubles it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.bus import partition_for
from refold.bus.clock import SystemClock
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.consumers.audit import Audit
from refold.federation import Federation
from refold.producers.enrolment import make_request, read_token, request_key, token_text
from refold.producers.outbox import Outbox, outbox_beside
from refold.schemas.canonical import encode
from refold.schemas.errors import RefoldError, UsageError
from refold.schemas.events import FederationOpened, Receipts, RoundClosed, Unattributed, UpdateAccepted, UpdateRejected
from refold.schemas.identity import ClientEnrolled, ClientNotices, ClientRevoked, EnrolmentToken, KeyRequest, KeyRequestBody
from refold.schemas.keys import WEAK_KEYS, SigningKey
from refold.testing import SteppedServer, craft_update, eventually, send_update

OLD, NEW, OTHER = (SigningKey.generate() for _ in range(3))
TOKEN = SigningKey.generate()


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    with MemoryBus() as made:
        yield made


@pytest.fixture
def federation(bus: MemoryBus, tmp_path: Path) -> Federation:
    plan = refold.Plan(minimum=1, deadline_s=None, heartbeat_s=1.0)
    made = refold.create("memory:toy", {"w": np.zeros((40, 5), "f4")}, plan=plan, keys=tmp_path, partitions=2, bus=bus)
    made.enroll("ann", OLD.public)
    return made


@pytest.fixture
def server(federation: Federation) -> Iterator[SteppedServer]:
    with SteppedServer(federation) as made:
        made.settle()
        yield made


def ask(federation: Federation, request: KeyRequest, client: str = "ann", *, elsewhere: bool = False, times: int = 1) -> None:
    partition = partition_for(client.encode(), 2)
    with federation.bus.producer() as producer:
        for _ in range(times):
            producer.send(
                federation.topics.updates,
                encode(request),
                key=client.encode(),
                partition=1 - partition if elsewhere else partition,
            )


def admit(federation: Federation, client: str = "ann", *, last_round: int = 0) -> None:
    from refold.schemas.checks import AdmitToken

    federation.command(AdmitToken(client, TOKEN.public, last_round))


def events(federation: Federation, *kinds: type, topic: str = "accepted") -> list[Any]:
    entries = read_all(federation.bus, f"{federation.name}.{topic}")
    return [event for entry in entries for event in entry.events if isinstance(event, kinds)]


def refusals(federation: Federation) -> list[str]:
    return [event.reason for event in events(federation, Unattributed) for _ in range(event.count)]


def enrolled(federation: Federation, client: str = "ann") -> list[bytes]:
    return [event.public_key for event in events(federation, ClientEnrolled) if event.client == client]


def send(federation: Federation, key: SigningKey, **changes: Any) -> int:
    return send_update(federation, craft_update(federation, "ann", key, **changes), "ann")


def assert_sound(federation: Federation) -> None:
    assert [str(finding) for finding in Audit(federation.bus, federation.topics).run() if finding.is_broken] == []


# Tokens.


def test_a_token_enrols_one_key_of_a_client_that_had_none(federation: Federation, server: SteppedServer) -> None:
    admit(federation, "bob")
    server.settle()
    ask(federation, make_request("toy", "bob", TOKEN, NEW), "bob")
    server.settle()
    assert enrolled(federation, "bob") == [NEW.public]
    ask(federation, make_request("toy", "bob", TOKEN, OTHER), "bob")
    server.settle()
    assert enrolled(federation, "bob") == [NEW.public]
    assert refusals(federation) == ["token"]
    assert_sound(federation)


def test_a_copied_request_enrols_nothing_more(federation: Federation, server: SteppedServer) -> None:
    admit(federation)
    server.settle()
    ask(federation, make_request("toy", "ann", TOKEN, NEW), times=50)
    server.settle()
    assert enrolled(federation) == [OLD.public, NEW.public]
    assert refusals(federation) == ["duplicate"] * 49
    assert_sound(federation)


def stolen(federation: str = "toy", client: str = "ann", new: SigningKey = NEW) -> KeyRequest:
    return make_request(federation, client, TOKEN, new)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (make_request("other", "ann", TOKEN, NEW), "wrong-federation"),
        (make_request("toy", "ann", OTHER, NEW), "token"),
        (replace(stolen(), body=KeyRequestBody("toy", "ann", OTHER.public, TOKEN.key_id)), "signature"),
        (replace(stolen(), authority_signature=bytes(64)), "signature"),
        (replace(stolen(), possession_signature=stolen(new=OTHER).possession_signature), "possession"),
        (replace(stolen(), authority_signature=stolen().possession_signature), "signature"),
    ],
)
def test_f35_a_forged_request_enrols_nobody(
    federation: Federation, server: SteppedServer, request_: KeyRequest, reason: str
) -> None:
    admit(federation)
    server.settle()
    ask(federation, request_)
    server.settle()
    assert enrolled(federation) == [OLD.public]
    assert refusals(federation) == [reason]
    assert_sound(federation)


def test_f35_a_token_is_good_for_its_own_client_alone(federation: Federation, server: SteppedServer) -> None:
    admit(federation, "bob")
    server.settle()
    ask(federation, make_request("toy", "ann", TOKEN, NEW))
    ask(federation, make_request("toy", "nobody", TOKEN, NEW), "nobody")
    server.settle()
    assert enrolled(federation) == [OLD.public]
    assert sorted(refusals(federation)) == ["not-enrolled", "token"]


def test_f35_a_key_for_which_anyone_can_sign_is_enrolled_by_nobody(federation: Federation, server: SteppedServer) -> None:
    from refold.schemas.identity import key_request_digest
    from refold.schemas.keys import REQUEST_TAG

    admit(federation)
    server.settle()
    for public in sorted(WEAK_KEYS):
        body = KeyRequestBody("toy", "ann", public, TOKEN.key_id)
        # R = the neutral point, S = 0: valid for every message where the verifier takes a key of order 1.
        universal = b"\x01" + bytes(63)
        ask(federation, KeyRequest(body, TOKEN.sign(REQUEST_TAG, key_request_digest(body)), universal))
        federation.enroll("ann", public)
    server.settle()
    assert enrolled(federation) == [OLD.public]
    assert set(refusals(federation)) == {"possession"}


def test_a_token_is_taken_up_to_its_last_round(federation: Federation, server: SteppedServer) -> None:
    admit(federation, last_round=1)
    server.settle()
    send(federation, OLD)
    server.settle()
    assert len(events(federation, RoundClosed)) == 1
    ask(federation, make_request("toy", "ann", TOKEN, NEW))
    server.settle()
    assert enrolled(federation) == [OLD.public]
    assert refusals(federation) == ["token"]


def test_a_cancelled_token_is_worth_nothing(federation: Federation, server: SteppedServer) -> None:
    admit(federation)
    federation.revoke("ann", TOKEN.key_id)
    server.settle()
    ask(federation, make_request("toy", "ann", TOKEN, NEW))
    server.settle()
    assert refusals(federation) == ["token"]
    assert_sound(federation)


@pytest.mark.parametrize("bar", [lambda fed: fed.ban("ann"), lambda fed: fed.end()])
def test_who_is_kept_out_gets_no_key(federation: Federation, server: SteppedServer, bar: Callable[[Federation], Any]) -> None:
    admit(federation)
    bar(federation)
    server.settle()
    ask(federation, make_request("toy", "ann", TOKEN, NEW))
    server.settle()
    assert enrolled(federation) == [OLD.public]
    assert refusals(federation)[0] in ("banned", "federation-ended")


# Rotation.


def test_a_new_key_replaces_the_one_that_asks_for_it(federation: Federation, server: SteppedServer) -> None:
    ask(federation, make_request("toy", "ann", OLD, NEW))
    send(federation, OLD)
    send(federation, NEW, base_digest=bytes(32))
    server.settle()
    assert enrolled(federation) == [OLD.public, NEW.public]
    assert refusals(federation) == ["revoked-key"]
    assert [event.reasons for event in events(federation, UpdateRejected)] == [("wrong-base",)]
    assert_sound(federation)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_the_old_key_signed_before_the_request_stays_valid(federation: Federation, restarted: bool) -> None:
    federation.enroll("bob", OTHER.public)
    with SteppedServer(federation, member="first") as server:
        server.settle()
        send(federation, OLD)
        ask(federation, make_request("toy", "ann", OLD, NEW))
        server.settle("consistency", "detection")
        assert enrolled(federation) == [OLD.public, NEW.public]
        if not restarted:
            server.clock.advance(30)
            server.settle()
    if restarted:
        with SteppedServer(federation, member="second") as server:
            server.settle()
            server.clock.advance(30)
            server.settle()
    assert [event.origin.key_id for event in events(federation, UpdateAccepted)] == [OLD.key_id]
    assert refusals(federation) == []
    assert_sound(federation)


def test_f35_a_rotation_from_another_partition_is_refused(federation: Federation, server: SteppedServer) -> None:
    ask(federation, make_request("toy", "ann", OLD, NEW), elsewhere=True)
    server.settle()
    assert enrolled(federation) == [OLD.public]
    assert refusals(federation) == ["misplaced"]


def test_a_client_does_not_go_back_to_a_key_that_it_replaced(federation: Federation, server: SteppedServer) -> None:
    ask(federation, make_request("toy", "ann", OLD, NEW))
    ask(federation, make_request("toy", "ann", NEW, OLD))
    server.settle()
    assert enrolled(federation) == [OLD.public, NEW.public]
    assert refusals(federation) == ["known-key"]


def test_two_rotations_by_one_key_are_one(federation: Federation, server: SteppedServer) -> None:
    ask(federation, make_request("toy", "ann", OLD, NEW))
    ask(federation, make_request("toy", "ann", OLD, OTHER))
    server.settle()
    assert enrolled(federation) == [OLD.public, NEW.public]
    assert refusals(federation) == ["revoked-key"]
    assert_sound(federation)


def test_a_rotation_needs_no_room_and_a_token_does(federation: Federation, server: SteppedServer) -> None:
    for _ in range(7):
        federation.enroll("ann", SigningKey.generate().public)
    admit(federation)
    server.settle()
    ask(federation, make_request("toy", "ann", TOKEN, NEW))
    ask(federation, make_request("toy", "ann", OLD, OTHER))
    server.settle()
    assert refusals(federation) == ["over-limit"]
    assert enrolled(federation)[-1] == OTHER.public


# Crashes.


def test_a_request_that_waits_when_detection_dies_is_granted_once_by_its_successor(federation: Federation) -> None:
    with SteppedServer(federation, member="first") as first:
        first.settle()
        ask(federation, make_request("toy", "ann", OLD, NEW))
        first.settle("consistency")
    for member in ("second", "third"):
        with SteppedServer(federation, member=member) as server:
            server.settle()
    assert enrolled(federation) == [OLD.public, NEW.public]
    assert refusals(federation) == []
    assert_sound(federation)


def test_detection_that_looks_into_a_hole_finds_the_request_in_it(federation: Federation, server: SteppedServer) -> None:
    ask(federation, make_request("toy", "ann", OLD, NEW))
    send(federation, NEW)
    producer = server.members["consistency"]._producer  # type: ignore[attr-defined]
    real, lost = producer.send, list[object]()

    def lossy(topic: str, value: bytes, **more: Any) -> Any:
        if not lost:
            lost.append(value)
            return None
        return real(topic, value, **more)

    producer.send = lossy
    server.settle()
    assert enrolled(federation) == [OLD.public, NEW.public]
    server.clock.advance(30)
    server.settle()
    assert [event.origin.key_id for event in events(federation, UpdateAccepted)] == [NEW.key_id]
    assert_sound(federation)


# At the client.


class Serving:
    """A server that takes turns in a thread."""

    def __init__(self, federation: Federation) -> None:
        self._server = SteppedServer(federation)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._server.step()
            self._stop.wait(0.005)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.close()


def test_a_client_redeems_a_token_and_may_do_so_again(federation: Federation, tmp_path: Path) -> None:
    with Serving(federation):
        token = federation.token("bob", rounds=3)
        first = federation.redeem(token, tmp_path / "bob.pem")
        again = federation.redeem(token, tmp_path / "bob.pem")
        assert first.public == again.public
        with pytest.raises(RefoldError, match="refused"):
            federation.redeem(token, tmp_path / "thief.pem")
    assert enrolled(federation, "bob") == [first.public]
    notices = [notice for event in events(federation, ClientNotices, topic="rounds") for notice in event.notices]
    assert [(notice.what, notice.key_id) for notice in notices if notice.client == "bob"] == [("enrolled", first.key_id)]
    assert_sound(federation)


def test_a_client_rotates_its_key_and_takes_its_outbox_with_it(federation: Federation, tmp_path: Path) -> None:
    old = tmp_path / "ann.pem"
    OLD.save(old)
    with Serving(federation):
        eventually(lambda: bool(events(federation, FederationOpened, topic="rounds")))
        parcel = craft_update(federation, "ann", OLD, base_digest=bytes(32))
        Outbox(outbox_beside(old)).put(parcel)
        new = federation.rotate("ann", old, tmp_path / "new.pem")
        assert federation.rotate("ann", old, tmp_path / "new.pem").public == new.public
    assert enrolled(federation) == [OLD.public, new.public]
    assert not outbox_beside(old).exists()
    assert outbox_beside(tmp_path / "new.pem").exists()
    assert [event.reasons for event in events(federation, UpdateRejected)] == [("wrong-base",)]
    assert_sound(federation)


def test_a_refused_rotation_says_so(federation: Federation) -> None:
    with Serving(federation):
        federation.revoke("ann")
        eventually(lambda: bool(events(federation, ClientRevoked)))
        with pytest.raises(RefoldError, match="refused"):
            request_key(federation.bus, federation.topics, "ann", OLD, NEW, clock=SystemClock())


def test_a_token_is_one_word_that_knows_whether_it_is_whole() -> None:
    token = EnrolmentToken("toy", "ann", bytes(range(32)), 7)
    word = token_text(token)
    assert read_token(f" {word}\n") == token
    for broken in ("", "refold-token-", word[:-1], word[:-3] + "AAA", word.replace("refold", "other"), word + "A"):
        with pytest.raises(UsageError):
            read_token(broken)


def test_an_update_that_nobody_is_held_to_leaves_its_clients_outbox(federation: Federation, tmp_path: Path) -> None:
    federation.enroll("eve", SigningKey.load_or_create(tmp_path / "eve.pem").public)
    with Serving(federation), federation.client("eve", key=tmp_path / "eve.pem") as client:
        task = next(client.tasks())
        federation.revoke("eve")
        eventually(lambda: bool(events(federation, ClientRevoked)))
        state = task.numpy()
        state["w"] += 1
        assert task.submit(state, num_examples=1).wait(20.0) == "unheard"
    assert not list((tmp_path / "eve.outbox").glob("*.update"))
    assert refusals(federation) == ["revoked-key"]
    assert not events(federation, Receipts, topic="rounds")


def test_the_same_wish_is_the_same_bytes() -> None:
    assert make_request("toy", "ann", OLD, NEW) == make_request("toy", "ann", OLD, NEW)
