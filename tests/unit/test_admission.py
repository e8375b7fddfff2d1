"""Who may be judged: sessions, sequences, repeats, equivocation, and that a successor admits alike."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refold.bus.contract import partition_for
from refold.bus.ledger import Entry
from refold.consumers.admission import authentic, final_reason, refusal
from refold.consumers.pending import Pending
from refold.consumers.planning import plan_round
from refold.consumers.roster import Roster
from refold.consumers.standing import REMEMBERED
from refold.plan import Plan
from refold.producers.lineage import Lineage
from refold.schemas.commits import Commit, Position
from refold.schemas.events import (
    ClientEnrolled,
    Defence,
    FederationEnded,
    FederationOpened,
    Genesis,
    Identity,
    RoundClosed,
    RoundCommitted,
    SnapshotPolicy,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.keys import COMMAND_TAG, UPDATE_TAG, SigningKey
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.payload import describe
from refold.schemas.reasons import blames
from refold.schemas.updates import DECLINE, EVALUATE, PASS, TRAIN, ClientUpdate, UpdateBody, update_digest

SCHEMA = ModelSchema((TensorSchema("w", "float32", (4,), 22, "mean"),))
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
POLICY = Plan(minimum=1, max_staleness=0, seed=bytes(16)).policy()
FIRST_PLAN = plan_round(POLICY, 1, (0,), ())
DIGESTS = {round_: bytes([round_ + 1]) * 32 for round_ in range(10)}
OLD, NEW, NEWER = (1, b"a" * 8), (2, b"b" * 8), (3, b"c" * 8)


def genesis(**changes: Any) -> Genesis:
    made = Genesis(
        "toy",
        SCHEMA,
        describe([b""]),
        DIGESTS[0],
        DIGESTS[0],
        POLICY,
        FIRST_PLAN,
        "fedavg",
        (),
        SnapshotPolicy(1, 1),
        Defence("all", ()),
        (KEY.public,),
        bytes(32),
        0,
    )
    return replace(made, **changes)


def roster(*, rounds: int = 0, **changes: Any) -> Roster:
    made = Roster.of(genesis(**changes))
    tell(made, ClientEnrolled("ann", KEY.public, bytes(16)), ClientEnrolled("bob", OTHER.public, bytes(16)))
    for round_ in range(1, rounds + 1):
        tell(made, closed(round_))
    return made


def tell(roster: Roster, *events: object) -> None:
    roster.fold(Entry(Commit(1, 0, bytes(32), "w", 0, Position(), len(events), (), None), bytes(32), 0, events))


def closed(round_: int) -> RoundClosed:
    plan = plan_round(POLICY, round_ + 1, (0,), ())
    return RoundClosed(round_, round_ - 1, (), "weighted_mean", "fedavg", (), "complete", plan)


def lineage(head: int = 0) -> Lineage:
    opened = FederationOpened("toy", SCHEMA, DIGESTS[0], DIGESTS[0], "fedavg", FIRST_PLAN)
    made = Lineage(opened, head=head, next_index=100)
    for round_ in range(1, head + 1):
        plan = plan_round(POLICY, round_ + 1, (0,), ())
        committed = RoundCommitted(
            round_, round_ - 1, "applied", "", (), None, (), None, (), DIGESTS[round_], DIGESTS[round_], plan
        )
        made.rounds[round_] = committed
    return made


def body(
    session: tuple[int, bytes] = OLD, sequence: int = 0, *, kind: str = TRAIN, base: int = 0, **changes: Any
) -> UpdateBody:
    payload = describe([b"delta"]) if kind == TRAIN else None
    made = UpdateBody(
        "toy", "ann", KEY.key_id, *session, sequence, kind, base, DIGESTS[base], SCHEMA.digest,
        "grid", (0,), 10, (), payload, 16, "", 0,
    )  # fmt: skip
    return replace(made, **changes)


def signed(made: UpdateBody, key: SigningKey = KEY, tag: bytes = UPDATE_TAG) -> ClientUpdate:
    return ClientUpdate(made, key.sign(tag, update_digest(made)))


def item(made: UpdateBody, offset: int, reason: str = "") -> Pending:
    return Pending(0, offset, offset, offset, made, update_digest(made), b"", reason)


def asked(roster: Roster, made: UpdateBody, *waiting: Pending, offset: int = 50, head: int | None = None) -> str:
    known = lineage(roster.closed if head is None else head)
    return refusal(roster, known, waiting, made, update_digest(made), (0, offset))


def accepted(made: UpdateBody, offset: int) -> UpdateAccepted:
    return UpdateAccepted(item(made, offset).origin(), 10, 10, (), "grid", (0,), made.payload, None, ())


def rejected(made: UpdateBody, offset: int, reason: str) -> UpdateRejected:
    return UpdateRejected(item(made, offset).origin(), offset, 1, (reason,), "", None, ())


def who(roster: Roster, update: ClientUpdate) -> str:
    return authentic(roster, update, update.digest, (0, 50), 1)


def test_an_honest_update_is_admitted() -> None:
    assert asked(roster(), body()) == ""
    assert who(roster(), signed(body())) == ""


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (signed(body(federation="other")), "wrong-federation"),
        (signed(body(client="eve")), "not-enrolled"),
        (signed(body(key_id=OTHER.key_id), OTHER), "unknown-key"),
        (signed(body(), OTHER), "signature"),
        (signed(body(), tag=COMMAND_TAG), "signature"),
        (replace(signed(body()), body=body(num_examples=11)), "signature"),
        (replace(signed(body()), signature=bytes(64)), "signature"),
    ],
)
def test_f35_nobody_is_held_to_what_they_did_not_sign(update: ClientUpdate, reason: str) -> None:
    assert who(roster(), update) == reason


def test_f36_a_copy_counts_only_in_its_clients_own_partition() -> None:
    own, made = partition_for(b"ann", 8), signed(body())
    for partition in range(8):
        found = authentic(roster(), made, made.digest, (partition, 50), 8)
        assert found == ("" if partition == own else "misplaced")


def test_f35_a_second_enrolled_key_speaks_too() -> None:
    made = roster()
    tell(made, ClientEnrolled("ann", OTHER.public, bytes(16)))
    assert who(made, signed(body(key_id=OTHER.key_id), OTHER)) == ""
    assert who(made, signed(body())) == ""


def test_f36_a_repeat_is_a_duplicate_before_and_after_its_verdict() -> None:
    made = roster()
    assert asked(made, body(), item(body(), 40)) == "duplicate"
    tell(made, accepted(body(), 40))
    assert asked(made, body()) == "duplicate"


def test_f36_a_repeat_of_what_waits_is_a_duplicate_though_its_session_was_superseded() -> None:
    made, waiting = roster(rounds=1), item(body(OLD, 5, base=1), 30)
    tell(made, accepted(body(NEW, kind=EVALUATE), 40))
    assert asked(made, body(OLD, 5, base=1), waiting, offset=60) == "duplicate", "a refusal would contradict what waits"


def test_f36_a_repeat_of_what_was_refused_is_a_duplicate_too() -> None:
    made = roster()
    assert asked(made, body(), item(body(), 40, "schema")) == "duplicate"
    tell(made, rejected(body(), 40, "schema"))
    assert asked(made, body()) == "duplicate"


@pytest.mark.parametrize("first_was_refused", [False, True])
def test_f36_the_same_sequence_with_other_content_is_equivocation_before_and_after_the_verdict(first_was_refused: bool) -> None:
    made, other = roster(), body(num_examples=11)
    reason = "schema" if first_was_refused else ""
    assert asked(made, other, item(body(), 40, reason)) == "equivocation"
    tell(made, rejected(body(), 40, "schema") if first_was_refused else accepted(body(kind=EVALUATE), 40))
    assert asked(made, other) == "equivocation"


def test_one_accepted_update_for_a_client_round_and_kind() -> None:
    made = roster()
    assert asked(made, body(sequence=1), item(body(), 40)) == "one-per-round"
    assert asked(made, body(sequence=1, kind=EVALUATE), item(body(), 40)) == ""
    tell(made, accepted(body(), 40))
    assert asked(made, body(sequence=1)) == "one-per-round"
    assert asked(made, body(NEW)) == "one-per-round", "from whatever session"
    assert asked(made, body(sequence=1, kind=EVALUATE)) == ""


def test_who_was_refused_may_try_again_in_the_same_round() -> None:
    made = roster()
    assert asked(made, body(sequence=1), item(body(), 40, "norm")) == ""
    tell(made, rejected(body(), 40, "norm"))
    assert asked(made, body(sequence=1)) == ""


def test_a_higher_session_supersedes_the_lower_one_from_its_first_update_on() -> None:
    made = roster(rounds=1)
    tell(made, accepted(body(NEW, base=0), 40))
    assert asked(made, body(OLD, 5, base=1), offset=60) == "session-superseded"
    assert asked(made, body(OLD, 5, base=1), offset=30) == "", "it lay there before the session began"
    assert asked(made, body(NEW, 1, base=1)) == ""
    assert asked(made, body(NEWER, 0, base=1)) == ""


def test_what_was_refused_for_its_session_does_not_move_the_session() -> None:
    made = roster(rounds=1)
    tell(made, rejected(body((101, b"z" * 8)), 40, "session-ahead"))
    assert asked(made, body(OLD, 5, base=1)) == ""


def test_a_session_from_beyond_the_log_is_refused() -> None:
    assert asked(roster(), body((101, bytes(8)))) == "session-ahead"
    assert asked(roster(), body((100, bytes(8)))) == ""


def test_f36_a_replay_from_beyond_memory_is_still_refused() -> None:
    made = roster(identity=Identity(True, (("updates_per_round", 10_000),)))
    for sequence in range(REMEMBERED + 10):
        tell(made, rejected(body(sequence=sequence), sequence, "schema"))
    assert asked(made, body(sequence=3)) == "replayed"
    assert asked(made, body(sequence=REMEMBERED + 10)) == ""
    assert len(made.clients["ann"].digests) == len(made.clients["ann"].sequences) == REMEMBERED


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (body(base=2), ""),
        (body(base=1), "stale"),
        (body(base=0), "stale"),
        (body(base=3), "future-base"),
        (body(base=9, base_digest=bytes(32)), "future-base"),
        (body(base=2, base_digest=bytes(32)), "wrong-base"),
        (body(base=1, base_digest=bytes(32)), "wrong-base"),
    ],
)
def test_f37_the_base_decides(made: UpdateBody, reason: str) -> None:
    assert asked(roster(rounds=2), made, head=2) == reason


def test_f37_a_round_closed_but_not_made_yet_is_no_base() -> None:
    assert asked(roster(rounds=2), body(base=2), head=1) == "future-base"


def test_what_was_trained_on_a_former_lattice_is_refused_and_nobody_is_blamed() -> None:
    made, known = roster(rounds=2), lineage(2)
    event = made.branches.regridded(POLICY, 1, SCHEMA, (16,), "too large")
    tell(made, event)
    assert made.schema == known.opened.schema.on((16,))  # type: ignore[union-attr]
    known.regrids[3] = event
    known.rounds[3] = replace(known.rounds[2], round=3, parent=1, parameters_digest=DIGESTS[3])
    known.epochs.add(3, 1, (16,))
    coarse = made.schema.digest
    assert [
        refusal(made, known, (), update, update_digest(update), (0, 50))
        for update in (body(base=3, schema_digest=coarse), body(base=3), body(base=1), body(base=2))
    ] == ["", "schema", "former-lattice", "abandoned-branch"]
    assert not blames("former-lattice")


def test_without_a_defence_only_the_base_itself_must_be_right() -> None:
    lax = roster(rounds=2, defence=Defence("none", ()))
    assert asked(lax, body(base=0), head=2) == ""
    assert asked(lax, body(base=0, base_digest=bytes(32)), head=2) == "wrong-base"


def test_who_was_not_selected_is_told_so() -> None:
    made = roster()
    made.plan = replace(made.plan, select_below=made.plan.draw("ann"))
    assert asked(made, body()) == "not-selected"
    made.plan = replace(made.plan, select_below=made.plan.draw("ann") + 1)
    assert asked(made, body()) == ""


def test_nothing_is_admitted_after_the_end() -> None:
    made = roster()
    tell(made, FederationEnded(0, ""))
    assert asked(made, body()) == "federation-ended"


def test_declining_is_final_and_blameless() -> None:
    assert [final_reason(body(kind=kind)) for kind in (TRAIN, EVALUATE, DECLINE, PASS)] == ["", "", "declined", "declined"]


def test_an_answer_for_the_open_round_counts_as_done_and_a_refused_evaluation_does_not() -> None:
    made = roster()
    tell(made, rejected(body(kind=EVALUATE), 1, "schema"), rejected(body(sequence=1, kind=PASS), 2, "declined"))
    assert made.done == set()
    tell(made, rejected(body(sequence=2, kind=DECLINE), 3, "declined"))
    assert made.done == {"ann"}
    tell(made, closed(1))
    assert made.done == set()
    tell(made, rejected(body(sequence=3, base=0), 4, "stale"))
    assert made.done == set()


def test_what_is_remembered_is_bounded() -> None:
    made = roster()
    for number in range(20_500):
        made.fold(
            Entry(
                Commit(1, 0, bytes(32), "w", 0, Position(), 1, (), None),
                bytes(32),
                0,
                (accepted(body(sequence=number), number),),
            )
        )
    assert len(made.history) == 20_000
    assert len(made.clients["ann"].rounds) <= REMEMBERED


@pytest.mark.parametrize("run", range(60))
def test_a_successor_that_reads_the_log_and_what_waits_admits_alike(run: int, seed: int) -> None:
    """The undisturbed member admits one by one; its successor folds the log and then is told of what waits, and the rest."""
    rng = np.random.default_rng([seed, run])
    updates = [random_body(rng) for _ in range(40)]
    cut = int(rng.integers(1, 40))
    first, waiting = roster(rounds=1), list[Pending]()
    log: list[object] = []
    for offset, made in enumerate(updates):
        if offset == cut:
            second = roster(rounds=1)
            tell(second, *log)
            again: list[Pending] = []
            for each in waiting:
                assert each.body is not None
                reason = asked(second, each.body, *again, offset=each.offset)
                again.append(replace(each, reason=reason))
                assert reason == each.reason, "the successor judges otherwise"
        waiting.append(item(made, offset, asked(first, made, *waiting, offset=offset)))
        if rng.random() < 0.3:
            events, waiting = judge(waiting)
            log += events
            tell(first, *events)
            for each in waiting:  # As `Intake.readmit` does.
                assert each.body is not None
                each.reason = asked(first, each.body, offset=each.offset)


def random_body(rng: np.random.Generator) -> UpdateBody:
    session = (OLD, NEW)[int(rng.integers(2))]
    kind = (TRAIN, EVALUATE)[int(rng.integers(2))]
    return body(session, int(rng.integers(6)), kind=kind, base=int(rng.integers(3)), num_examples=int(rng.integers(1, 3)))


def judge(waiting: list[Pending]) -> tuple[list[object], list[Pending]]:
    """Judge what needs no cohort, as detection does in every turn."""
    events: list[object] = []
    left: list[Pending] = []
    for each in waiting:
        assert each.body is not None
        if each.reason:
            events.append(rejected(each.body, each.offset, each.reason))
        elif each.body.kind == EVALUATE:
            events.append(accepted(each.body, each.offset))
        else:
            left.append(each)
    return events, left
