"""What a client signed, made whole again from the log, so that anyone can check later that an accepted update is its client's.

`UpdateAccepted` keeps most of an `UpdateBody` under its own names, and the rest as a `Statement`. This is the one place that
takes a body apart and puts it together: a body that gains a field gains it here.
"""

from __future__ import annotations

from dataclasses import replace

from refold.schemas.events import Statement, UpdateAccepted
from refold.schemas.payload import Payload
from refold.schemas.updates import UpdateBody


def statement_of(body: UpdateBody, signature: bytes) -> Statement:
    """Return what a verdict keeps of a body besides its own fields."""
    payload = body.payload
    return Statement(
        body.base_digest,
        body.raw_bytes,
        body.note,
        body.client_time_ms,
        payload is not None and payload.inline is not None,
        payload.hint if payload is not None else None,
        signature,
    )


def body_of(event: UpdateAccepted, statement: Statement, *, federation: str, schema_digest: bytes) -> UpdateBody:
    """Return the body that a client signed, as its verdict tells it."""
    origin = event.origin
    return UpdateBody(
        federation,
        origin.client,
        origin.key_id,
        origin.session_index,
        origin.session_nonce,
        origin.sequence,
        origin.kind,
        origin.base_round,
        statement.base_digest,
        schema_digest,
        event.codec,
        event.exponents,
        event.num_examples,
        event.metrics,
        _as_signed(event.payload, statement),
        statement.raw_bytes,
        statement.note,
        statement.client_time_ms,
        event.sealing,
    )


def _as_signed(payload: Payload | None, statement: Statement) -> Payload | None:
    """Return a payload as the client wrote it: its chunks lie in `deltas` now, and small ones went inline there."""
    if payload is None or (statement.is_inline and statement.hint is None):
        return payload
    return replace(payload, inline=None, hint=statement.hint)
