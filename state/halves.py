"""Floats of 16 bits, and floats as their bits: what frozen and private tensors are kept as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.layout import Integers

HALVES = ("float16", "bfloat16")
"""Floats of 16 bits. NumPy has no bfloat16: its values are kept as float32 there, which holds each exactly."""

_DROPPED = 52 - 7
"""Bits of a float64's fraction that a bfloat16 has no room for."""


@dataclass(frozen=True, slots=True)
class Bfloat16:
    """An array of bfloat16 for who has no torch.

    Parameters
    ----------
    values
        float32, each of which a bfloat16 holds.
    """

    values: npt.NDArray[np.float32]

    @property
    def dtype(self) -> str:
        """The dtype's name."""
        return "bfloat16"

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.values.shape

    @classmethod
    def from_bytes(cls, data: bytes | bytearray, shape: Sequence[int]) -> Bfloat16:
        """Return the array that little-endian bytes are."""
        bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
        return cls(bits.view(np.float32).reshape(tuple(shape)))


def rounded(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    """Return finite float64 values rounded once to a float dtype, ties to even. Those of bfloat16 come as float32.

    A value between 2^-126 and 0 is rounded as if bfloat16 had no least exponent; no lattice has one.
    """
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.view(np.uint64)
    half = np.uint64((1 << (_DROPPED - 1)) - 1) + ((bits >> np.uint64(_DROPPED)) & np.uint64(1))
    kept = (bits + half) >> np.uint64(_DROPPED) << np.uint64(_DROPPED)
    return kept.view(np.float64).astype(np.float32)


def to_bits(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.int32]:
    """Return floats of a dtype, flat, as the integers that their bits are; bfloat16 is given as float32."""
    if dtype == "float32":
        return values.astype(np.float32, copy=False).view(np.int32).copy()
    if dtype == "float16":
        return values.astype(np.float16, copy=False).view(np.int16).astype(np.int32)
    return (values.astype(np.float32, copy=False).view(np.int32) >> 16).astype(np.int32)


def from_bits(bits: Integers, dtype: str) -> npt.NDArray[Any]:
    """Return what `to_bits` was given."""
    if dtype == "float32":
        return bits.astype(np.int32).view(np.float32)
    if dtype == "float16":
        return bits.astype(np.int16).view(np.float16)
    return (bits.astype(np.int32) << 16).view(np.float32)
