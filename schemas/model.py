"""What a model looks like on the lattice: tensors, dtypes, shapes, exponents, rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import blake3

from refold.schemas.canonical import Name, Small, Uint, Within, encode, record
from refold.schemas.errors import InvalidRecord

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
INTEGER_DTYPES = ("int8", "uint8", "int16", "int32", "int64", "bool")
MEAN = "mean"
FROZEN, PRIVATE = "frozen", "private"
FIXED_RULES = (FROZEN, PRIVATE)
INTEGER_RULES = ("max", "sum", "last")
TIED = "tied:"
MAX_PARAMETERS = 1 << 40
MAX_TENSORS = 1 << 13


@record(1)
@dataclass(frozen=True, slots=True)
class TensorSchema:
    """One tensor of a model.

    Parameters
    ----------
    dtype
        One of `FLOAT_DTYPES` (on the lattice, value = integer · 2^-exponent, rounded to the dtype) or `INTEGER_DTYPES` (kept as
        it is, exponent 0).
    rule
        How a round combines it: ``mean`` for floats; ``max``, ``sum`` (of the changes) or ``last`` (by log index) for integers.
        ``frozen`` and ``private`` for either: no round changes it, and it is kept as its very bits (exponent 0); of a private
        one every client has its own, and this is what a new client begins with. ``tied:N``: it is tensor N, which comes
        before it, under another name.
    """

    name: Name
    dtype: Annotated[str, Within(1, 16)]
    shape: Annotated[tuple[Uint, ...], Within(0, 16)]
    exponent: Small
    rule: Annotated[str, Within(1, 16)]

    def __post_init__(self) -> None:
        if self.is_float:
            sound = -100 <= self.exponent <= 40
        elif self.is_fixed or self.tied_to is not None:
            sound = self.dtype in (*FLOAT_DTYPES, *INTEGER_DTYPES) and self.exponent == 0
        else:
            sound = self.dtype in INTEGER_DTYPES and self.rule in INTEGER_RULES and self.exponent == 0
        # Without its zeros too: NumPy makes no array of shape (0, 2^62, 2^62), empty as it is.
        if not sound or math.prod(filter(None, self.shape)) > MAX_PARAMETERS:
            raise InvalidRecord("schema", f"tensor {self.name!r}: {self.dtype}, {self.shape}, rule {self.rule}")

    @property
    def is_float(self) -> bool:
        """Whether the tensor lives on the lattice."""
        return self.dtype in FLOAT_DTYPES and self.rule == MEAN

    @property
    def is_fixed(self) -> bool:
        """Whether no round changes it: it is frozen or private."""
        return self.rule in FIXED_RULES

    @property
    def tied_to(self) -> int | None:
        """Position of the tensor that this is another name of; None where it has elements of its own."""
        digits = self.rule.removeprefix(TIED)
        is_tied = digits != self.rule and digits.isascii() and digits.isdigit() and str(int(digits)) == digits
        return int(digits) if is_tied else None

    @property
    def width(self) -> int:
        """Bits that an element takes as an integer: 32 for floats, 64 for integers, whatever their dtype."""
        return 32 if self.dtype in FLOAT_DTYPES else 64

    @property
    def size(self) -> int:
        """Number of elements of its own: none where it is tied."""
        return 0 if self.tied_to is not None else math.prod(self.shape)


@record(2)
@dataclass(frozen=True)
class ModelSchema:
    """The tensors of a model, in the order of its ``state_dict``."""

    tensors: tuple[TensorSchema, ...]

    def __post_init__(self) -> None:
        names = {tensor.name for tensor in self.tensors}
        if len(names) != len(self.tensors) or not self.tensors or len(names) > MAX_TENSORS or self.size > MAX_PARAMETERS:
            raise InvalidRecord("schema", f"{len(self.tensors)} tensors, {len(names)} names, {self.size} parameters")
        for place, tensor in enumerate(self.tensors):
            if tensor.tied_to is not None and not (tensor.tied_to < place and self._fits(tensor, tensor.tied_to)):
                raise InvalidRecord("schema", f"tensor {tensor.name!r} cannot be {tensor.rule}")

    def on(self, exponents: tuple[int, ...]) -> ModelSchema:
        """Return the schema with these exponents in place of its own; itself where none are given.

        Raises
        ------
        InvalidRecord
            They do not fit its tensors.
        """
        if not exponents:
            return self
        if len(exponents) != len(self.tensors):
            raise InvalidRecord("schema", f"{len(exponents)} exponents for {len(self.tensors)} tensors")
        return ModelSchema(tuple(replace(t, exponent=e) for t, e in zip(self.tensors, exponents, strict=True)))

    def _fits(self, tensor: TensorSchema, position: int) -> bool:
        """Whether a tensor can be the one at this position under another name."""
        other = self.tensors[position]
        return other.tied_to is None and (other.dtype, other.shape) == (tensor.dtype, tensor.shape)

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
