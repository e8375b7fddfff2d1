"""What differs between two states, tensor by tensor: digests say where, the integers say how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.errors import UsageError
from refold.schemas.layout import Integers, block_length
from refold.schemas.model import TensorSchema
from refold.state.halves import from_bits
from refold.state.model_state import ModelState

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How one tensor differs. Of slots the name is ``slot/tensor``.

    Parameters
    ----------
    why
        Why values cannot be compared (``only left``, ``only right``, ``shape``, ``dtype``); "" where they were.
    blocks, changed_blocks
        Blocks of the digest tree, and how many of them differ.
    size, changed
        Elements, and how many of them differ.
    first
        The first element that differs, in the flattened tensor; −1 if none does.
    max_abs, mean_abs
        Largest and mean absolute difference, the mean over all elements.
    norm, left_norm
        Euclidean length of the difference, and of the left tensor.
    """

    name: str
    why: str = ""
    blocks: int = 0
    changed_blocks: int = 0
    size: int = 0
    changed: int = 0
    first: int = -1
    max_abs: float = 0.0
    mean_abs: float = 0.0
    norm: float = 0.0
    left_norm: float = 0.0

    @property
    def differs(self) -> bool:
        """Whether there is any difference."""
        return bool(self.why or self.changed_blocks)

    @property
    def relative(self) -> float:
        """Length of the difference over that of the left tensor; infinite where that is zero."""
        if self.norm == 0:
            return 0.0
        return self.norm / self.left_norm if self.left_norm else math.inf


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A flat tensor whose values can be had piece by piece."""

    dtype: str
    shape: tuple[int, ...]
    flat: npt.NDArray[Any]
    values: Callable[[npt.NDArray[Any]], Values]


def differences(left: ModelState, right: ModelState) -> list[TensorDifference]:
    """Compare two states: parameters, then optimizer slots; values are ``integer · 2^-exponent``, exactly."""
    return _compare_all(_tensors(left), _tensors(right))


def differences_to(left: ModelState, arrays: Mapping[str, npt.NDArray[Any]]) -> list[TensorDifference]:
    """Compare a state's parameters with arrays in their own dtypes, such as a file holds.

    Raises
    ------
    UsageError
        An array holds something other than numbers.
    """
    mine = {name: _of_array(name, array) for name, array in left.numpy().items()}
    return _compare_all(mine, {name: _of_array(name, array) for name, array in arrays.items()})


def _tensors(state: ModelState) -> dict[str, _Tensor]:
    found = {
        tensor.name: _of_tensor(tensor, integers)
        for tensor, integers in zip(state.schema.tensors, state.parameters, strict=True)
        if tensor.tied_to is None
    }
    for slot, arrays in state.slots.items():
        for tensor, integers, exponent in zip(state.schema.tensors, arrays, state.slot_exponents[slot], strict=True):
            if tensor.is_float:
                found[f"{slot}/{tensor.name}"] = _of_integers("int32", tensor.shape, integers, exponent)
    return found


def _of_tensor(tensor: TensorSchema, integers: Integers) -> _Tensor:
    if tensor.width == 32 and not tensor.is_float:
        return _Tensor(tensor.dtype, tensor.shape, integers, lambda part: from_bits(part, tensor.dtype).astype(np.float64))
    return _of_integers(tensor.dtype, tensor.shape, integers, tensor.exponent)


def _of_integers(dtype: str, shape: tuple[int, ...], integers: Integers, exponent: int) -> _Tensor:
    return _Tensor(dtype, shape, integers, lambda part: np.ldexp(part.astype(np.float64), -exponent))


def _of_array(name: str, array: npt.NDArray[Any]) -> _Tensor:
    if array.dtype.kind not in "biuf":
        raise UsageError(f"tensor {name!r} holds no numbers", dtype=array.dtype)
    return _Tensor(str(array.dtype), array.shape, array.reshape(-1), lambda part: part.astype(np.float64))


def _compare_all(left: Mapping[str, _Tensor], right: Mapping[str, _Tensor]) -> list[TensorDifference]:
    return [_compare(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]


def _compare(name: str, left: _Tensor | None, right: _Tensor | None) -> TensorDifference:
    if left is None or right is None:
        return TensorDifference(name, "only right" if left is None else "only left")
    if left.shape != right.shape or left.dtype != right.dtype:
        why = f"shape {left.shape} and {right.shape}" if left.shape != right.shape else f"dtype {left.dtype} and {right.dtype}"
        return TensorDifference(name, why)
    return _measure(name, left, right)


def _measure(name: str, left: _Tensor, right: _Tensor) -> TensorDifference:
    """Go through the blocks, so that memory does not grow with the tensor."""
    blocks = changed_blocks = changed = 0
    first, most, total, squares, left_squares = -1, 0.0, 0.0, 0.0, 0.0
    for start, part in _blocks(left.flat):
        ours = left.values(left.flat[part])
        theirs = right.values(right.flat[part])
        blocks += 1
        left_squares += float(np.dot(ours, ours))
        unequal = (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))
        if not unequal.any():
            continue
        apart = np.abs(ours - theirs)
        changed_blocks += 1
        changed += int(unequal.sum())
        first = start + int(np.argmax(unequal)) if first < 0 else first
        most, total, squares = max(most, float(apart.max())), total + float(apart.sum()), squares + float(np.dot(apart, apart))
    size = left.flat.size
    mean = total / size if size else 0.0
    return TensorDifference(
        name, "", blocks, changed_blocks, size, changed, first, most, mean, math.sqrt(squares), math.sqrt(left_squares)
    )


def _blocks(flat: npt.NDArray[Any]) -> Iterator[tuple[int, slice]]:
    """Yield start and slice of each block, cut as the digest tree cuts it."""
    length = block_length(64 if flat.dtype.itemsize == 8 else 32)
    for start in range(0, flat.size, length):
        yield start, slice(start, start + length)
