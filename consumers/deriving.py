"""Making a round's step once more, from the deltas that the log accepted, the way it was recorded."""

from __future__ import annotations

from collections.abc import Iterable

from refold.consumers.accepted import Deltas, aggregate
from refold.schemas.events import Member, RoundClosed, RoundCommitted, UpdateAccepted
from refold.schemas.payload import chunk_digest, payload_root
from refold.state.model_state import ModelState
from refold.state.optimizers import from_settings
from refold.state.step import FORMER, PRESENT, Making, Step, Void, compute_step

Members = list[tuple[Member, int, UpdateAccepted]]


def derive(event: RoundCommitted, closed: RoundClosed, members: Members, deltas: Deltas, parent: ModelState) -> Step | Void:
    """Return the step that a round's members give on its parent's state, which stays as it is.

    It is made as servers make it now or, where only that is what was recorded, as they once did.

    Raises
    ------
    IntegrityError, InvalidRecord, KeyLackingError
        A delta is gone, changed or sealed.
    UsageError
        The optimizer is unknown here.
    """
    first = _made(closed, members, deltas, parent, PRESENT)
    if _is_as_told(first, event):
        return first
    for making in FORMER:
        step = _made(closed, members, deltas, parent, making)
        if _is_as_told(step, event):
            return step
    return first


def is_same_bytes(event: RoundCommitted, step: Step) -> bool:
    """Whether a step, written again, has the recorded payloads' roots; another zstd may write the same integers otherwise."""
    if event.step is None or _root(step.encode()) != event.step.root:
        return False
    return event.slots_step is None or _root(step.encode_slots()) == event.slots_step.root


def _made(closed: RoundClosed, members: Members, deltas: Deltas, parent: ModelState, making: Making) -> Step | Void:
    summed = aggregate(members, deltas, closed.rule, parent.schema)
    return compute_step(parent, summed, from_settings(closed.optimizer, closed.optimizer_settings), making=making)


def _is_as_told(step: Step | Void, event: RoundCommitted) -> bool:
    """Whether a step may be the one that was recorded: void as that is, or with the same exponents."""
    if isinstance(step, Void):
        return event.step is None
    return event.step is not None and step.exponents == event.step_exponents


def _root(chunks: Iterable[bytes]) -> bytes:
    described = [(chunk_digest(chunk), len(chunk)) for chunk in chunks]
    return payload_root((digest for digest, _ in described), (length for _, length in described))
