"""What a client sends: how its tensors differ from the base round, in integers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.codec import decode_floats, decode_integers
from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.layout import Block, Integers, Layout
from refold.schemas.model import FROZEN, ModelSchema, TensorSchema
from refold.schemas.topk import decode_sparse
from refold.schemas.updates import CODECS
from refold.state.halves import to_bits
from refold.state.lattice import from_lattice, limits
from refold.state.model_state import ModelState
from refold.state.tensors import to_numpy

RANGE_BITS = 28
"""A delta lies within ±2^28 lattice steps, so that a weighted sum (weights to 2^24) stays below 2^53, exact in float64."""

MAX_FINER, MAX_COARSER = 2, 8
"""How far a client's exponent may lie below and above the plan's."""

GRID, EXACT, FLOAT32, TOPK = "grid", "exact", "float32", "topk"


@dataclass(frozen=True, slots=True)
class Delta:
    """A client's change: flat arrays for each tensor of the schema, and the exponent k of each.

    Float tensors are int32 in units of 2^k lattice steps; integer tensors are int64, the change where the rule is ``sum``, the
    value where it is ``max`` or ``last``. Tensors that no round changes are zeros.
    """

    arrays: list[Integers]
    exponents: tuple[int, ...]


def delta_of(
    base: ModelState, local: Mapping[str, Any], *, plan: Sequence[int] | None = None, divisor: int = 16, exact: bool = False
) -> Delta:
    """Return how a trained ``state_dict`` differs from the base round.

    Parameters
    ----------
    plan
        The plan's exponent for each tensor; each k stays within −2 … +8 of it. None lets the delta decide alone.
    divisor
        The grid's cell is near the delta's spread divided by this.
    exact
        Take k = 0 everywhere: every lattice step counts.

    Raises
    ------
    UsageError
        The tensors are not the model's, or a frozen one was changed.
    InvalidRecord
        ``not-finite`` or ``out-of-range``.
    """
    arrays = to_numpy(local, base.schema)
    found: list[Integers] = []
    exponents: list[int] = []
    for index, tensor in enumerate(base.schema.tensors):
        held = base.parameters[index]
        values = arrays[tensor.name].reshape(-1) if tensor.tied_to is None else held
        if tensor.is_float:
            low, high = exponent_window(plan[index] if plan else None)
            k = 0 if exact else _fitted(tensor, values, held, divisor, low, high)
            found.append(_named(tensor, values, held, k))
            exponents.append(k)
        else:
            found.append(_counted(tensor, values, held))
            exponents.append(0)
    return Delta(found, tuple(exponents))


def _counted(tensor: TensorSchema, values: npt.NDArray[Any], held: Integers) -> Integers:
    """Return what is sent of a tensor that is not on the lattice.

    Raises
    ------
    UsageError
        A frozen tensor was changed.
    """
    if tensor.rule == FROZEN and not np.array_equal(to_bits(values, tensor.dtype) if tensor.width == 32 else values, held):
        hint = "keep training from changing it, or let every client have its own: the rule `private`"
        raise UsageError(f"tensor {tensor.name!r} is frozen, and was changed", hint=hint, tensor=tensor.name)
    if tensor.is_fixed or tensor.tied_to is not None:
        return np.zeros_like(held)
    wide = values.astype(np.int64)
    return wide - held if tensor.rule == "sum" else wide


def delta_integers(
    local: npt.NDArray[Any], lattice: Integers, exponent: int, k: int, dtype: str = "float32"
) -> npt.NDArray[np.int32]:
    """Return ``rint((local − value(lattice)) · 2^(exponent − k))``, computed in float64 block by block.

    Raises
    ------
    InvalidRecord
        ``not-finite``, or ``out-of-range`` where the change is ``2^RANGE_BITS`` lattice steps or more.
    """
    found = np.empty(local.size, np.int32)
    for part in _parts(local.size):
        change = local[part].astype(np.float64) - from_lattice(lattice[part], exponent, dtype)
        found[part] = grid_of(change, exponent, k)
    return found


def grid_of(change: npt.NDArray[np.floating[Any]], exponent: int, k: int = 0) -> npt.NDArray[np.int32]:
    """Return a change as integers in units of ``2^k`` lattice steps.

    Raises
    ------
    InvalidRecord
        As `delta_integers`; refused before any cast.
    """
    scaled = np.rint(change.astype(np.float64, copy=False) * 2.0 ** (exponent - k))
    largest = float(np.max(np.abs(scaled), initial=0.0))
    if not math.isfinite(largest):
        raise InvalidRecord("not-finite", "the change holds values that are not finite")
    if largest >= 2.0 ** (RANGE_BITS - k):
        raise InvalidRecord("out-of-range", f"a change of {largest * 2.0**k:.3g} lattice steps")
    return scaled.astype(np.int32)


def spread(local: npt.NDArray[Any], lattice: Integers, exponent: int, dtype: str = "float32") -> float:
    """Return the root mean square of the change in lattice steps; infinite or NaN where the values are."""
    total = 0.0
    for part in _parts(local.size):
        change = local[part].astype(np.float64) - from_lattice(lattice[part], exponent, dtype)
        total += float(np.dot(change, change))
    return math.sqrt(total / local.size) * 2.0**exponent if local.size else 0.0


def fit_exponent(spread: float, *, divisor: int = 16, low: int = 0, high: int = RANGE_BITS) -> int:
    """Return the k whose cell ``2^k`` is nearest to ``spread / divisor``, within ``low … high``."""
    if not math.isfinite(spread) or spread <= 0:
        return low
    return max(low, min(high, round(math.log2(spread / divisor))))


def decode_update(
    codec: str, exponents: Sequence[int], chunks: Iterable[bytes | memoryview], schema: ModelSchema
) -> Iterator[tuple[Block, Integers]]:
    """Yield an update's blocks as integers, whichever codec it used, each checked for what may be asked.

    Raises
    ------
    InvalidRecord
        ``codec``, ``lengths``, ``layout``, ``compression``, ``not-finite`` or ``out-of-range``.
    """
    check_exponents(codec, exponents, schema)
    layout = Layout.of(schema)
    for block, integers in _blocks(codec, chunks, layout, schema):
        check_range(schema.tensors[block.tensor], integers, exponents[block.tensor])
        yield block, integers


def _blocks(
    codec: str, chunks: Iterable[bytes | memoryview], layout: Layout, schema: ModelSchema
) -> Iterator[tuple[Block, Integers]]:
    if codec == FLOAT32:
        return _snapped(chunks, layout, schema)
    return decode_sparse(chunks, layout) if codec == TOPK else decode_integers(chunks, layout)


def _snapped(chunks: Iterable[bytes | memoryview], layout: Layout, schema: ModelSchema) -> Iterator[tuple[Block, Integers]]:
    for block, values in decode_floats(chunks, layout):
        tensor = schema.tensors[block.tensor]
        yield block, grid_of(values, tensor.exponent) if tensor.width == 32 else values


def check_exponents(codec: str, exponents: Sequence[int], schema: ModelSchema) -> None:
    """Refuse exponents that the codec or the schema has no place for.

    Raises
    ------
    InvalidRecord
        ``codec``.
    """
    if codec not in CODECS:
        raise InvalidRecord("codec", f"no codec {codec!r}")
    if len(exponents) != len(schema.tensors):
        raise InvalidRecord("codec", f"{len(exponents)} exponents for {len(schema.tensors)} tensors")
    for tensor, k in zip(schema.tensors, exponents, strict=True):
        most = RANGE_BITS if codec in (GRID, TOPK) and tensor.is_float else 0
        if not 0 <= k <= most:
            raise InvalidRecord("codec", f"exponent {k} for {tensor.name!r} with {codec}", tensor=tensor.name)


def check_range(tensor: TensorSchema, integers: Integers, k: int) -> None:
    """Refuse integers that an update may not ask for.

    Raises
    ------
    InvalidRecord
        ``out-of-range``.
    """
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    if tensor.is_float:
        sound = max(-low, high) < 1 << (RANGE_BITS - k)
    elif tensor.is_fixed:
        sound = low == high == 0
    elif tensor.rule == "sum":
        least, most = limits(tensor)
        sound = least - most <= low and high <= most - least and -(1 << 53) < low <= high < 1 << 53
    else:
        least, most = limits(tensor)
        sound = least <= low and high <= most
    if not sound:
        raise InvalidRecord("out-of-range", f"tensor {tensor.name!r}: integers from {low} to {high}", tensor=tensor.name)


def _fitted(tensor: TensorSchema, values: npt.NDArray[Any], held: Integers, divisor: int, low: int, high: int) -> int:
    return fit_exponent(spread(values, held, tensor.exponent, tensor.dtype), divisor=divisor, low=low, high=high)


def _named(tensor: TensorSchema, values: npt.NDArray[Any], held: Integers, k: int) -> Integers:
    try:
        return delta_integers(values, held, tensor.exponent, k, tensor.dtype)
    except InvalidRecord as error:
        raise InvalidRecord(error.reason, f"tensor {tensor.name!r}: {error.message}", tensor=tensor.name) from error


def exponent_window(planned: int | None) -> tuple[int, int]:
    """Return the least and greatest k that a client may take where the plan has this one; any if None."""
    if planned is None:
        return 0, RANGE_BITS
    return max(0, planned - MAX_FINER), min(RANGE_BITS, planned + MAX_COARSER)


def _parts(size: int) -> Iterator[slice]:
    """Cut a tensor so that float64 scratch stays in the cache."""
    return (slice(start, start + (1 << 16)) for start in range(0, size, 1 << 16))
