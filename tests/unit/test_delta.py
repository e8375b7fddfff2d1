import math

import numpy as np
import pytest

from refold.schemas.codec import encode_floats, encode_integers
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import Layout
from refold.state.delta import (
    EXACT,
    FLOAT32,
    GRID,
    check_exponents,
    decode_update,
    delta_integers,
    delta_of,
    fit_exponent,
    spread,
)
from refold.state.model_state import ModelState, initial_state

RNG_SEED = 5


def base() -> ModelState:
    rng = np.random.default_rng(RNG_SEED)
    return initial_state(
        {"w": rng.normal(0, 0.1, 5000).astype(np.float32), "n": np.array(3), "c": np.array([1, 2])}, rules={"c": "sum"}
    )


def trained(state: ModelState, size: float = 1e-3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(RNG_SEED + 1)
    local = state.numpy()
    return {"w": local["w"] + rng.normal(0, size, 5000).astype(np.float32), "n": np.array(9), "c": local["c"] + 10}


def reason_of(local: np.ndarray, k: int = 0) -> str:
    with pytest.raises(InvalidRecord) as caught:
        delta_integers(local, np.zeros(local.size, np.int32), 22, k)
    return caught.value.reason


def test_the_grid_is_near_the_spread_divided_by_sixteen() -> None:
    state = base()
    delta = delta_of(state, trained(state))
    cell = 2.0 ** delta.exponents[0]
    sigma = spread(trained(state)["w"], state.parameters[0], 22)
    assert 0.7 <= sigma / 16 / cell <= 1.42
    back = delta.arrays[0] * cell * 2.0**-22
    assert np.max(np.abs(back - (trained(state)["w"] - state.numpy()["w"]))) <= cell * 2.0**-23 * 1.0001


def test_counters_send_their_value_and_sums_their_change() -> None:
    state = base()
    delta = delta_of(state, trained(state))
    assert delta.arrays[1].tolist() == [9]
    assert delta.arrays[2].tolist() == [10, 10]
    assert delta.exponents[1:] == (0, 0)


def test_a_client_stays_near_the_plan() -> None:
    state = base()
    free = delta_of(state, trained(state)).exponents[0]
    assert delta_of(state, trained(state), plan=(free + 5, 0, 0)).exponents[0] == free + 3
    assert delta_of(state, trained(state), plan=(0, 0, 0)).exponents[0] == min(free, 8)


def test_nothing_changed_is_all_zeros() -> None:
    state = base()
    delta = delta_of(state, state.numpy())
    assert not delta.arrays[0].any()


def test_exact_counts_every_lattice_step() -> None:
    state = base()
    local = state.numpy()
    local["w"][0] += 3 * 2.0**-22
    delta = delta_of(state, local, exact=True)
    assert delta.exponents == (0, 0, 0)
    assert delta.arrays[0][:2].tolist() == [3, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_before_any_cast(bad: float) -> None:
    assert reason_of(np.array([0, bad], np.float32)) == "not-finite"


def test_a_change_out_of_range_is_refused_before_any_cast() -> None:
    edge = 2.0 ** (28 - 22)
    assert reason_of(np.array([edge], np.float32)) == "out-of-range"
    assert reason_of(np.array([-1e38], np.float32), k=8) == "out-of-range"
    assert delta_integers(np.array([-edge * 0.99999], np.float32), np.zeros(1, np.int32), 22, 0)[0] > -(2**28)


@pytest.mark.parametrize(("sigma", "k"), [(0.0, 0), (1.0, 0), (16.0, 0), (32.0, 1), (4096.0, 8), (math.inf, 0), (math.nan, 0)])
def test_an_exponent_is_fitted_to_the_spread(sigma: float, k: int) -> None:
    assert fit_exponent(sigma) == k


def test_every_codec_decodes_to_integers_of_the_lattice() -> None:
    state = base()
    layout = Layout.of(state.schema)
    delta = delta_of(state, trained(state), exact=True)
    change = trained(state)["w"] - state.numpy()["w"]
    floats = list(encode_floats([change, *delta.arrays[1:]], layout))
    planes = list(encode_integers(delta.arrays, layout))
    exact = [values for _, values in decode_update(EXACT, (0, 0, 0), planes, state.schema)]
    foreign = [values for _, values in decode_update(FLOAT32, (0, 0, 0), floats, state.schema)]
    assert all(np.array_equal(left, right) for left, right in zip(exact, foreign, strict=True))


@pytest.mark.parametrize(
    ("codec", "exponents"),
    [
        ("pickle", (0, 0, 0)),
        (GRID, (0, 0)),
        (GRID, (-1, 0, 0)),
        (GRID, (29, 0, 0)),
        (GRID, (3, 1, 0)),
        (EXACT, (1, 0, 0)),
        (FLOAT32, (1, 0, 0)),
    ],
)
def test_exponents_that_the_codec_has_no_place_for_are_refused(codec: str, exponents: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRecord) as caught:
        check_exponents(codec, exponents, base().schema)
    assert caught.value.reason == "codec"


@pytest.mark.parametrize(("tensor", "value", "k"), [(0, 1 << 20, 8), (0, -(2**31), 0), (2, 1 << 53, 0)])
def test_integers_that_ask_for_too_much_are_refused(tensor: int, value: int, k: int) -> None:
    state = base()
    arrays = [np.zeros_like(array) for array in state.parameters]
    arrays[tensor][0] = value
    chunks = list(encode_integers(arrays, Layout.of(state.schema)))
    with pytest.raises(InvalidRecord) as caught:
        list(decode_update(GRID, (k, 0, 0), chunks, state.schema))
    assert caught.value.reason == "out-of-range"


def test_a_counter_beyond_its_dtype_is_refused() -> None:
    state = initial_state({"flag": np.array([True])})
    chunks = list(encode_integers([np.array([2])], Layout.of(state.schema)))
    with pytest.raises(InvalidRecord) as caught:
        list(decode_update(EXACT, (0,), chunks, state.schema))
    assert caught.value.reason == "out-of-range"
