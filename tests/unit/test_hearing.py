"""Heartbeats decide whom a round waits for: which of them are believed, and what it costs to know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from refold.bus.ledger import Entry
from refold.consumers.hearing import Hearing
from refold.consumers.liveness import Liveness
from refold.consumers.planning import plan_round
from refold.consumers.roster import Roster
from refold.plan import Plan
from refold.schemas.canonical import decode, encode
from refold.schemas.commits import Commit, Position
from refold.schemas.condition import Condition
from refold.schemas.events import Defence, Genesis, Identity, SnapshotPolicy
from refold.schemas.identity import ClientBanned, ClientEnrolled, ClientRevoked
from refold.schemas.keys import HEARTBEAT_TAG, UPDATE_TAG, SigningKey
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.payload import describe
from refold.schemas.updates import Heartbeat, encoded_heartbeat_digest, heartbeat_digest

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
TIRED = Condition((("cpu_used_ratio", 0.75),), 2, None, None)
POLICY = Plan(minimum=1, heartbeat_s=1.0, seed=bytes(16)).policy()
SESSION = (3, b"b" * 8)


def roster(*, required: bool = True) -> Roster:
    schema = ModelSchema((TensorSchema("w", "float32", (4,), 22, "mean"),))
    plan = plan_round(POLICY, 1, (0,), ())
    digest = bytes(32)
    made = Roster.of(
        Genesis(
            "toy", schema, describe([b""]), digest, digest, POLICY, plan, "fedavg", (), SnapshotPolicy(1, 1),
            Defence("all", ()), (KEY.public,), digest, 0, (), Identity(required, ()),
        )
    )  # fmt: skip
    tell(made, ClientEnrolled("ann", KEY.public, bytes(16)))
    return made


def tell(roster: Roster, *events: object) -> None:
    roster.fold(Entry(Commit(1, 0, bytes(32), "w", 0, Position(), len(events), (), None), bytes(32), 0, events))


def beat(number: int = 0, *, client: str = "ann", session: tuple[int, bytes] = SESSION, **changes: Any) -> Heartbeat:
    made = Heartbeat("toy", client, *session, number, 1000, "waiting", 0, bytes(32), (), 0, KEY.key_id)
    return replace(made, **changes)


def signed(made: Heartbeat, key: SigningKey = KEY, tag: bytes = HEARTBEAT_TAG) -> Heartbeat:
    return replace(made, signature=key.sign(tag, heartbeat_digest(made)))


def hears(*beats: Heartbeat, to: Roster | None = None, now_s: float = 100.0) -> Hearing:
    hearing = Hearing(Liveness())
    hearing.take(to or roster(), beats, now_s)
    return hearing


def test_a_signed_beat_is_a_sign_of_life() -> None:
    assert hears(signed(beat())).liveness.living(100.0) == {"ann"}


def test_a_beats_signature_covers_the_condition_that_it_tells() -> None:
    made = signed(beat(condition=TIRED))
    assert hears(decode(encode(made), Heartbeat)).liveness.living(100.0) == {"ann"}
    easy = replace(TIRED, measures=(("cpu_used_ratio", 0.25),))
    assert hears(replace(made, condition=easy)).ignored == {"forged": 1}
    assert hears(replace(made, condition=None)).ignored == {"forged": 1}


def test_a_beat_without_a_condition_is_written_as_it_was_before_there_were_any() -> None:
    assert encode(beat())[:3] == bytes([0x9F, 22, 2]), "an array of 15"
    assert encode(beat(condition=TIRED))[:5] == bytes([0xDC, 0, 16, 22, 3])


def test_who_only_watches_a_log_is_no_sign_of_its_clients_life() -> None:
    assert hears(signed(beat(activity="watching"))).liveness.living(100.0) == frozenset()


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (beat(), "unsigned"),
        (signed(beat(), OTHER), "forged"),
        (signed(beat(), tag=UPDATE_TAG), "forged"),
        (signed(beat(key_id=OTHER.key_id), OTHER), "unsigned"),
        (replace(signed(beat()), beat=1), "forged"),
        (replace(signed(beat()), activity="training"), "forged"),
        (signed(beat(client="bob")), "unknown"),
        (decode(encode(beat())), "unsigned"),
    ],
)
def test_f40_forged_and_unsigned_beats_are_no_sign_of_life(made: Heartbeat, why: str) -> None:
    hearing = hears(made)
    assert hearing.liveness.living(100.0) == frozenset()
    assert hearing.ignored == {why: 1}


def test_f40_a_beat_that_is_replayed_keeps_nobody_alive() -> None:
    hearing = hears(signed(beat(5)))
    for made in (beat(5), beat(4), beat(9, session=(2, b"z" * 8))):
        hearing.take(roster(), [signed(made)], 200.0)
        assert hearing.liveness.living(200.0) == frozenset(), "a later life of its client, or the same beat again"
    assert hearing.ignored == {"old": 3}
    hearing.take(roster(), [signed(beat(0, session=(4, bytes(8))))], 200.0)
    assert hearing.liveness.living(200.0) == {"ann"}


def test_beats_of_a_session_that_was_superseded_count_for_nothing() -> None:
    made = roster()
    made.clients["ann"].session = (9, bytes(8))
    assert hears(signed(beat()), to=made).ignored == {"old": 1}


def test_a_client_that_said_farewell_is_not_waited_for_until_it_beats_again() -> None:
    to, hearing = roster(), hears(signed(beat(0)))
    hearing.take(to, [signed(beat(1, activity="left"))], 100.1)
    assert hearing.liveness.living(100.1) == frozenset(), "though it was heard of a moment ago"
    hearing.take(to, [signed(beat(0, session=(4, bytes(8))))], 100.2)
    assert hearing.liveness.living(100.2) == {"ann"}


@pytest.mark.parametrize("last", [signed(beat(6, activity="left"), OTHER), signed(beat(4, activity="left"))])
def test_f40_a_farewell_that_is_forged_or_replayed_sends_nobody_away(last: Heartbeat) -> None:
    hearing = hears(signed(beat(5)))
    hearing.take(roster(), [last], 100.1)
    assert hearing.liveness.living(100.1) == {"ann"}


def test_a_farewell_that_nobody_signed_sends_nobody_away() -> None:
    hearing = hears(beat(7), beat(8, activity="left"), to=roster(required=False))
    assert hearing.liveness.living(100.0) == {"ann"}
    assert hearing.ignored == {"unsigned": 1}


@pytest.mark.parametrize(
    "event", [ClientRevoked("ann", (KEY.key_id,), "", bytes([1]) * 16), ClientBanned("ann", "", bytes([1]) * 16)]
)
def test_who_is_kept_out_is_not_waited_for(event: object) -> None:
    made = roster()
    tell(made, event)
    assert hears(signed(beat()), to=made).liveness.living(100.0) == frozenset()


def test_forged_beats_behind_an_honest_one_do_not_hide_it() -> None:
    hearing = hears(signed(beat(1)), *(replace(signed(beat(n)), round=7) for n in range(2, 9)))
    assert hearing.liveness.living(100.0) == {"ann"}
    assert hearing.ignored == {"forged": 7}


def test_no_signature_is_checked_where_it_would_change_nothing() -> None:
    hearing, made = Hearing(Liveness()), roster()
    for number in range(100):
        hearing.take(made, [signed(beat(2 * number)), signed(beat(2 * number + 1))], 100.0 + 0.5 * number)
    assert hearing.verified == 25, "one of two intervals, whatever the number of beats"
    assert hearing.liveness.living(150.0) == {"ann"}


def test_without_identities_everyone_who_beats_lives() -> None:
    made = roster(required=False)
    assert hears(beat(), beat(client="anyone"), to=made).liveness.living(100.0) == {"ann", "anyone"}


@pytest.mark.parametrize("with_condition", [False, True])
def test_the_digest_of_a_beats_bytes_is_the_digest_of_the_beat(with_condition: bool) -> None:
    condition = Condition((("bus_latency_s", 0.5),), 3, None, None) if with_condition else None
    made = signed(replace(beat(), condition=condition))
    assert encoded_heartbeat_digest(encode(made), made) == heartbeat_digest(made)
    assert encoded_heartbeat_digest(encode(replace(made, signature=b"")), replace(made, signature=b"")) == heartbeat_digest(
        made
    )
    twice = replace(made, properties=(("copy", "x"),), session_nonce=made.signature[:8])
    assert encoded_heartbeat_digest(encode(twice), twice) == heartbeat_digest(twice)


def test_a_beat_that_tells_of_another_state_is_listened_to_at_once_and_a_forged_one_is_not_believed() -> None:
    known, to, hearing = bytes([1]) * 32, roster(), Hearing(Liveness())
    for number, (digest, key, diverged) in enumerate(
        [(known, KEY, set()), (bytes([2]) * 32, OTHER, set()), (bytes([2]) * 32, KEY, {"ann"}), (known, KEY, set())]
    ):
        made = signed(beat(number, parameters_digest=digest), key)
        hearing.take(to, [made], 100.0 + number, lambda round_: known if round_ == 0 else None)
        assert {client for client in ("ann", "bob") if client in hearing.astray} == diverged, number


def test_forged_beats_of_other_states_cost_one_signature_an_interval() -> None:
    to, hearing = roster(), Hearing(Liveness())
    hearing.take(to, [signed(beat(0, parameters_digest=bytes([1]) * 32))], 100.0, lambda _: bytes([1]) * 32)
    for number in range(1, 50):
        forged = signed(beat(number, parameters_digest=bytes([2]) * 32), OTHER)
        hearing.take(to, [forged], 100.0 + number / 1000, lambda _: bytes([1]) * 32)
    assert hearing.verified == 2
