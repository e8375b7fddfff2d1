"""What clients write: updates and heartbeats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import blake3

from refold.schemas.canonical import Digest, Name, Small, Text, Uint, Within, encode, record
from refold.schemas.condition import Condition
from refold.schemas.held import StateHeld, TrainingHeld
from refold.schemas.payload import Payload
from refold.schemas.plans import Settings

TRAIN, EVALUATE, DECLINE, PASS = "train", "evaluate", "decline", "pass"
KINDS = (TRAIN, EVALUATE, DECLINE, PASS)
ANSWERS = frozenset({TRAIN, DECLINE})
"""What a round waits for from a client that it selected."""
WATCHING = "watching"
"""The activity of who only follows a node's logs."""
FAREWELL = "left"
"""The activity told by the last beat of a client that is closed in an orderly way."""
CODECS = ("grid", "exact", "float32", "topk")

UNTOLD = "not_finite"
"""Metric under which a client tells how many of its metrics are not finite numbers, which no record holds."""

Metrics = Annotated[tuple[tuple[Name, float], ...], Within(0, 256)]
Nonce = Annotated[bytes, Within(8, 8)]
KeyId = Annotated[bytes, Within(8, 8)]
Signature = Annotated[bytes, Within(64, 64)]


def _unsealed(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, None)


