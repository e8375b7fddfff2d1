"""When snapshots are taken, and which are kept."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

import refold
from refold.consumers.checkpoint_policy import CHOOSING, Known, RecoveryBudget, Since, SnapshotRules
from refold.schemas.errors import UsageError
from refold.schemas.plans import settings


def rules(**said: Any) -> SnapshotRules:
    return SnapshotRules.of(settings({"every_rounds": 10, **said}))


def since(head: int = 25, rounds: int = 15, **more: Any) -> Since:
    return Since(**{"head": head, "rounds": rounds, "size_bytes": 0, "seconds": 0.0, **more})


def test_every_n_rounds_takes_the_newest_multiple_once() -> None:
    assert rules().due(since(25, 15)) == 20
    assert rules().due(since(25, 5)) is None
    assert rules().due(since(30, 10)) == 30


def test_bytes_and_seconds_take_the_newest_round_once_there_are_enough() -> None:
    assert rules(every_rounds=0, every_mb=1).due(since(size_bytes=1_000_000)) == 25
    assert rules(every_rounds=0, every_mb=1).due(since(size_bytes=999_999)) is None
    assert rules(every_rounds=0, every_s=60).due(since(seconds=60.0)) == 25
    assert rules(every_rounds=0, every_s=60).due(since(rounds=0, seconds=600.0)) is None


def test_a_budget_for_recovery_counts_loading_and_what_is_to_be_replayed() -> None:
    measured = {"load_s": 1.0, "replay_s": 0.1}
    assert rules(every_rounds=0, recovery_s=3.0).due(since(rounds=18, **measured)) is None
    assert rules(every_rounds=0, recovery_s=3.0).due(since(rounds=20, **measured)) == 25


def test_where_failures_are_known_young_and_dalys_interval_bounds_it_too() -> None:
    budget = RecoveryBudget(1e9)
    measured = since(write_s=2.0, between_failures_s=3600.0)
    assert budget.interval_s(measured) == pytest.approx(120.0)
    assert budget.due(since(write_s=2.0, between_failures_s=3600.0, seconds=119.0)) is None
    assert budget.due(since(write_s=2.0, between_failures_s=3600.0, seconds=121.0)) == 25
    assert math.isinf(budget.interval_s(since(write_s=2.0)))


def test_what_is_kept_says_why_and_the_initial_state_always_is() -> None:
    there = [0, 10, 20, 30, 40, 50, 60, 70, 80]
    kept = rules(keep_last=2, keep_spaced=2, keep_best=1, tagged="30").kept(there, {20: 0.5, 60: 0.1})
    assert kept[0] == "initial"
    assert kept[80] == "newest, spaced"
    assert kept[60].endswith("best")
    assert kept[30] == "tagged"
    assert 40 not in kept
    assert len(kept) < len(there)


def test_spaced_snapshots_are_dense_lately_and_sparse_long_ago() -> None:
    kept = sorted(rules(keep_last=1, keep_spaced=2).kept(range(0, 1010, 10), {}))
    assert len(kept) < 12
    ages = [1000 - round_ for round_ in kept[1:]]
    assert all(older >= 1.2 * newer for older, newer in pairwise(ages) if newer)


def test_the_policy_that_a_federation_is_made_with_keeps_what_it_always_did() -> None:
    founded = SnapshotRules.founded(refold.SnapshotPolicy(5, 2))
    assert sorted(founded.kept([0, 5, 10, 15, 20], {})) == [0, 15, 20]


def test_a_round_to_go_back_to_is_chosen_by_snapshot_by_what_was_good_or_by_what_was_best() -> None:
    known = Known((9, 8, 7, 6, 0), frozenset({0, 6, 12}), {6: 0.3, 7: 0.1, 8: 0.2, 12: 0.0}, 8)
    assert {word: choosing.choose(known) for word, choosing in CHOOSING.items()} == {"nearest": 6, "good": 8, "best": 7}
    nothing = Known((1, 0), frozenset(), {}, 0)
    assert all(choosing.choose(nothing) is None for choosing in CHOOSING.values())


@pytest.mark.parametrize(
    "said",
    [
        {"evry_rounds": 3},
        {"every_rounds": -1},
        {"every_rounds": 1.5},
        {"keep_spaced": 1.0},
        {"tagged": "r1"},
        {"every_rounds": 0},
    ],
)
def test_settings_that_make_no_policy_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        rules(**said)
