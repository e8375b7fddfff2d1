import numpy as np

from refold.schemas.digests import DigestTree, digest, leaf_digest
from refold.schemas.layout import BLOCK
from refold.state.model_state import ModelState, initial_state


def state(**changes: float) -> ModelState:
    rng = np.random.default_rng(3)
    tensors = {"a": rng.normal(size=2 * BLOCK + 9), "b": rng.normal(size=(3, 4)), "n": np.array(5)}
    tensors = {name: array.astype(np.int64 if name == "n" else np.float32) for name, array in tensors.items()}
    made = initial_state(tensors)
    made.slots = {"m": [np.arange(2 * BLOCK + 9, dtype=np.int32), np.zeros(12, np.int32), np.zeros(0, np.int32)]}
    made.slot_exponents = {"m": (30, 31, 0)}
    return made


def test_equal_bytes_in_two_domains_have_two_digests() -> None:
    assert digest(b"x", "refold 2026 one") != digest(b"x", "refold 2026 two")


def test_a_leaf_is_hashed_as_little_endian() -> None:
    values = np.array([1, -2, 3], np.int32)
    assert leaf_digest(values) == leaf_digest(values.astype(">i4")) == leaf_digest(values[::-1][::-1])


def test_the_digest_does_not_depend_on_threads() -> None:
    held = state()
    assert held.tree(threads=1) == held.tree(threads=2) == held.tree(threads=4)


def test_a_difference_is_located_to_tensor_and_block() -> None:
    held, other = state(), state()
    other.parameters[0][BLOCK + 1] += 1
    other.slots["m"][1][3] = 9
    assert held.tree().differences(other.tree()) == [("a", 1), ("m/b", 0)]
    assert held.tree().differences(state().tree()) == []
    assert held.digest != other.digest


def test_a_tensor_that_one_side_lacks_is_named() -> None:
    tree = state().tree()
    assert tree.differences(DigestTree(tree.parameters[1:], tree.slots)) == [("a", None)]


def test_the_parameters_digest_ignores_slots_and_the_state_digest_does_not() -> None:
    held, other = state(), state()
    other.slots["m"][0][0] += 1
    assert held.parameters_digest == other.parameters_digest
    assert held.digest != other.digest


def test_the_exponent_is_part_of_the_digest() -> None:
    held, other = state(), state()
    other.slot_exponents = {"m": (29, 31, 0)}
    assert held.tree().differences(other.tree()) == [("m/a", None)]
    assert held.digest != other.digest


def test_the_digest_of_a_known_state_never_changes() -> None:
    made = initial_state({"w": np.array([[0.5, -0.25]], np.float32), "n": np.array(3, np.int64)})
    assert made.digest.hex() == GOLDEN


GOLDEN = "df9f74183731f7aa4126b858ac40a35abfed8e1bd1df49e521f359aa6509e421"