def _without_sealing(fields: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return fields[:-1] if fields[-1] is None else None


def _body_unsealed(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_unsealed(fields[0]), *fields[1:])


def _body_without_sealing(fields: tuple[Any, ...]) -> tuple[Any, ...] | None:
    body = _without_sealing(fields[0])
    return None if body is None else (body, *fields[1:])


@dataclass(frozen=True, slots=True)
class Sealing:
    """That an update's chunks are encrypted: how, and which of its client's sealing keys opens them."""

    suite: Annotated[str, Within(1, 64)]
    key_id: KeyId


@record(20, version=2, upcasts={1: _unsealed}, downcasts={2: _without_sealing})
@dataclass(frozen=True, slots=True)
class UpdateBody:
    """All that a client says and signs in one update.

    Parameters
    ----------
    session_index, session_nonce
        The session: index of the last `rounds` commit seen when it was opened, and a random number. Later sessions are higher.
    sequence
        Grows by one with every update of the session, from 0.
    kind
        ``train`` carries a delta, ``evaluate`` metrics of the base round, ``decline`` a reason for having no delta,
        ``pass`` one for having no metrics.
    base_round, base_digest
        The round trained from, and the digest of its parameters.
    exponents
        The grid's k for each tensor.
    raw_bytes
        Length of the payload once decoded.
    client_time_ms
        The client's wall clock; decides nothing.
    sealing
        How the payload is encrypted; None where it is not. Without one the body is written in version 1.
    """

    federation: Name
    client: Name
    key_id: KeyId
    session_index: Uint
    session_nonce: Nonce
    sequence: Uint
    kind: Annotated[str, Within(1, 16)]
    base_round: Uint
    base_digest: Digest
    schema_digest: Digest
    codec: Annotated[str, Within(1, 16)]
    exponents: tuple[Small, ...]
    num_examples: Uint
    metrics: Metrics
    payload: Payload | None
    raw_bytes: Uint
    note: Text
    client_time_ms: Uint
    sealing: Sealing | None = None

    @property
    def session(self) -> tuple[int, bytes]:
        """The session as a value that sorts."""
        return (self.session_index, self.session_nonce)

    @property
    def round(self) -> int:
        """The round this update helps to make."""
        return self.base_round + 1


@record(21, version=2, upcasts={1: _body_unsealed}, downcasts={2: _body_without_sealing})
@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """The manifest that commits an update's chunks: a body and its Ed25519 signature."""

    body: UpdateBody
    signature: Signature

    @property
    def digest(self) -> bytes:
        """The update's identity: BLAKE3 of the body's canonical bytes; also what is signed."""
        return update_digest(self.body)


def update_digest(body: UpdateBody) -> bytes:
    """BLAKE3 of the body's canonical bytes, 32 bytes."""
    return blake3.blake3(encode(body), derive_key_context="refold 2026 client update").digest()


def _unsigned(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, bytes(8), b"")


def _with_none(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, None)


def _without_none(fields: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return fields[:-1] if fields[-1] is None else None


def _holding_nothing(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, ())


def _without_holding(fields: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return fields[:-1] if not fields[-1] else None


@record(
    22,
    version=4,
    upcasts={1: _unsigned, 2: _with_none, 3: _with_none},
    downcasts={3: _without_none, 4: _without_none},
)
@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A client is alive: which session, what it does, which round it holds. Decides only whom a round waits for.

    Parameters
    ----------
    activity
        ``waiting``, ``training`` or ``evaluating``; for display. ``watching`` is no client: a process beside it, or on a node
        that trains nothing, follows logs there, with a session of its own at index 0. No round waits for it. ``left`` is the
        last beat of a client that was closed in an orderly way: until it beats again no round waits for it, and nobody holds it
        for dead. It is believed only where it is signed, and newer than the beat before.
    signature
        By the key that `key_id` names, over the record with an empty signature; empty where clients are not identified.
    condition
        What the node measures of itself, how far it is and what its log came to; None where it does not say. Without one the
        beat is written in version 2.
    training
        Where its training stood when it was last kept; None where nothing was. Without one the beat is written in version 3.
    """

    federation: Name
    client: Name
    session_index: Uint
    session_nonce: Nonce
    beat: Uint
    interval_ms: Annotated[int, Within(1, 86_400_000)]
    activity: Annotated[str, Within(0, 64)]
    round: Uint
    parameters_digest: Digest
    properties: Settings
    client_time_ms: Uint
    key_id: KeyId = bytes(8)
    signature: Annotated[bytes, Within(0, 64)] = b""
    condition: Condition | None = None
    training: TrainingHeld | None = None


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One member of a group, as its server sees it.

    Parameters
    ----------
    step_age_ms
        How long ago its last step ended, by the server's monotonic clock; one that hangs gets old.
    failures
        How often in a row it began again from the log without getting anything done.
    """

    group: Name
    step_age_ms: Uint
    failures: Uint


@record(160, version=2, upcasts={1: _holding_nothing}, downcasts={2: _without_holding})
@dataclass(frozen=True, slots=True)
class ServerHeartbeat:
    """A server is alive: which groups it runs, and how they get on. Decides nothing.

    Parameters
    ----------
    member
        What the process calls itself in the log.
    life
        Drawn when the process began; `beat` counts from 0 in each.
    groups
        None of them in the last beat of a server that is stopped in an orderly way.
    signature
        By the log key that `key_id` names, over the record with an empty signature and a tag of its own; empty where the log
        has no keys.
    holds
        The states that its groups hold between rounds, optimizer and all. Without one the beat is written in version 1.
    """

    federation: Name
    member: Name
    life: Nonce
    beat: Uint
    interval_ms: Annotated[int, Within(1, 86_400_000)]
    groups: Annotated[tuple[GroupStatus, ...], Within(0, 64)]
    time_ms: Uint
    key_id: KeyId
    signature: Annotated[bytes, Within(0, 64)]
    condition: Condition | None
    holds: Annotated[tuple[StateHeld, ...], Within(0, 64)] = ()


def server_heartbeat_digest(beat: ServerHeartbeat) -> bytes:
    """BLAKE3 of the beat's canonical bytes with an empty signature, 32 bytes: what is signed."""
    unsigned = beat if not beat.signature else replace(beat, signature=b"")
    return blake3.blake3(encode(unsigned), derive_key_context="refold 2026 server heartbeat").digest()


def heartbeat_digest(beat: Heartbeat) -> bytes:
    """BLAKE3 of the beat's canonical bytes with an empty signature, 32 bytes: what is signed."""
    unsigned = beat if not beat.signature else replace(beat, signature=b"")
    return _heartbeat_hash(encode(unsigned))


def encoded_heartbeat_digest(encoded: bytes, beat: Heartbeat) -> bytes:
    """Return the same of a beat whose bytes are at hand: the signature is cut out of them, which is ten times as quick.

    Parameters
    ----------
    encoded
        What `beat` was decoded from; decoding has shown that it is the one way to write it.
    """
    signature = _SIGNATURE_HEAD + beat.signature
    at = encoded.find(signature)
    if len(beat.signature) != 64 or at < 0 or encoded.find(signature, at + 1) >= 0:
        return heartbeat_digest(beat)
    return _heartbeat_hash(encoded[:at] + _EMPTY + encoded[at + len(signature) :])


_SIGNATURE_HEAD, _EMPTY = b"\xc4\x40", b"\xc4\x00"
"""How msgpack begins 64 bytes, and writes none."""


def _heartbeat_hash(data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="refold 2026 heartbeat").digest()
