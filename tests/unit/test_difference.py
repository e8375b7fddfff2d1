"""What differs between two states: where, how many values, how much."""

import math

import numpy as np
import pytest

from refold.schemas.errors import UsageError
from refold.schemas.layout import BLOCK
from refold.state.difference import TensorDifference, differences, differences_to
from refold.state.model_state import ModelState, initial_state

STATE = {
    "w": np.ones((3, BLOCK), np.float32),
    "b": np.zeros(4, np.float32),
    "n": np.array(5, np.int64),
    "e": np.zeros((0, 2), "f4"),
}


def states() -> tuple[ModelState, ModelState]:
    left = initial_state(STATE)
    return left, left.copy()


def named(found: list[TensorDifference]) -> dict[str, TensorDifference]:
    return {one.name: one for one in found}


def test_equal_states_differ_in_nothing() -> None:
    found = differences(*states())
    assert [one.name for one in found] == list(STATE)
    assert not any(one.differs for one in found)
    assert named(found)["w"].left_norm == math.sqrt(3 * BLOCK)


def test_one_value_is_found_in_its_block() -> None:
    left, right = states()
    exponent = left.schema.tensors[0].exponent
    right.parameters[0][BLOCK + 7] += 3
    found = named(differences(left, right))["w"]
    step = 3 * 2.0**-exponent
    assert (found.changed_blocks, found.blocks, found.changed, found.first) == (1, 3, 1, BLOCK + 7)
    assert (found.max_abs, found.norm, found.mean_abs) == (step, step, step / (3 * BLOCK))
    assert left.tree().differences(right.tree()) == [("w", 1)]


def test_counts_and_sizes_are_those_of_numpy(rng: np.random.Generator) -> None:
    left, right = states()
    noise = rng.integers(-1, 2, left.parameters[0].size)
    right.parameters[0] += noise.astype(np.int32)
    found = named(differences(left, right))["w"]
    apart = np.abs(noise) * 2.0 ** -left.schema.tensors[0].exponent
    assert found.changed == np.count_nonzero(noise)
    assert found.norm == pytest.approx(np.linalg.norm(apart), rel=1e-12)
    assert found.mean_abs == pytest.approx(apart.mean(), rel=1e-12)
    assert found.relative == pytest.approx(found.norm / math.sqrt(3 * BLOCK))


def test_a_change_of_a_zero_tensor_is_infinitely_large_beside_it() -> None:
    left, right = states()
    right.parameters[1][0] = 1
    assert named(differences(left, right))["b"].relative == math.inf


def test_integer_tensors_compare_as_they_are() -> None:
    left, right = states()
    right.parameters[2][0] = 7
    found = named(differences(left, right))["n"]
    assert (found.changed, found.max_abs) == (1, 2.0)


def test_slots_are_compared_by_value_whatever_their_exponents() -> None:
    left, right = states()
    sizes = [tensor.size if tensor.is_float else 0 for tensor in left.schema.tensors]
    left.slots["m"] = [np.full(size, 2, np.int32) for size in sizes]
    right.slots["m"] = [np.full(size, 4, np.int32) for size in sizes]
    left.slot_exponents["m"], right.slot_exponents["m"] = (3,) * 4, (4,) * 4
    assert not any(one.differs for one in differences(left, right))
    right.slots["m"][0][1] = 6
    assert named(differences(left, right))["m/w"].changed == 1


def test_a_slot_that_only_one_has_is_named() -> None:
    left, right = states()
    right.slots["m"] = [np.zeros(0, np.int32)] * 4
    right.slot_exponents["m"] = (0,) * 4
    found = named(differences(left, right))
    assert found["m/b"].why == "only right"
    assert found["m/b"].differs


def test_arrays_of_a_file_are_compared_in_their_own_dtypes() -> None:
    left, _ = states()
    arrays = left.numpy()
    assert not any(one.differs for one in differences_to(left, arrays))
    arrays["b"] = arrays["b"].astype(np.float64)
    arrays["w"] = arrays["w"][:2]
    arrays["more"] = np.zeros(1)
    del arrays["n"]
    assert {one.name: one.why for one in differences_to(left, arrays) if one.differs} == {
        "b": "dtype float32 and float64",
        "w": f"shape (3, {BLOCK}) and (2, {BLOCK})",
        "more": "only right",
        "n": "only left",
    }


def test_a_value_that_is_not_a_number_differs_from_every_number() -> None:
    left, _ = states()
    arrays = left.numpy()
    arrays["b"] = np.array([0, np.nan, 0, 0], np.float32)
    found = named(differences_to(left, arrays))["b"]
    assert (found.changed, found.first) == (1, 1)
    assert math.isnan(found.norm)


def test_an_array_of_words_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no numbers"):
        differences_to(states()[0], {"w": np.array(["a"])})
