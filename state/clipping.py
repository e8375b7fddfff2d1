"""Clipping a change to a length and adding noise: the Gaussian mechanism. Pure; whoever calls it brings the random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.model import ModelSchema
from refold.state.lattice import from_lattice
from refold.state.model_state import ModelState
from refold.state.tensors import Arrays, to_numpy

Normal = Callable[[int], npt.NDArray[np.float64]]
"""Gives so many independent standard normal numbers."""

BLOCK = 1 << 16
LEAST_STEPS = 64
"""The noise's deviation in lattice steps: with a coarser lattice, rounding would leave too little of it."""

SHORTER = 1 - 2.0**-40
"""What a clipped change is shortened by on top, so that rounding never leaves it longer than it may be."""


def length_of(base: ModelState, local: Mapping[str, Any]) -> float:
    """Return the Euclidean length of the change of all float tensors together.

    Raises
    ------
    UsageError
        The tensors are not the model's.
    InvalidRecord
        ``not-finite``.
    """
    total = 0.0
    arrays = to_numpy(local, base.schema)
    for index, tensor in enumerate(base.schema.tensors):
        if tensor.is_float:
            for part in _parts(tensor.size):
                change = _change(base, index, arrays[tensor.name], part)
                total += float(np.dot(change, change))
    if not math.isfinite(total):
        raise InvalidRecord("not-finite", "the change holds values that are not finite")
    return math.sqrt(total)


def clipped_and_noised(base: ModelState, local: Mapping[str, Any], *, clip_norm: float, sigma: float, normal: Normal) -> Arrays:
    """Return a trained ``state_dict`` whose change is clipped to a length, with noise of deviation `sigma` on every parameter.

    What is made of it afterwards (the grid, the largest entries, error feedback) is post-processing and costs no privacy.
    Integer tensors are returned as they are.

    Parameters
    ----------
    clip_norm
        The most Euclidean length that the change of all float tensors together keeps.

    Raises
    ------
    UsageError
        The tensors are not the model's, or the noise is too small for a tensor's lattice.
    InvalidRecord
        ``not-finite``.
    """
    require_room(base.schema, sigma)
    length = length_of(base, local)
    scale = 1.0 if length <= clip_norm else clip_norm / length * SHORTER
    arrays = to_numpy(local, base.schema)
    for index, tensor in enumerate(base.schema.tensors):
        if tensor.is_float:
            arrays[tensor.name] = _noised(base, index, arrays[tensor.name], scale, sigma, normal)
    return arrays


def _noised(
    base: ModelState, index: int, values: npt.NDArray[Any], scale: float, sigma: float, normal: Normal
) -> npt.NDArray[np.float32]:
    tensor = base.schema.tensors[index]
    found = np.empty(tensor.size, np.float32)
    for part in _parts(tensor.size):
        change = _change(base, index, values, part)
        held = from_lattice(base.parameters[index][part], tensor.exponent, tensor.dtype)
        found[part] = held + (change * scale + normal(len(change)) * sigma)
    return found.reshape(tensor.shape)


def _change(base: ModelState, index: int, values: npt.NDArray[Any], part: slice) -> npt.NDArray[np.float64]:
    tensor = base.schema.tensors[index]
    held = from_lattice(base.parameters[index][part], tensor.exponent, tensor.dtype)
    change: npt.NDArray[np.float64] = np.subtract(values.reshape(-1)[part], held, dtype=np.float64)
    return change


def require_room(schema: ModelSchema, sigma: float) -> None:
    """Refuse noise that the lattice of a tensor is too coarse for.

    Raises
    ------
    UsageError
        Names the tensor.
    """
    for tensor in schema.tensors:
        if tensor.is_float and tensor.size and sigma * 2.0**tensor.exponent < LEAST_STEPS:
            raise UsageError(
                f"noise of deviation {sigma:.3g} is less than {LEAST_STEPS} lattice steps of tensor {tensor.name!r}",
                hint="a larger clip_norm or noise_multiplier; smaller noise would be rounded away",
                tensor=tensor.name,
            )


def _parts(size: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, size, BLOCK)]
