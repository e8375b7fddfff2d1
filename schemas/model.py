"""What a model looks like on the lattice: tensors, dtypes, shapes, exponents, rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import blake3

from refold.schemas.canonical import Name, Small, Uint, Within, encode, record
from refold.schemas.errors import InvalidRecord

FLOAT_DTYPES = ("float32",)
INTEGER_DTYPES = ("int8", "uint8", "int16", "int32", "int64", "bool")
RULES = ("mean", "max", "sum", "last")
MAX_PARAMETERS = 1 << 40
MAX_TENSORS = 1 << 13


@record(1)
@dataclass(frozen=True, slots=True)
class TensorSchema:
    """One tensor of a model.

    Parameters
    ----------
    dtype
        One of `FLOAT_DTYPES` (on the lattice, value = integer · 2^-exponent) or `INTEGER_DTYPES` (kept as it is, exponent 0).
    rule
        How a round combines it: ``mean`` for floats; ``max``, ``sum`` (of the changes) or ``last`` (by log index) for integers.
    """

    name: Name
    dtype: Annotated[str, Within(1, 16)]
    shape: Annotated[tuple[Uint, ...], Within(0, 16)]
    exponent: Small
    rule: Annotated[str, Within(1, 8)]

    def __post_init__(self) -> None:
        if self.is_float:
            sound = self.rule == "mean" and -100 <= self.exponent <= 40
        else:
            sound = self.dtype in INTEGER_DTYPES and self.rule in RULES[1:] and self.exponent == 0
        # Without its zeros too: NumPy makes no array of shape (0, 2^62, 2^62), empty as it is.
        if not sound or math.prod(filter(None, self.shape)) > MAX_PARAMETERS:
            raise InvalidRecord("schema", f"tensor {self.name!r}: {self.dtype}, {self.shape}, rule {self.rule}")

    @property
    def is_float(self) -> bool:
        """Whether the tensor lives on the lattice."""
        return self.dtype in FLOAT_DTYPES

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@record(2)
@dataclass(frozen=True)
class ModelSchema:
    """The tensors of a model, in the order of its ``state_dict``."""

    tensors: tuple[TensorSchema, ...]

    def __post_init__(self) -> None:
        names = {tensor.name for tensor in self.tensors}
        if len(names) != len(self.tensors) or not self.tensors or len(names) > MAX_TENSORS or self.size > MAX_PARAMETERS:
            raise InvalidRecord("schema", f"{len(self.tensors)} tensors, {len(names)} names, {self.size} parameters")

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3 of the canonical bytes, 32 bytes."""
        return blake3.blake3(encode(self), derive_key_context="refold 2026 model schema").digest()

    @cached_property
    def positions(self) -> dict[str, int]:
        """Index of each tensor by name."""
        return {tensor.name: index for index, tensor in enumerate(self.tensors)}
