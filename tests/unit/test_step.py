import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.layout import BLOCK, Integers, Layout
from refold.state.aggregation import MAX_TOTAL_WEIGHT, Aggregate, WeightedMean, least_exponents, scaled_weights
from refold.state.fold import apply_step, would_overflow
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import OPTIMIZERS, FedAdam, FedAvg, FedAvgM, Optimizer, from_settings
from refold.state.step import FORMER, Step, Void, compute_step, step_exponent


def state_of(size: int = 4, **integers: tuple[str, list[int]]) -> ModelState:
    tensors = {"w": np.zeros(size, np.float32)} | {name: np.array(values, np.int64) for name, (_, values) in integers.items()}
    return initial_state(tensors, {name: rule for name, (rule, _) in integers.items()})


def aggregate_of(state: ModelState, *updates: tuple[list[Integers], int, int]) -> Aggregate:
    """Sum updates given as (arrays, exponent of the first tensor, weight); their place is their log index."""
    rest = (0,) * (len(state.schema.tensors) - 1)
    mean = WeightedMean(state.schema, (min(k for _, k, _ in updates), *rest))
    for index, (arrays, k, weight) in enumerate(updates):
        blocks = ((block, arrays[block.tensor][block.elements].copy()) for block in Layout.of(state.schema))
        mean.add(blocks, (k, *rest), weight=weight, index=index)
    return mean.result()


def ints(*values: int) -> Integers:
    return np.array(values, np.int32)


def step_of(state: ModelState, aggregate: Aggregate, optimizer: Optimizer | None = None) -> Step:
    step = compute_step(state, aggregate, optimizer or FedAvg())
    assert isinstance(step, Step)
    return step


def test_the_aggregate_is_the_exact_weighted_sum() -> None:
    state = state_of()
    found = aggregate_of(state, ([ints(1, -2, 3, 0)], 2, 5), ([ints(7, 7, -7, 1)], 0, 3))
    assert found.weight == 8
    assert found.exponents[0] == 0
    assert found.sums[0] is not None
    assert found.sums[0].tolist() == [5 * 4 + 21, -40 + 21, 60 - 21, 3]


def test_a_sum_beyond_32_bits_moves_to_64() -> None:
    state = state_of(1)
    large = 2**27 - 1
    found = aggregate_of(state, ([ints(3)], 0, 1), ([ints(large)], 0, 1 << 20), ([ints(-large)], 1, 1 << 20))
    assert found.sums[0] is not None
    assert found.sums[0].dtype == np.int64
    assert found.sums[0].tolist() == [3 + (large << 20) - (large << 21)]


def test_an_update_out_of_range_is_refused_before_it_is_added() -> None:
    with pytest.raises(InvalidRecord) as caught:
        aggregate_of(state_of(1), ([ints(1 << 20)], 8, 1))
    assert caught.value.reason == "out-of-range"


def test_weights_are_bounded_and_an_empty_cohort_has_no_mean() -> None:
    state = state_of(1)
    with pytest.raises(UsageError):
        aggregate_of(state, ([ints(1)], 0, MAX_TOTAL_WEIGHT), ([ints(1)], 0, 1))
    with pytest.raises(UsageError):
        WeightedMean(state.schema, (0,)).result()
    with pytest.raises(UsageError, match="least"):
        WeightedMean(state.schema, (3,)).add([], (2,), weight=1, index=0)


def test_weights_are_scaled_to_fit_and_none_is_lost() -> None:
    assert scaled_weights((3, 0, 4)) == (3, 0, 4)
    found = scaled_weights((2**31, 1, 0, 2**30))
    assert sum(found) <= MAX_TOTAL_WEIGHT
    assert found[1] == 1
    assert found[2] == 0
    assert found[0] / found[3] == pytest.approx(2, rel=1e-3)


def test_the_least_exponent_is_found_for_each_tensor() -> None:
    assert least_exponents([(3, 1), (2, 4), (5, 0)]) == (2, 0)


def test_counters_follow_their_rules() -> None:
    state = state_of(1, top=("max", [5, 5]), total=("sum", [5, 5]), newest=("last", [5, 5]))
    first = [ints(0), np.array([9, 1]), np.array([1, -2]), np.array([100, 101])]
    second = [ints(0), np.array([7, 2]), np.array([10, 20]), np.array([200, 201])]
    for pair in ((first, second), (second, first)):
        mean = WeightedMean(state.schema, (0, 0, 0, 0))
        for arrays in pair:
            blocks = ((block, arrays[block.tensor][block.elements].copy()) for block in Layout.of(state.schema))
            mean.add(blocks, (0, 0, 0, 0), weight=1, index=1 if arrays is second else 0)
        after = state.copy()
        step_of(state, mean.result()).apply(after, round_=1)
        assert [array.tolist() for array in after.parameters[1:]] == [[9, 5], [16, 23], [200, 201]]


