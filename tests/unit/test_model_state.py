import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from refold.schemas.errors import IntegrityError, InvalidRecord, UsageError
from refold.schemas.model import ModelSchema, TensorSchema
from refold.state.lattice import choose_exponent, from_lattice, limits, to_lattice
from refold.state.model_state import initial_state
from refold.state.tensors import schema_of, to_numpy


class Tensor:
    """What torch's tensors have of what we use."""

    def __init__(self, array: np.ndarray, dtype: str) -> None:
        self.array, self.dtype = array, dtype

    def detach(self) -> "Tensor":
        return self

    def cpu(self) -> "Tensor":
        return self

    def numpy(self) -> np.ndarray:
        if self.dtype == "torch.complex32":
            raise TypeError("Got unsupported ScalarType ComplexHalf")
        return self.array


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [(0.0, 22), (1e-9, 22), (0.9, 22), (7.9, 22), (8.0, 21), (1.0e6, 5), (1e38, -100), (3.4e38, -100)],
)
def test_an_exponent_leaves_headroom(largest: float, exponent: int) -> None:
    assert choose_exponent(largest) == exponent
    assert largest * 2.0**exponent < (2**25 if exponent > -100 else 2**31)


def test_values_are_rounded_to_the_nearest_and_exported_to_the_nearest_float() -> None:
    integers = np.array([2**31 - 1, -(2**31) + 1, 16_777_217, 0, -3], np.int32)
    assert from_lattice(integers, 22).tolist() == [np.float32(int(i) / 2**22) for i in integers]
    assert to_lattice(np.array([1.5, 2.5, -0.5, -0.0], np.float32), 0).tolist() == [2, 2, 0, 0]


def test_a_value_that_is_too_large_for_the_lattice_is_refused() -> None:
    for bad in (1e6, np.nan, np.inf):
        with pytest.raises(OverflowError):
            to_lattice(np.array([bad], np.float32), 22)


def test_the_limits_keep_every_value_finite() -> None:
    tensor = schema_of({"w": np.array([3e38], np.float32)}).tensors[0]
    high = limits(tensor)[1]
    assert np.isfinite(from_lattice(np.array([high], np.int64), tensor.exponent))


def test_denormals_zeros_and_huge_values_survive_the_lattice() -> None:
    state = {"tiny": [1e-45, -1e-40, 0.0, -0.0], "huge": [1e38, -1e38], "zero": [0.0, 0.0], "none": []}
    held = initial_state({name: np.array(values, np.float32) for name, values in state.items()}).numpy()
    assert held["tiny"].tolist() == [0, 0, 0, 0]
    assert held["huge"] == pytest.approx([1e38, -1e38], rel=1e-6)
    assert held["zero"].tolist() == [0, 0]
    assert held["none"].shape == (0,)


