"""Merged steps: the exact sum of several rounds' steps, so that a far round is few steps away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from refold.schemas.canonical import Digest, Name, Small, Uint, Within, record
from refold.schemas.payload import Payload


def _in_steps(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the fields of a merged step from when its chunks lay in `steps`, for ever."""
    return (*fields, b"")


@record(54, version=2, upcasts={1: _in_steps})
@dataclass(frozen=True, slots=True)
class StepsMerged:
    """The sum of the steps of the `count` rounds after `first`, each of which was built on the one before it.

    Written last: a merged step without its manifest is none. It saves time and bytes and is never trusted over the log, which
    holds the digests of the state that it leads from and of the one that it leads to.

    Parameters
    ----------
    first, count
        The step leads from the state of round `first` to that of round ``first + count``, the last, or back.
    first_digest, last_digest
        These states' digests.
    step, step_exponents
        The integer change of the parameters in `snapshot-chunks`, and its exponent j for each tensor.
    slots_step, slot_exponents
        The change of the optimizer's slots, and for each slot its name and the exponent E of each tensor; None and empty where
        the last round has no slots.
    attempt
        The writer's, which the chunks' keys name. Empty in merged steps from when their chunks lay in `steps`.
    """

    first: Uint
    count: Annotated[int, Within(2, 1 << 31)]
    first_digest: Digest
    last_digest: Digest
    step: Payload
    step_exponents: tuple[Small, ...]
    slots_step: Payload | None
    slot_exponents: tuple[tuple[Name, tuple[Small, ...]], ...]
    time_ms: Uint
    attempt: Annotated[bytes, Within(0, 8)] = b""

    @property
    def last(self) -> int:
        """The round that the step leads to."""
        return self.first + self.count

    @property
    def piece(self) -> tuple[int, int]:
        """The rounds before and after it."""
        return self.first, self.last


def merged_key(first: int, last: int) -> bytes:
    """Return the key of a merged step's manifest in `snapshots`, where plain numbers are snapshots."""
    return b"%d+%d" % (first, last - first)


def merged_chunk_key(piece: tuple[int, int], attempt: bytes, part: bytes, index: int) -> bytes:
    """Return the key of a chunk in `snapshot-chunks`: its merged step, the writer's attempt, its part and its number."""
    return b"%s/%s/%s/%d" % (merged_key(*piece), attempt.hex().encode(), part, index)


def piece_of(key: bytes) -> tuple[int, int] | None:
    """Return which rounds the key of a merged step names; None where it is no such key."""
    fields = key.split(b"+")
    if len(fields) != 2 or not all(field.isdigit() and len(field) < 19 for field in fields):
        return None
    first, count = map(int, fields)
    return first, first + count
