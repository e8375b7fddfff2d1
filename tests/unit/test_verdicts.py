"""From a ruling to its events: equal refusals make one, weights are capped, and the last round's plan asks nobody."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from refold.consumers.detectors import Opinion
from refold.consumers.features import FeatureExtractor
from refold.consumers.pending import Pending
from refold.consumers.planning import plan_round
from refold.consumers.roster import Roster
from refold.consumers.verdicts import Ruling, Written, events_of, fitting
from refold.plan import Plan
from refold.schemas.canonical import encode
from refold.schemas.events import (
    Defence,
    Genesis,
    RoundClosed,
    Score,
    SnapshotPolicy,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.layout import Block
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.payload import describe
from refold.schemas.plans import Everyone
from refold.schemas.updates import EVALUATE, TRAIN, UpdateBody, update_digest

SCHEMA = ModelSchema((TensorSchema("w", "float32", (4,), 20, "mean"),))
FINE = Opinion((), ())
BAD = Opinion(("norm",), (Score("norm", 1, 9.0, 4.0, "much too long"), Score("direction", 1, 0.0, 1.0, "fine")))


def roster(**said: Any) -> Roster:
    policy = Plan(minimum=1, seed=bytes(16), **said).policy()
    first = plan_round(policy, 1, (0,), ())
    genesis = Genesis(
        "toy", SCHEMA, describe([b""]), bytes(32), bytes(32), policy, first, "fedavg", (), SnapshotPolicy(1, 1),
        Defence("all", ()), (bytes(32),), bytes(32), 0,
    )  # fmt: skip
    return Roster.of(genesis)


@cache
def packed() -> bytes:
    made = FeatureExtractor(SCHEMA, bytes(32)).start()
    made.add(Block(0, 0, 0, 4, 32), np.array([100, -200, 300, 50], np.int32), 2.0**-20)
    return made.finish().pack()


def item(
    offset: int, reason: str = "", *, client: str = "ann", partition: int = 0, kind: str = TRAIN, examples: int = 10
) -> Pending:
    payload = describe([b"delta"]) if kind == TRAIN else None
    body = UpdateBody(
        "toy",
        client,
        bytes(8),
        0,
        bytes(8),
        0,
        kind,
        0,
        bytes(32),
        SCHEMA.digest,
        "grid",
        (0,),
        examples,
        (),
        payload,
        16,
        "",
        0,
    )
    return Pending(partition, offset, offset, offset, body, update_digest(body), b"", reason, "", packed())


def stranger(offset: int, reason: str = "form", partition: int = 0) -> Pending:
    return Pending(partition, offset, offset, offset, None, bytes([offset]) * 32, b"", reason, "detail")


def written(items: Sequence[Pending]) -> Written:
    return Written({each.source: describe([b"x"]) for each in items}, {each.source: describe([b"f"]) for each in items})


def close(items: Sequence[Pending], opinions: Sequence[Opinion], made: Roster | None = None) -> list[Any]:
    ruling = Ruling(cohort=list(items), opinions=list(opinions), closed_by="complete")
    return events_of(ruling, written(items), made or roster(), ())


def refuse(*items: Pending) -> list[Any]:
    return events_of(Ruling(refused=list(items)), Written(), roster(), ())


def test_f36_ten_thousand_repeats_in_a_row_are_one_event() -> None:
    (event,) = refuse(*[item(offset, "duplicate") for offset in range(3, 10_003)])
    assert isinstance(event, UpdateRejected)
    assert (event.origin.offset, event.last_offset, event.count, event.reasons) == (3, 10_002, 10_000, ("duplicate",))


def test_other_updates_reasons_or_partitions_are_other_events() -> None:
    events = refuse(
        item(1, "duplicate"), item(2, "stale"), item(3, "stale", examples=11), item(4, "stale", examples=11, partition=1)
    )
    assert [(event.origin.offset, event.count) for event in events] == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_a_row_runs_on_over_what_lies_between() -> None:
    events = refuse(item(1, "duplicate"), item(2, "duplicate"), item(3, "duplicate", client="bob"), item(4, "duplicate"))
    assert [(event.origin.client, event.last_offset, event.count) for event in events] == [
        ("ann", 4, 3),
        ("bob", 3, 1),
    ]


def test_a_row_never_goes_backwards() -> None:
    events = refuse(item(9, "duplicate"), item(4, "duplicate"))
    assert [event.count for event in events] == [1, 1]


def test_what_nobody_is_held_to_is_counted_as_a_range_with_a_digest() -> None:
    events = refuse(stranger(1), stranger(2), stranger(5), stranger(6, "signature"), stranger(7, partition=1))
    assert all(isinstance(event, Unattributed) for event in events)
    found = [(event.partition, event.first_offset, event.last_offset, event.count, event.reason) for event in events]
    assert found == [(0, 1, 5, 3, "form"), (0, 6, 6, 1, "signature"), (1, 7, 7, 1, "form")]
    assert events[0].digest != refuse(stranger(1), stranger(3), stranger(5))[0].digest
    assert events[1].digest == bytes([6]) * 32


def test_an_evaluation_is_accepted_without_weight() -> None:
    one = item(1, kind=EVALUATE)
    (event,) = events_of(Ruling(evaluations=[one]), Written(), roster(), ())
    assert isinstance(event, UpdateAccepted)
    assert (event.weight, event.payload, event.origin.kind) == (0, None, EVALUATE)


def test_a_round_closes_over_what_was_accepted_and_says_why_others_were_not() -> None:
    cohort = [item(1), item(2, client="bob", examples=30), item(3, client="eve")]
    bad, first, second, closing = close(cohort, [FINE, FINE, BAD])
    assert isinstance(bad, UpdateRejected)
    assert (bad.origin.client, bad.reasons, bad.detail, bad.scores) == ("eve", ("norm",), "much too long", BAD.scores)
    assert [first.weight, second.weight] == [10, 30]
    assert isinstance(closing, RoundClosed)
    assert [(member.client, member.weight) for member in closing.members] == [("ann", 10), ("bob", 30)]
    assert (closing.round, closing.parent, closing.next_plan.round, closing.closed_by) == (1, 0, 2, "complete")
    for event in (bad, first, second, closing):
        encode(event)


def test_a_round_in_which_nobody_is_accepted_stays_open() -> None:
    events = close([item(1), item(2, client="bob")], [BAD, BAD])
    assert [type(event) for event in events] == [UpdateRejected, UpdateRejected]


def test_a_claim_of_many_examples_is_capped_at_a_multiple_of_the_median() -> None:
    cohort = [item(i, client=f"c{i}", examples=examples) for i, examples in enumerate((10, 10, 10, 2**31 - 1))]
    closing = close(cohort, [FINE] * 4)[-1]
    assert [member.weight for member in closing.members] == [10, 10, 10, 80]


def test_the_last_round_is_followed_by_a_plan_that_asks_nobody() -> None:
    last, other = (close([item(1)], [FINE], roster(rounds=rounds))[-1] for rounds in (1, 2))
    assert isinstance(last, RoundClosed)
    assert (last.next_plan.select_below, other.next_plan.select_below) == (0, Everyone)


def test_the_next_plan_follows_the_cohorts_spread() -> None:
    closing = close([item(1)], [FINE])[-1]
    assert closing.next_plan.exponents == (4,)


@pytest.mark.parametrize("reason", ["duplicate", "missing-chunk", "wrong-base", "poison"])
def test_every_refusal_can_be_written_down(reason: str) -> None:
    for event in refuse(item(1, reason), replace(item(2, reason), detail="x" * 4000), stranger(3, reason)):
        encode(event)


def test_a_round_names_no_more_members_than_fit_a_record_those_that_came_first() -> None:
    crowd = [item(offset, client=f"client-{offset:06d}") for offset in range(10_000)]
    kept = fitting(crowd[::-1])
    assert 8_000 < len(kept) < 9_000
    assert {each.offset for each in kept} == set(range(len(kept)))
    assert kept == sorted(kept, key=lambda each: -each.offset), "in the order given"
    encode(close(kept, [FINE] * len(kept))[-1])
    assert fitting(crowd[:5]) == crowd[:5]
