"""The lattice: a float tensor as int32 integers in units of 2^-E, one exponent E for each tensor.

Integer sums do not depend on order, so whatever is added to a lattice can be replayed, merged, split and undone exactly.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from refold.schemas.layout import Integers
from refold.schemas.model import TensorSchema

Floats = npt.NDArray[np.float32]

HEADROOM_BITS = 6
"""A tensor may grow 2^6-fold from the magnitude that its exponent was chosen for."""

MAX_PARAMETER_EXPONENT = 22
MAX_SLOT_EXPONENT = 40
MIN_EXPONENT = -100

INT32_MAX = 2**31 - 1
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def choose_exponent(max_abs: float, *, most: int = MAX_PARAMETER_EXPONENT) -> int:
    """Return the finest exponent that leaves `HEADROOM_BITS` above this magnitude, at most `most`."""
    if max_abs == 0:
        return most
    _, above = math.frexp(max_abs)
    return max(MIN_EXPONENT, min(most, 31 - HEADROOM_BITS - above))


def to_lattice(values: Floats, exponent: int) -> npt.NDArray[np.int32]:
    """Snap finite floats to the lattice, to the nearest, ties to even.

    Raises
    ------
    OverflowError
        A value is not finite or lies beyond the lattice.
    """
    scaled = np.rint(values.astype(np.float64) * 2.0**exponent)
    if not np.all(np.abs(scaled) <= INT32_MAX):
        raise OverflowError(f"values beyond 2^31 steps of 2^{-exponent}")
    return scaled.astype(np.int32)


def from_lattice(integers: Integers, exponent: int) -> Floats:
    """Return the float32 nearest to ``integer · 2^-exponent``.

    Converting rounds once, correctly; the scaling after it is by a power of two and exact, since no exponent reaches denormals.
    """
    return np.multiply(integers.astype(np.float32), np.float32(2.0**-exponent))


def limits(tensor: TensorSchema) -> tuple[int, int]:
    """Return the lowest and highest integer that the tensor may hold, so that its value exists in its dtype."""
    if tensor.is_float:
        high = min(INT32_MAX, int(math.ldexp(_FLOAT32_MAX, tensor.exponent)))
        return -high, high
    if tensor.dtype == "bool":
        return 0, 1
    info = np.iinfo(tensor.dtype)
    return int(info.min), int(info.max)