def test_a_state_keeps_its_names_dtypes_shapes_and_order() -> None:
    tensors: dict[str, Any] = {
        "w": np.ones((2, 3), np.float32),
        "steps": np.array(7, np.int64),
        "mask": np.array([True, False]),
        "u": np.array([[255]], np.uint8),
    }
    held = initial_state(tensors).numpy()
    assert list(held) == list(tensors)
    for name, array in tensors.items():
        assert (held[name].dtype, held[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(held[name], array)


def test_integer_tensors_take_the_maximum_unless_told_otherwise() -> None:
    state = {"w": np.ones(1, np.float32), "n": np.array(1), "c": np.array(1)}
    assert [tensor.rule for tensor in schema_of(state, {"c": "sum"}).tensors] == ["mean", "max", "sum"]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (np.ones(2), "float64"),
        (np.ones(2, np.complex64), "complex64"),
        (np.array([object()]), "object"),
        (np.array(["x"]), "str"),
        (np.ones(2, np.uint32), "uint32"),
        (Tensor(np.ones(1), "torch.complex32"), "complex32"),
        ([1.0], "list"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(value: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        to_numpy({"fine": np.ones(1, np.float32), "odd": value})
    assert "'odd'" in str(caught.value)
    assert caught.value.hint


def test_a_state_that_cannot_be_a_model_is_refused() -> None:
    ones = np.ones(2, np.float32)
    with pytest.raises(UsageError, match="not finite"):
        schema_of({"w": np.array([1, np.nan], np.float32)})
    with pytest.raises(UsageError, match="rule"):
        schema_of({"w": ones}, {"w": "max"})
    with pytest.raises(UsageError, match="lacks: v"):
        schema_of({"w": ones}, {"v": "max"})
    with pytest.raises(UsageError, match="cannot be a model"):
        schema_of({})


def test_a_model_without_any_element_is_refused_and_an_empty_tensor_beside_others_is_not() -> None:
    empty = np.zeros((0, 3), np.float32)
    with pytest.raises(UsageError, match="no parameters"):
        initial_state({"w": empty, "v": empty})
    assert initial_state({"w": empty, "v": np.ones(2, np.float32)}).schema.size == 2


def test_tensors_that_are_not_the_models_are_refused() -> None:
    schema = schema_of({"w": np.ones(2, np.float32)})
    with pytest.raises(UsageError, match="lacking"):
        to_numpy({"v": np.ones(2, np.float32)}, schema)
    with pytest.raises(UsageError, match=r"float32 \(3,\)"):
        to_numpy({"w": np.ones(3, np.float32)}, schema)


def test_a_tensor_of_a_framework_is_taken_as_its_array() -> None:
    held = to_numpy({"w": Tensor(np.ones((2, 2), np.float32), "torch.float32")})
    assert held["w"].shape == (2, 2)


def test_a_copy_shares_nothing() -> None:
    state = initial_state({"w": np.ones(2, np.float32)})
    other = state.copy()
    other.parameters[0][0] = 0
    assert state.numpy()["w"].tolist() == [1, 1]


def test_an_integer_beyond_its_dtype_is_not_exported() -> None:
    state = initial_state({"n": np.array([1], np.int8)})
    state.parameters[0][0] = 200
    with pytest.raises(IntegrityError, match="int8"):
        state.numpy()


def test_a_safetensors_file_holds_the_state_and_replaces_the_old_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    state = initial_state({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(4)})
    state.safetensors(path)
    held = safetensors.numpy.load_file(path)
    assert np.array_equal(held["w"], state.numpy()["w"])
    assert held["n"].item() == 4
    assert [found.name for found in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_floats_of_16_bits_are_rounded_once_from_what_the_lattice_holds(dtype: str, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = [sign * (1 << k) + add for k in range(12, 31) for sign in (1, -1) for add in (-1, 0, 1)]
    halfway = [(1 << k) + (1 << (k - bits)) + add for k in range(12, 30) for add in (-1, 0, 1)]
    integers = np.array([*edges, *halfway, *rng.integers(-(2**31) + 1, 2**31, 2000)], np.int32)
    for integer, value in zip(integers.tolist(), from_lattice(integers, 22, dtype).tolist(), strict=True):
        drop = max(0, abs(integer).bit_length() - bits)
        kept, left = divmod(abs(integer), 1 << drop)
        kept += 2 * left > 1 << drop or (2 * left == 1 << drop and kept % 2 == 1)
        assert value == math.copysign((kept << drop) / 2**22, integer), integer


def test_floats_of_16_bits_keep_their_dtype_and_stay_finite() -> None:
    state = initial_state({"w": np.array([1.5, -65504, 6e-8], np.float16)})
    assert state.numpy()["w"].dtype == np.float16
    assert state.numpy()["w"].tolist()[:2] == [1.5, -65504]
    low, high = limits(state.schema.tensors[0])
    assert np.isfinite(from_lattice(np.array([low, high]), state.schema.tensors[0].exponent, "float16")).all()


@pytest.mark.parametrize("rule", ["frozen", "private"])
def test_what_no_round_changes_is_kept_bit_by_bit(rule: str, tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        "a.w": np.array([1e-30, np.inf, -0.0, 3.3333333], np.float32),
        "a.h": np.array([6e-8, np.nan], np.float16),
        "a.n": np.array([-(2**63), 2**63 - 1]),
        "b.w": np.ones(3, np.float32),
    }
    state = initial_state(tensors, {"a.*": rule})
    assert [tensor.rule for tensor in state.schema.tensors] == [rule, rule, rule, "mean"]
    assert {name: array.tobytes() for name, array in state.numpy().items()} == {n: a.tobytes() for n, a in tensors.items()}
    state.safetensors(tmp_path / "it.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "it.safetensors")["a.w"].tobytes() == tensors["a.w"].tobytes()


def test_a_name_counts_before_patterns_and_a_pattern_that_fits_nothing_is_refused() -> None:
    state = {name: np.ones(1, np.float32) for name in ("a.x", "a.y", "b.x")}
    rules = {"a.*": "frozen", "*.x": "private", "a.x": "mean"}
    assert [tensor.rule for tensor in schema_of(state, rules).tensors] == ["mean", "frozen", "private"]
    with pytest.raises(UsageError, match=r"lacks: c\.\*"):
        schema_of(state, {"c.*": "frozen"})


@pytest.mark.torch
def test_torch_gets_tensors_that_a_module_can_load() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = initial_state(module.state_dict())
    module.load_state_dict(state.torch())
    assert state.schema.tensors[-1].rule == "max"


@pytest.mark.torch
def test_tied_tensors_of_16_bits_come_back_tied_and_are_kept_once() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5, bias=False)}).bfloat16()
    module["head"].weight = module["embed"].weight
    state = initial_state(module.state_dict())
    assert [(t.dtype, t.rule, t.size) for t in state.schema.tensors] == [("bfloat16", "mean", 20), ("bfloat16", "tied:0", 0)]
    assert state.schema.size == 20
    held = state.torch()
    assert held["head.weight"] is held["embed.weight"]
    assert held["head.weight"].dtype == torch.bfloat16
    assert torch.equal(held["embed.weight"], module["embed"].weight)
    arrays = state.numpy()
    assert arrays["head.weight"] is arrays["embed.weight"]
    module.load_state_dict(held)
    with torch.no_grad():
        other = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        other["head.weight"] += 1
    with pytest.raises(UsageError, match=r"'head.weight' is 'embed.weight' under another name, and differs"):
        to_numpy(other, state.schema)
    with pytest.raises(UsageError, match="give the rule to that one"):
        schema_of(module.state_dict(), {"head.weight": "frozen"})


@pytest.mark.parametrize(
    ("place", "rule"), [(1, "tied:1"), (1, "tied:2"), (2, "tied:1"), (0, "tied:2"), (1, "tied:00"), (1, "tied:"), (1, "odd")]
)
def test_a_tie_to_itself_to_a_later_to_a_tied_or_to_no_tensor_is_refused(place: int, rule: str) -> None:
    rules = ["mean", "tied:0", "mean"]
    rules[place] = rule
    with pytest.raises(InvalidRecord):
        ModelSchema(tuple(TensorSchema(f"t{n}", "float32", (2,), 0, said) for n, said in enumerate(rules)))
