"""The tree of rounds: what stands on what, how far training got, and the plans that follow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import refold
from refold.consumers.branches import Branches
from refold.consumers.planning import plan_round
from refold.consumers.regridding import regridded
from refold.schemas.canonical import encode
from refold.schemas.errors import UsageError
from refold.schemas.events import Member, RoundClosed
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.plans import ConfigSpan, Everyone
from refold.schemas.regrid import Overflowed, Regridded
from refold.schemas.rollback import Calibration, RolledBack

POLICY = refold.Plan(rounds=20, share=0.5, config=lambda r: {"lr": float(r)}, seed=bytes(16)).policy()
CLIENTS = ("ann", "bob", "cid", "dan")


def tree(rounds: int) -> Branches:
    """Return the tree of so many rounds in a row."""
    made = Branches.of(plan_round(POLICY, 1, (3,), CLIENTS))
    for _ in range(rounds):
        close(made)
    return made


def close(made: Branches, exponents: tuple[int, ...] = (3,), members: tuple[str, ...] = ()) -> RoundClosed:
    """Close the open round."""
    plan = made.plan_after(POLICY, exponents, CLIENTS, members)
    cohort = tuple(Member(bytes(32), name, 1) for name in members)
    event = RoundClosed(made.head + 1, made.head, cohort, "weighted_mean", "fedavg", (), "complete", plan)
    made.close(event)
    return event


def back(made: Branches, parent: int, calibration: Calibration | None = None) -> RolledBack:
    """Roll back."""
    event = made.rolled_back(POLICY, parent, "test", calibration=calibration, clients=CLIENTS)
    made.roll_back(event)
    return event


def test_staleness_counts_commits_on_the_branch_of_the_newest_round() -> None:
    made = tree(7)
    assert [made.staleness(base) for base in (7, 5, 0)] == [0, 2, 7]
    back(made, 3)
    close(made)
    assert [made.staleness(base) for base in (9, 8, 3, 0)] == [0, 1, 2, 5]


def test_what_lies_on_a_branch_that_was_left_has_no_staleness_until_it_is_gone_back_to() -> None:
    made = tree(7)
    back(made, 3)
    assert [made.staleness(base) for base in (4, 7)] == [None, None]
    back(made, 6)
    assert [made.staleness(base) for base in (8, 7, 6, 4)] == [None, None, 1, 3]


def test_training_goes_on_with_the_settings_and_exponents_of_the_round_gone_back_to() -> None:
    made = tree(4)
    close(made, exponents=(9,))
    event = back(made, 4)
    assert (event.round, event.abandoned, event.next_plan.round) == (6, 5, 7)
    assert event.next_plan.exponents == (3,)
    assert dict(event.next_plan.config) == {"lr": 5.0}
    assert event.next_plan.select_below == Everyone
    assert dict(close(made).next_plan.config) == {"lr": 6.0}
    assert made.nodes[made.head].progress == 5


def test_a_calibration_asks_few_clients_with_its_own_settings_and_then_training_is_where_it_was() -> None:
    made = tree(10)
    plan = back(made, 0, Calibration(8, 1, spans(0.5, 0.25, 0.125))).next_plan
    asked = []
    for lr in (0.5, 0.25, *[0.125] * 6):
        (client,) = [client for client in CLIENTS if plan.selects(client)]
        asked.append(client)
        assert dict(plan.config) == {"lr": lr, "mode": "repair"}
        plan = close(made, members=(client,)).next_plan
    assert sorted(asked[:4]) == sorted(asked[4:]) == sorted(CLIENTS)
    assert dict(plan.config) == {"lr": 11.0}
    assert made.nodes[made.head].progress == 10


def test_a_rollback_into_a_calibration_goes_on_with_it() -> None:
    made = tree(10)
    back(made, 0, Calibration(5, 1, spans(16.0, 8.0, 4.0)))
    for _ in range(3):
        close(made)
    assert dict(back(made, 12).next_plan.config) == {"lr": 8.0, "mode": "repair"}


def spans(*rates: float) -> tuple[ConfigSpan, ...]:
    return tuple(ConfigSpan(number, (("lr", rate), ("mode", "repair"))) for number, rate in enumerate(rates, 1))


@pytest.mark.parametrize("parent", [3, 4])
def test_the_newest_round_and_one_that_is_not_there_are_nothing_to_go_back_to(parent: int) -> None:
    with pytest.raises(UsageError, match="go back"):
        tree(3).rolled_back(POLICY, parent, "test")


def test_a_regridding_leaves_the_void_round_out_and_keeps_the_cells_of_the_grid_as_large_as_they_were() -> None:
    made = tree(5)
    schema = ModelSchema((TensorSchema("w", "float32", (4,), 22, "mean"),))
    event = made.regridded(POLICY, 4, schema, (16,), "too large")
    assert (event.round, event.parent, event.overflowed, event.next_plan.round) == (6, 4, 5, 7)
    assert event.next_plan.exponents == (0,), "2^3 steps of before are less than one of now"
    assert made.regridded(POLICY, 4, schema, (21,), "too large").next_plan.exponents == (2,)
    made.regrid(event)
    assert made.progress == 4
    assert [made.staleness(base) for base in (6, 5, 4, 3)] == [0, None, 1, 2]
    assert [made.is_on_former_lattice(base) for base in (6, 4, 0)] == [False, True, True]
    close(made)
    assert not made.is_on_former_lattice(6)
    back(made, 3)
    assert [made.is_on_former_lattice(base) for base in (8, 7, 6, 3)] == [False, True, True, False]


def regridding_of(made: Branches, names: list[str]) -> Regridded:
    """Return what answers the newest round, which was void for all of its tensors."""
    schema = ModelSchema(tuple(TensorSchema(name, "float32", (4,), 22, "mean") for name in names))
    genesis = SimpleNamespace(policy=POLICY)
    roster: Any = SimpleNamespace(
        ended=False, closed=made.head, schema=schema, branches=made, genesis=genesis, able=frozenset(CLIENTS)
    )
    rounds = {made.head: SimpleNamespace(parent=made.head - 1)}
    asked = Overflowed(made.head, tuple(range(len(names))))
    lineage: Any = SimpleNamespace(overflowed=asked, head=made.head, rounds=rounds)
    event = regridded(roster, lineage)
    assert event is not None
    return event


def test_a_regridding_within_a_calibration_asks_as_few_clients_as_the_round_that_was_void() -> None:
    made = tree(10)
    back(made, 0, Calibration(8, 1, spans(0.5, 0.25)))
    close(made, members=("ann",))
    close(made, members=("bob",))
    plan = regridding_of(made, ["w"]).next_plan
    asked = [client for client in CLIENTS if plan.selects(client)]
    assert len(asked) == 1
    assert asked != ["ann"], "it had its turn"
    assert dict(plan.config) == {"lr": 0.25, "mode": "repair"}


def test_the_longest_names_of_tensors_fit_into_the_reason_of_a_regridding() -> None:
    names = [f"'\"{number}".ljust(200, "\\") for number in range(20)]
    made = tree(0)
    close(made, exponents=(3,) * 20)
    event = regridding_of(made, names)
    assert repr(names[7]) in event.reason
    encode(event)
