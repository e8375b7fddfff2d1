"""What the groups tell one another, and what operators command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args

from refold.schemas.canonical import Blob, Digest, Name, Text, Uint, Within, record
from refold.schemas.erasure import ChangePruning, EraseClient, KeyClient
from refold.schemas.events import PublicKey, Reason
from refold.schemas.payload import Payload
from refold.schemas.policies import ChangePolicy, ReportModel
from refold.schemas.rollback import RollBack
from refold.schemas.updates import KeyId, Signature

NO_OFFSET = -1


@record(70)
@dataclass(frozen=True, slots=True)
class Attempted:
    """Consistency is about to decode this update; without a `Checked` after it, the attempt ended in a crash."""

    partition: Uint
    offset: Uint
    member: Name


@record(71)
@dataclass(frozen=True, slots=True)
class Checked:
    """Facts and features of one update, or the fault found.

    Parameters
    ----------
    previous
        Offset of the manifest before this one in its partition, or -1 where the reader began here: a gap shows by it.
    first_chunk
        Lowest offset of its chunks, or its own.
    open_from
        Lowest offset in the partition of a chunk that still waits for its manifest, or the one after the update.
    manifest
        The `ClientUpdate` or `KeyRequest` as it came; empty where it is neither. Then `record_digest` says which bytes it was.
    fault, detail
        A reason code, or "" where nothing is wrong.
    features
        Packed features of a sound training update.
    """

    partition: Uint
    offset: Uint
    previous: Annotated[int, Within(NO_OFFSET, 2**63 - 1)]
    first_chunk: Uint
    open_from: Uint
    record_digest: Digest
    manifest: Blob
    fault: Annotated[str, Within(0, 64)]
    detail: Text
    features: Annotated[bytes, Within(0, 512 << 10)] | None
    member: Name


@record(72)
@dataclass(frozen=True, slots=True)
class Quarantined:
    """Why an update lies in `quarantine`, and its original bytes.

    Parameters
    ----------
    record_bytes
        How many of the payload's first bytes are the manifest as it came; the chunks follow, as far as they came.
    """

    partition: Uint
    offset: Uint
    client: Annotated[str, Within(0, 200)]
    reasons: tuple[Reason, ...]
    detail: Text
    record_bytes: Uint
    payload: Payload


def _without_kind(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, "", "", "", ())


@record(73, version=2, upcasts={1: _without_kind})
@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should know.

    Parameters
    ----------
    kind
        What it is, from a short list that docs/OPERATIONS.md describes; "" in alerts of version 1.
    cause
        Of a node's trouble: ``node``, ``network``, ``straggler`` or ``data``; else "".
    state
        The state that a node is in from now on; else "".
    evidence
        What it rests on: the names of measurements and their values.
    """

    subject: Name
    severity: Annotated[str, Within(1, 16)]
    what: Text
    advice: Text
    round: Uint
    time_ms: Uint
    kind: Annotated[str, Within(0, 64)] = ""
    cause: Annotated[str, Within(0, 16)] = ""
    state: Annotated[str, Within(0, 16)] = ""
    evidence: Annotated[tuple[tuple[Name, float], ...], Within(0, 32)] = ()


@record(80)
@dataclass(frozen=True, slots=True)
class EnrolClient:
    """Let this key speak for this client."""

    client: Name
    public_key: PublicKey


@record(81)
@dataclass(frozen=True, slots=True)
class EndFederation:
    """End the federation now; updates of the round that is open are refused."""

    reason: Text


@record(82)
@dataclass(frozen=True, slots=True)
class Command:
    """An operator's command: an encoded body and the operator's signature over federation, id and body."""

    federation: Name
    command_id: Annotated[bytes, Within(16, 16)]
    body: Blob
    key_id: KeyId
    signature: Signature


@record(83)
@dataclass(frozen=True, slots=True)
class AdmitToken:
    """Let whoever holds this token's key enrol one key for this client, up to a last round; 0 for any."""

    client: Name
    public_key: PublicKey
    last_round: Uint


@record(84)
@dataclass(frozen=True, slots=True)
class RevokeKeys:
    """Let these keys and tokens of a client count for nothing from now on; all that it has if none is named."""

    client: Name
    key_ids: Annotated[tuple[KeyId, ...], Within(0, 1024)]
    reason: Text


@record(85)
@dataclass(frozen=True, slots=True)
class ReleaseClient:
    """Let a client that was frozen or banned take part again."""

    client: Name
    reason: Text


@record(86)
@dataclass(frozen=True, slots=True)
class BanClient:
    """Take nothing of a client from now on."""

    client: Name
    reason: Text


Order = (
    EnrolClient
    | EndFederation
    | AdmitToken
    | RevokeKeys
    | ReleaseClient
    | BanClient
    | KeyClient
    | EraseClient
    | ChangePruning
    | RollBack
    | ChangePolicy
    | ReportModel
)
ORDERS: tuple[type[Order], ...] = get_args(Order)
"""What an operator can command."""
