"""From a trained model to the chunks of an update, as the round's plan asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refold.producers.residual_file import Amount
from refold.schemas.codec import encode_floats, encode_integers
from refold.schemas.layout import Layout
from refold.schemas.payload import CHUNK_BYTES
from refold.schemas.plans import RoundPlan
from refold.schemas.topk import encode_sparse
from refold.schemas.updates import Sealing
from refold.state.delta import EXACT, FLOAT32, GRID, TOPK, delta_of
from refold.state.largest import sparse_delta
from refold.state.model_state import ModelState


@dataclass(frozen=True, slots=True)
class Coded:
    """An update's chunks, and the exponent of each tensor.

    Parameters
    ----------
    unsent
        With ``topk``, what these chunks leave out of the change; see `refold.producers.residual`.
    sealing
        How the chunks are encrypted; None where they are not.
    """

    chunks: tuple[bytes, ...]
    exponents: tuple[int, ...]
    unsent: Amount | None = None
    sealing: Sealing | None = None


def code(
    base: ModelState,
    local: Mapping[str, Any],
    plan: RoundPlan,
    residual: Amount | None = None,
    *,
    max_chunk_bytes: int = CHUNK_BYTES,
) -> Coded:
    """Return how a trained ``state_dict`` differs from the base round, coded.

    Parameters
    ----------
    residual
        With ``topk``, what earlier updates left out; overwritten.

    Raises
    ------
    UsageError
        The tensors are not the model's.
    InvalidRecord
        ``not-finite`` or ``out-of-range``.
    """
    layout = Layout.of(base.schema)
    planned = plan.exponents or None
    if plan.codec == TOPK:
        sparse = sparse_delta(
            base, local, rest=residual, density_ppm=plan.density_ppm, plan=planned, divisor=plan.sigma_divisor
        )
        return Coded(
            tuple(encode_sparse(sparse.tensors, layout, max_chunk_bytes=max_chunk_bytes)), sparse.exponents, sparse.unsent
        )
    delta = delta_of(base, local, plan=planned, divisor=plan.sigma_divisor, exact=plan.codec != GRID)
    if plan.codec == FLOAT32:
        floats = [a * 2.0**-t.exponent if t.is_float else a for a, t in zip(delta.arrays, base.schema.tensors, strict=True)]
        arrays = [a.astype("f4") if t.width == 32 else a for a, t in zip(floats, base.schema.tensors, strict=True)]
        chunks = tuple(encode_floats(arrays, layout, max_chunk_bytes=max_chunk_bytes))
    else:
        chunks = tuple(encode_integers(delta.arrays, layout, max_chunk_bytes=max_chunk_bytes))
    return Coded(chunks, delta.exponents if plan.codec != EXACT else tuple(0 for _ in delta.exponents))