@pytest.mark.parametrize("rule", ["sum", "max", "last"])
def test_a_counter_stays_at_the_end_of_its_dtype_and_the_rounds_go_on(rule: str) -> None:
    state = initial_state({"n": np.array([120, 3], np.int8)}, {"n": rule})
    step = step_of(state, aggregate_of(state, ([np.array([300, 4])], 0, 1)))
    assert step.stayed == {"n": 1}
    step.apply(state, round_=1)
    assert state.parameters[0].tolist() == [127, 7 if rule == "sum" else 4]


def test_older_servers_made_such_a_round_void_and_that_can_still_be_derived() -> None:
    state = initial_state({"n": np.array([120], np.int8)}, {"n": "sum"})
    for making in FORMER:
        found = compute_step(state, aggregate_of(state, ([np.array([100])], 0, 1)), FedAvg(), making=making)
        assert isinstance(found, Void)
        assert found.tensor == "n"


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_counter_beyond_64_bits_stays_at_its_end_in_any_order(order: tuple[int, ...]) -> None:
    most, least = 2**63 - 1, -(2**63)
    updates = [[most, least, most, 5], [most, least, least, 5], [-7, 7, 3, 5], [1, -1, least, 5]]
    state = initial_state({"n": np.array([0, 0, 9, 1])}, {"n": "sum"})
    aggregate = aggregate_of(state, *(([np.array(updates[i])], 0, 1) for i in order))
    step_of(state, aggregate).apply(state, round_=1)
    within = [max(least, min(most, sum(column))) for column in zip(*updates, strict=True)]
    exact = [max(least, min(most, start + change)) for start, change in zip([0, 0, 9, 1], within, strict=True)]
    assert state.parameters[0].tolist() == exact


def test_the_step_is_the_mean_rounded_once() -> None:
    state = state_of(3)
    step = step_of(state, aggregate_of(state, ([ints(1, 3, -3)], 0, 1), ([ints(0, 0, 0)], 0, 1)))
    assert step.exponents == (0,)
    assert step.parameters[0].tolist() == [0, 2, -2]


def test_the_step_agrees_with_exact_arithmetic() -> None:
    rng = np.random.default_rng(9)
    state = state_of(2000)
    updates = [
        ([rng.integers(-(2**19), 2**19, 2000).astype(np.int32)], int(rng.integers(0, 8)), int(rng.integers(1, 9999)))
        for _ in range(7)
    ]
    step = step_of(state, aggregate_of(state, *updates))
    weight = sum(w for _, _, w in updates)
    for place in range(0, 2000, 97):
        mean = Fraction(sum(w * (int(q[0][place]) << k) for q, k, w in updates), weight) / (1 << step.exponents[0])
        assert abs(int(step.parameters[0][place]) - mean) <= Fraction(1, 2)


@pytest.mark.parametrize(("total", "count", "j"), [(0, 5, 0), (0, 0, 0), (320, 100, 0), (640, 100, 1), (1 << 40, 65536, 22)])
def test_the_steps_exponent_is_found_in_integers(total: int, count: int, j: int) -> None:
    assert step_exponent(total, count) == j
    if total and j:
        assert 2**j <= 1.25 * total / count / 4 < 2 ** (j + 1)


def test_a_step_is_coded_near_its_spread_divided_by_four() -> None:
    rng = np.random.default_rng(10)
    state = state_of(3 * BLOCK)
    step = step_of(state, aggregate_of(state, ([np.rint(rng.normal(0, 5000, 3 * BLOCK)).astype(np.int32)], 0, 1)))
    assert 4 <= step.parameters[0].std() < 8.3


def test_a_step_that_would_leave_the_lattice_makes_the_round_void_and_changes_nothing() -> None:
    state = state_of(2)
    state.parameters[0][:] = 2**31 - 1
    before = state.digest
    assert isinstance(compute_step(state, aggregate_of(state, ([ints(1, 0)], 0, 1)), FedAvg()), Void)
    assert isinstance(compute_step(state_of(2), aggregate_of(state, ([ints(9, 0)], 0, 1)), FedAvg(lr=1e300)), Void)
    assert state.digest == before


def test_the_overflow_check_sees_the_sum_and_not_only_the_extremes() -> None:
    tensor = state_of(2).schema.tensors[0]
    high = 2**31 - 1
    assert not would_overflow(tensor, ints(high, 0), ints(0, high >> 4), 4)
    assert not would_overflow(tensor, ints(high, -5), ints(-1, 9), 3)
    assert would_overflow(tensor, ints(high, 0), ints(1, 0), 0)
    assert would_overflow(tensor, ints(-high, 0), ints(-1, 0), 0)
    wide = initial_state({"n": np.array([0, 0])}).schema.tensors[0]
    assert would_overflow(wide, np.array([2**63 - 1, 0]), np.array([1, 0]), 0)
    assert not would_overflow(wide, np.array([2**61, 0]), np.array([-(2**61), 2**61]), 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_made_again_from_its_settings(name: str) -> None:
    made = OPTIMIZERS[name](lr=0.25)
    assert from_settings(made.name, made.settings()) == made


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="no optimizer"):
        from_settings("sgd", ())
    with pytest.raises(UsageError, match="no such setting"):
        from_settings("fedavg", (("beta", 0.5),))
    for name, setting in (("lr", 0.0), ("lr", math.nan), ("beta1", 1.0), ("beta2", -0.1), ("tau", 0.0)):
        with pytest.raises(UsageError, match=name):
            from_settings("fedadam", ((name, setting),))


