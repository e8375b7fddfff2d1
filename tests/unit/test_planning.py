"""Plans, selection, weights, exponents and closing, from values alone; and `Plan`, what its maker says."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refold.bus.clock import ManualClock
from refold.consumers.features import FeatureExtractor, Features
from refold.consumers.liveness import BEATS_MISSED, LEAST_SILENCE_S, Deadline, Liveness
from refold.consumers.planning import WEIGHT_CAP, capped, grid_exponents, is_complete, plan_round, update_weight
from refold.plan import Plan
from refold.schemas.canonical import decode, encode
from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.layout import Block
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.plans import Everyone, PlanPolicy, RoundPlan, Schedule
from refold.schemas.updates import Heartbeat

SEED = bytes(range(16))
CLIENTS = [f"ward-{number}" for number in range(400)]


def policy(**said: Any) -> PlanPolicy:
    return Plan(seed=SEED, **said).policy()


def plan(round_: int = 1, living: list[str] | None = None, **said: Any) -> RoundPlan:
    return plan_round(policy(**said), round_, (0,), living or [])


def selected(made: RoundPlan, clients: list[str] = CLIENTS) -> set[str]:
    return {client for client in clients if made.selects(client)}


def test_everyone_takes_part_without_a_share() -> None:
    assert selected(plan()) == set(CLIENTS)
    assert plan().select_below == Everyone


def test_a_share_selects_about_that_many_and_others_each_round() -> None:
    first, second = (selected(plan(round_, CLIENTS, share=0.3, minimum=4)) for round_ in (1, 2))
    assert 80 < len(first) < 160
    assert first != second
    assert first == selected(plan(1, CLIENTS, share=0.3, minimum=4)), "the same on every machine"


def test_a_lot_is_the_same_for_ever() -> None:
    assert plan(3, share=0.5).draw("ward-7") == 6_115_933_730_623_394_804


def test_a_share_is_widened_until_the_minimum_of_the_living_is_selected() -> None:
    living = CLIENTS[:6]
    made = plan(1, living, share=0.001, minimum=4)
    assert len(selected(made, living)) == 4
    assert selected(plan(1, living[:2], share=0.001, minimum=4)) == set(CLIENTS), "too few known: all may come"


def test_who_joins_late_is_selected_by_the_same_rule() -> None:
    made = plan(1, CLIENTS[:100], share=0.3, minimum=4)
    late = [f"late-{number}" for number in range(400)]
    assert 70 < len(selected(made, late)) < 170


def test_evaluation_is_asked_every_so_many_rounds() -> None:
    assert [plan(round_, evaluate_every=3).evaluate for round_ in range(1, 7)] == [False, False, True, False, False, True]
    assert not any(plan(round_).evaluate for round_ in range(1, 7))


def test_a_round_is_complete_when_every_living_selected_client_answered() -> None:
    made = plan(minimum=2)
    assert is_complete(made, {"a", "b"}, {"a", "b"}, 2)
    assert not is_complete(made, {"a", "b", "c"}, {"a", "b"}, 2), "c lives"
    assert is_complete(made, {"a"}, {"a", "b", "gone"}, 2)
    assert not is_complete(made, {"a", "b"}, {"a", "b"}, 1), "too few with an update"
    assert is_complete(made, set(), {"a", "b"}, 2)
    not_asked = replace(made, select_below=0)
    assert is_complete(not_asked, {"a", "b", "c"}, set(), 2)


@pytest.mark.parametrize(
    ("examples", "staleness", "weight"),
    [(100, 0, 100), (100, 1, 50), (100, 3, 12), (1, 5, 1), (10**9, 0, 2**20), (10**9, 60, 1)],
)
def test_an_updates_weight_is_its_examples_capped_and_halved(examples: int, staleness: int, weight: int) -> None:
    assert update_weight(examples, staleness, policy()) == weight


def test_no_weight_exceeds_a_multiple_of_the_median() -> None:
    assert capped([10, 10, 10, 10**6]) == [10, 10, 10, 10 * WEIGHT_CAP]
    assert capped([1, 2, 3]) == [1, 2, 3]
    assert capped([]) == []


SCHEMA = ModelSchema((TensorSchema("w", "float32", (1000,), 20, "mean"), TensorSchema("n", "int64", (), 0, "max")))


def features_of(spread: float) -> Features:
    made = FeatureExtractor(SCHEMA, bytes(32)).start()
    rng = np.random.default_rng(1)
    made.add(Block(0, 0, 0, 1000, 32), np.rint(rng.normal(0, spread, 1000)).astype(np.int32), 2.0**-20)
    return made.finish()


def test_the_grid_follows_the_cohorts_median_spread() -> None:
    cohort = [features_of(spread) for spread in (15_000, 16_000, 2_000_000)]
    assert grid_exponents(SCHEMA, cohort, divisor=16, before=(3, 0)) == (10, 0)
    assert grid_exponents(SCHEMA, cohort, divisor=4, before=(3, 0)) == (12, 0)


def test_a_tensor_that_nobody_changed_keeps_its_exponent() -> None:
    assert grid_exponents(SCHEMA, [], divisor=16, before=(3, 0)) == (3, 0)
    assert grid_exponents(SCHEMA, [features_of(0)] * 3, divisor=16, before=(3, 0)) == (3, 0)


def test_a_plan_is_recorded_as_it_was_said() -> None:
    made = policy(share=0.3, minimum=4, deadline_s=None, rounds=7, config={"lr": 0.1, "name": "x"}, heartbeat_s=0.5)
    assert (made.share_ppm, made.minimum, made.deadline_ms, made.rounds, made.heartbeat_ms) == (300_000, 4, 0, 7, 500)
    assert dict(made.config_at(1)) == {"lr": 0.1, "name": "x"}
    assert decode(encode(made)) == made


def test_settings_given_as_a_function_are_evaluated_once_for_every_round() -> None:
    asked = []

    def config(round_: int) -> dict[str, float]:
        asked.append(round_)
        return {"lr": 0.1 if round_ < 4 else 0.01}

    made = policy(rounds=6, config=config)
    assert asked == [1, 2, 3, 4, 5, 6]
    assert len(made.spans) == 2
    assert [dict(made.config_at(round_))["lr"] for round_ in range(1, 8)] == [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]


def test_a_function_needs_a_number_of_rounds() -> None:
    with pytest.raises(UsageError, match="Schedule"):
        policy(config=lambda round_: {"lr": 0.1})


def test_a_function_that_never_stops_changing_is_refused_soon() -> None:
    calls = []

    def config(round_: int) -> dict[str, int]:
        calls.append(round_)
        return {"seed": round_}

    with pytest.raises(UsageError, match="do not fit"):
        policy(rounds=10**12, config=config)
    assert len(calls) < 5000


def test_a_schedule_changes_a_setting_for_ever() -> None:
    made = policy(config={"lr": Schedule(0.1, 0.5, every=10, floor=0.01), "epochs": 2})
    assert [dict(made.config_at(round_)) for round_ in (1, 10, 11, 1000)] == [
        {"epochs": 2, "lr": 0.1}, {"epochs": 2, "lr": 0.1}, {"epochs": 2, "lr": 0.05}, {"epochs": 2, "lr": 0.01},
    ]  # fmt: skip
    assert decode(encode(made)) == made


@pytest.mark.parametrize(("initial", "factor"), [(1.0, 2.0), (-1.0, 2.0), (1.0, -3.0), (0.0, 2.0), (1e300, 1e300), (1.0, 0.0)])
@pytest.mark.parametrize("round_", [1, 2, 1024, 5000, 5001, 2**62])
def test_a_schedule_that_grows_without_end_stays_a_number_that_can_be_written(
    initial: float, factor: float, round_: int
) -> None:
    value = Schedule(initial, factor).at(round_)
    assert math.isfinite(value)
    encode(plan_round(policy(config={"x": Schedule(initial, factor)}), round_, (0,), ()))


def test_a_schedule_without_sense_is_refused() -> None:
    with pytest.raises(InvalidRecord):
        Schedule(1.0, every=0)
    for odd in (math.nan, math.inf):
        with pytest.raises(UsageError, match="cannot be written down"):
            policy(config={"x": Schedule(odd)})


@pytest.mark.parametrize(
    "said",
    [
        {"share": 0.0},
        {"share": 1.1},
        {"minimum": 0},
        {"deadline_s": 0},
        {"deadline_s": -1.0},
        {"rounds": 0},
        {"heartbeat_s": 0.001},
        {"heartbeat_s": 1e9},
        {"codec": "pickle"},
        {"max_staleness": -1},
        {"max_staleness": 61},
        {"evaluate_every": -1},
        {"sigma_divisor": 0},
        {"max_examples": 0},
        {"seed": b"short"},
        {"config": {"lr": math.nan}},
        {"config": {"lr": [1, 2]}},
        {"config": {"lr": np.float32(0.1)}},
        {"config": {"a\nb": 1}},
        {"config": {"": 1}},
        {"config": {3: 1}},
        {"config": {"x": 2**64}},
        {"config": lambda round_: {"lr": None}, "rounds": 3},
        {"config": lambda round_: None, "rounds": 3},
        {"minimum": 2.5},
    ],
)
def test_a_plan_without_sense_is_a_usage_error(said: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="plan"):
        Plan(**{"seed": SEED, **said}).policy()


def beat(client: str, interval_ms: int = 1000) -> Heartbeat:
    return Heartbeat("toy", client, 0, bytes(8), 0, interval_ms, "waiting", 0, bytes(32), (), 0)


def test_who_is_silent_for_some_of_the_plans_intervals_is_no_longer_waited_for() -> None:
    clock, liveness = ManualClock(), Liveness()
    liveness.beat(beat("a", 86_400_000), 1000, clock.monotonic_s())
    liveness.beat(beat("fast"), 10, clock.monotonic_s())
    clock.advance(LEAST_SILENCE_S + 0.01)
    assert liveness.living(clock.monotonic_s()) == {"a"}
    clock.advance(BEATS_MISSED - LEAST_SILENCE_S)
    assert liveness.living(clock.monotonic_s()) == set()
    liveness.heard("a", clock.monotonic_s())
    assert liveness.living(clock.monotonic_s()) == {"a"}, "any sign of life counts"


def test_f29_what_clients_say_of_the_time_does_not_matter() -> None:
    liveness = Liveness()
    liveness.beat(replace(beat("a"), client_time_ms=2**62), 1000, 10.0)
    assert liveness.living(11.0) == {"a"}


def test_the_silent_are_forgotten() -> None:
    liveness = Liveness()
    for number in range(1000):
        liveness.beat(beat(f"c{number}"), 1000, float(number * 1000))
        liveness.living(float(number * 1000))
    assert len(liveness._heard) < 10


def test_a_deadline_runs_only_while_enough_are_alive() -> None:
    clock, deadline = ManualClock(), Deadline()
    assert deadline.tick(1, True, clock.monotonic_s()) == 0
    clock.advance(5)
    assert deadline.tick(1, True, clock.monotonic_s()) == 5
    clock.advance(100)
    assert deadline.tick(1, False, clock.monotonic_s()) == 5
    clock.advance(2)
    assert deadline.tick(1, True, clock.monotonic_s()) == 7
    clock.advance(3)
    assert deadline.tick(2, True, clock.monotonic_s()) == 0, "a new round waits anew"
    clock.advance(3)
    assert deadline.tick(2, True, clock.monotonic_s()) == 3
    deadline.extend()
    assert deadline.tick(2, True, clock.monotonic_s()) == 0


def test_a_clock_that_stands_or_goes_back_never_shortens_the_wait() -> None:
    deadline = Deadline()
    deadline.tick(1, True, 100.0)
    assert deadline.tick(1, True, 90.0) == 0
    assert deadline.tick(1, True, 95.0) == 5


@pytest.mark.parametrize(
    ("text", "properties", "holds"),
    [
        ("rows >= 1000", {"rows": 1000}, True),
        ("rows>=1000", {"rows": 999.5}, False),
        ("rows != 3", {"rows": 4}, True),
        ("rows != 3", {}, False),
        ("rows > 3", {"rows": "4"}, False),
        ("region = north", {"region": "north"}, True),
        ("region == 'north'", {"region": "north"}, True),
        ("region = '7'", {"region": "7"}, True),
        ("region = 7", {"region": "7"}, False),
        ("gpu = true", {"gpu": True}, True),
        ("gpu = true", {"gpu": False}, False),
        ("ward < b", {"ward": "a"}, True),
    ],
)
def test_a_requirement_holds_for_what_a_client_says_of_itself(text: str, properties: dict[str, Any], holds: bool) -> None:
    made = plan(where=text)
    assert made.fits(properties) is holds
    assert decode(encode(made), RoundPlan) == made


def test_all_requirements_must_hold() -> None:
    made = plan(where=("rows >= 10", "region = north"))
    assert made.fits({"rows": 10, "region": "north"})
    assert not made.fits({"rows": 10, "region": "south"})
    assert str(made.where[0]) == "rows >= 10"
    for odd in ("rows", "rows >=", ">= 10", "rows ~ 10", ""):
        with pytest.raises(UsageError, match="no requirement"):
            policy(where=odd)


def test_a_full_buffer_closes_a_round_whoever_is_still_at_work() -> None:
    made = plan(buffer=3, max_staleness=5, minimum=2)
    living = CLIENTS[:9]
    assert not is_complete(made, living, living[:2], 2)
    assert is_complete(made, living, living[:3], 3)
    with pytest.raises(UsageError, match="buffer without max_staleness"):
        policy(buffer=3)
    with pytest.raises(UsageError, match="buffer 0"):
        policy(buffer=0, max_staleness=1)


@pytest.mark.parametrize(
    ("discount", "weights"),
    [("halved", [1000, 500, 250, 125]), ("root", [1000, 707, 577, 500]), ("none", [1000, 1000, 1000, 1000])],
)
def test_a_stale_update_weighs_as_the_plan_says(discount: str, weights: list[int]) -> None:
    made = policy(discount=discount, max_staleness=9)
    assert [update_weight(1000, staleness, made) for staleness in range(4)] == weights
    assert update_weight(1, 9, made) == 1
    with pytest.raises(UsageError, match="discount"):
        policy(discount="often")
