"""The lattice: a float tensor as int32 integers in units of 2^-E, one exponent E for each tensor.

Integer sums do not depend on order, so whatever is added to a lattice can be replayed, merged, split and undone exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.layout import Integers
from refold.schemas.model import TensorSchema
from refold.state.halves import HALVES, rounded

Floats = npt.NDArray[np.float32]

HEADROOM_BITS = 6
"""A tensor may grow 2^6-fold from the magnitude that its exponent was chosen for."""

MAX_PARAMETER_EXPONENT = 22
MAX_SLOT_EXPONENT = 40
MIN_EXPONENT = -100

INT32_MAX = 2**31 - 1
_LARGEST = {
    "float32": float(np.finfo(np.float32).max),
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
}


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


def from_lattice(integers: Integers, exponent: int, dtype: str = "float32") -> npt.NDArray[Any]:
    """Return the float of this dtype nearest to ``integer · 2^-exponent``; a bfloat16 as the float32 that equals it.

    Converting to float32 rounds once, correctly; the scaling after it is by a power of two and exact, since no exponent reaches
    denormals. The others are rounded once too, from the float64 that the value is exactly.
    """
    if dtype != "float32":
        return rounded(np.multiply(integers.astype(np.float64), 2.0**-exponent), dtype)
    return np.multiply(integers.astype(np.float32), np.float32(2.0**-exponent))


def limits(tensor: TensorSchema) -> tuple[int, int]:
    """Return the lowest and highest integer that the tensor may hold, so that its value exists in its dtype.

    For floats that no round changes, the integers are their bits.
    """
    if tensor.is_float:
        high = min(INT32_MAX, int(math.ldexp(_LARGEST[tensor.dtype], tensor.exponent)))
        return -high, high
    if tensor.width == 32:  # The bits of a float.
        return (-(1 << 15), (1 << 15) - 1) if tensor.dtype in HALVES else (-(1 << 31), INT32_MAX)
    if tensor.dtype == "bool":
        return 0, 1
    info = np.iinfo(tensor.dtype)
    return int(info.min), int(info.max)