def test_adam_follows_the_paper() -> None:
    optimizer = FedAdam(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3)
    m = v = 0.0
    slots = (np.zeros(1), np.zeros(1))
    for delta in (0.5, -0.2, 0.1):
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta * delta
        change, slots = optimizer.change(np.array([delta]), slots)
        assert change[0] == pytest.approx(0.1 * m / (math.sqrt(v) + 1e-3))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_follow_the_unrounded_optimizer_over_rounds(name: str) -> None:
    rng = np.random.default_rng(12)
    optimizer: Optimizer = OPTIMIZERS[name](lr=0.01)
    state = state_of(500)
    values = np.zeros(500)
    slots = tuple(np.zeros(500) for _ in optimizer.slots)
    for round_ in range(1, 6):
        q = np.rint(rng.normal(0, 4000, 500)).astype(np.int32)
        step_of(state, aggregate_of(state, ([q], 0, 1)), optimizer).apply(state, round_=round_)
        change, slots = optimizer.change(q * 2.0**-22, slots)
        values += change
    scale = max(1e-9, float(np.abs(values).mean()))
    assert np.abs(state.numpy()["w"] - values).mean() / scale < 0.1
    for slot_name, expected in zip(optimizer.slots, slots, strict=True):
        held = state.slots[slot_name][0] * 2.0 ** -state.slot_exponents[slot_name][0]
        assert held == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_slots_lattice_is_fitted_once() -> None:
    state = state_of(3)
    step_of(state, aggregate_of(state, ([ints(1 << 10, 0, 0)], 0, 1)), FedAvgM()).apply(state, round_=1)
    fitted = dict(state.slot_exponents)
    assert fitted == {"m": (25 - -11,)}
    step_of(state, aggregate_of(state, ([ints(1 << 14, 0, 0)], 0, 1)), FedAvgM()).apply(state, round_=2)
    assert state.slot_exponents == fitted


def test_a_slot_stays_at_the_edge_of_its_lattice_and_the_rounds_go_on() -> None:
    state = state_of(2)
    step_of(state, aggregate_of(state, ([ints(1, 1)], 0, 1)), FedAvgM(lr=1e-6)).apply(state, round_=1)
    step = step_of(state, aggregate_of(state, ([ints(1 << 20, 1)], 0, 1)), FedAvgM(lr=1e-6))
    step.apply(state, round_=2)
    assert step.saturated == 1
    assert state.slots["m"][0][0] == 2**31 - 1
    assert isinstance(compute_step(state, aggregate_of(state, ([ints(-5, 1)], 0, 1)), FedAvgM(lr=1e-6)), Step)


def test_a_round_is_made_in_bounded_memory() -> None:
    """I10: with two slots, state and all that making a step takes stay within eight times the model."""
    tensors = 16
    state = initial_state({f"layer{i}": np.zeros(BLOCK, np.float32) for i in range(tensors)})
    state.slots = {name: [np.zeros(BLOCK, np.int32) for _ in range(tensors)] for name in FedAdam.slots}
    state.slot_exponents = dict.fromkeys(FedAdam.slots, (30,) * tensors)
    layout = Layout.of(state.schema)
    mean = WeightedMean(state.schema, (0,) * tensors)
    rng = np.random.default_rng(14)
    tracemalloc.start()
    try:
        for index in range(4):
            blocks = ((block, rng.integers(-(2**20), 2**20, block.count).astype(np.int32)) for block in layout)
            mean.add(blocks, (0,) * tensors, weight=1 << 20, index=index)
        step = step_of(state, mean.result(), FedAdam())
        written = sum(map(len, step.encode())) + sum(map(len, step.encode_slots()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = 3
    assert written
    assert peak / (4 * tensors * BLOCK) + held < 8


def test_backwards_undoes_forwards() -> None:
    rng = np.random.default_rng(13)
    state = state_of(BLOCK + 3, n=("max", [1, 2]))
    before = state.digest
    blocks = [
        (block, rng.integers(-(2**31), 2**31 - 1, block.count).astype(np.int32 if block.width == 32 else np.int64))
        for block in Layout.of(state.schema)
    ]
    apply_step(state, blocks, (5, 0))
    assert state.digest != before
    apply_step(state, blocks, (5, 0), sign=-1)
    assert state.digest == before
