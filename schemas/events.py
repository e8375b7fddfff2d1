"""The events of `accepted` and `rounds`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from refold.schemas.canonical import Digest, Name, Small, Text, Uint, Within, record
from refold.schemas.checkpoints import SignedCheckpoint
from refold.schemas.erasure import ClientErased as ClientErased
from refold.schemas.erasure import ClientKeyed as ClientKeyed
from refold.schemas.erasure import DeltasPruned as DeltasPruned
from refold.schemas.erasure import PruningChanged as PruningChanged
from refold.schemas.identity import ClientEnrolled as ClientEnrolled
from refold.schemas.identity import CommandId
from refold.schemas.identity import PublicKey as PublicKey
from refold.schemas.merged import StepsMerged as StepsMerged
from refold.schemas.merkle import MAX_PATH
from refold.schemas.model import ModelSchema
from refold.schemas.payload import Payload, PlaceHint
from refold.schemas.plans import PlanPolicy, RoundPlan, Settings, choosing, grown
from refold.schemas.policies import ModelReported as ModelReported
from refold.schemas.policies import PolicyChanged as PolicyChanged
from refold.schemas.regrid import Overflowed as Overflowed
from refold.schemas.regrid import Regridded as Regridded
from refold.schemas.rollback import RolledBack as RolledBack
from refold.schemas.updates import KeyId, Metrics, Nonce, Sealing, Signature

Reason = Annotated[str, Within(1, 64)]
Parameters = Annotated[tuple[tuple[Name, float], ...], Within(0, 64)]


@dataclass(frozen=True, slots=True)
class Score:
    """What one detector said of one update; above `threshold` it found it anomalous."""

    detector: Name
    version: Uint
    value: float
    threshold: float
    evidence: Text


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """When snapshots are taken and how many are kept, the initial state besides."""

    every_rounds: Annotated[int, Within(1, 1 << 31)]
    keep_last: Annotated[int, Within(1, 1 << 20)]


@dataclass(frozen=True, slots=True)
class Defence:
    """What detection does: ``all``, ``consistency`` (integrity checks alone) or ``none``, and its false-alarm setting."""

    mode: Annotated[str, Within(1, 16)]
    settings: Settings


@dataclass(frozen=True, slots=True)
class Identity:
    """How clients are known.

    Parameters
    ----------
    required
        Only enrolled clients take part, and everything they send is signed. Without it anyone may claim to be anyone.
    limits
        What one client may take up, by name; detection's own defaults where a name is missing.
    """

    required: bool
    limits: Settings


def _identified(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the fields of a record from before there were log keys and settings of identity: all clients were known."""
    return (*fields, (), (True, ()))


@record(40, version=4, upcasts={1: grown(5, 6), 2: _identified, 3: choosing(policies=(5,), plans=(6,))})
@dataclass(frozen=True, slots=True)
class Genesis:
    """The first event of `accepted`: all that decides what the log means.

    Parameters
    ----------
    initial
        The initial state, raw, in `deltas`.
    optimizer
        The server optimizer's name and its settings.
    secret_digest
        BLAKE3 of the server's secret seed, which decides sketches and hidden coordinates.
    log_keys
        Public keys that sign checkpoints of the log; none in a federation from before there were any.
    """

    federation: Name
    schema: ModelSchema
    initial: Payload
    parameters_digest: Digest
    state_digest: Digest
    policy: PlanPolicy
    first_plan: RoundPlan
    optimizer: Name
    optimizer_settings: Parameters
    snapshots: SnapshotPolicy
    defence: Defence
    operator_keys: Annotated[tuple[PublicKey, ...], Within(1, 64)]
    secret_digest: Digest
    time_ms: Uint
    log_keys: Annotated[tuple[PublicKey, ...], Within(0, 64)] = ()
    identity: Identity = field(default_factory=lambda: Identity(True, ()))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an update lay, and which one it is."""

    partition: Uint
    offset: Uint
    digest: Digest
    client: Name
    key_id: KeyId
    session_index: Uint
    session_nonce: Nonce
    sequence: Uint
    kind: Annotated[str, Within(1, 16)]
    base_round: Uint


@dataclass(frozen=True, slots=True)
class Statement:
    """What the client of an accepted update signed besides: with it the signed `UpdateBody` can be made again from the log.

    Parameters
    ----------
    is_inline, hint
        How the client wrote the payload, whose chunks have another place now.
    """

    base_digest: Digest
    raw_bytes: Uint
    note: Text
    client_time_ms: Uint
    is_inline: bool
    hint: PlaceHint | None
    signature: Signature


def _with_none(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the fields of a verdict from before its update could be sealed, or its client's statement was kept."""
    return (*fields, None)


@record(42, version=3, upcasts={1: _with_none, 2: _with_none})
@dataclass(frozen=True, slots=True)
class UpdateAccepted:
    """A verdict: kept, for ever.

    Parameters
    ----------
    weight
        Integer weight before `RoundClosed` scales it: examples × staleness discount, capped.
    payload
        The client's own bytes, unchanged, in `deltas`; None for evaluations.
    features
        What detection judged by, packed.
    sealing
        As the client's own; None where the payload is plain.
    statement
        None in verdicts from before it was kept: their signatures cannot be checked any more.
    """

    origin: Origin
    weight: Uint
    num_examples: Uint
    metrics: Metrics
    codec: Annotated[str, Within(1, 16)]
    exponents: tuple[Small, ...]
    payload: Payload | None
    features: Payload | None
    scores: tuple[Score, ...]
    sealing: Sealing | None = None
    statement: Statement | None = None


@record(43)
@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """A verdict: quarantined, with its reasons. Equal ones in a row are one event with a `count`.

    Parameters
    ----------
    last_offset, count
        The last manifest of the row, and how many there are; `origin.offset` is the first.
    """

    origin: Origin
    last_offset: Uint
    count: Uint
    reasons: Annotated[tuple[Reason, ...], Within(1, 16)]
    detail: Text
    features: Payload | None
    scores: tuple[Score, ...]


@record(44)
@dataclass(frozen=True, slots=True)
class Unattributed:
    """Records of `updates` that nobody can be held to: not decodable, not enrolled, not signed by the key they name.

    Parameters
    ----------
    digest
        BLAKE3 over the records' own BLAKE3 digests in order.
    """

    partition: Uint
    first_offset: Uint
    last_offset: Uint
    count: Uint
    digest: Digest
    reason: Reason
    detail: Text


@dataclass(frozen=True, slots=True)
class Member:
    """An accepted update in a round; weight 0 is kept but not applied."""

    digest: Digest
    client: Name
    weight: Uint


@record(45, version=3, upcasts={1: grown(7), 2: choosing(plans=(7,))})
@dataclass(frozen=True, slots=True)
class RoundClosed:
    """The cohort of a round, and the next round's plan."""

    round: Uint
    parent: Uint
    members: tuple[Member, ...]
    rule: Annotated[str, Within(1, 32)]
    optimizer: Name
    optimizer_settings: Parameters
    closed_by: Annotated[str, Within(1, 32)]
    next_plan: RoundPlan


def _uncommanded(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, None)


@record(46, version=2, upcasts={1: _uncommanded})
@dataclass(frozen=True, slots=True)
class FederationEnded:
    """Nothing is accepted after this. `command_id` where an operator ended it, none where its rounds are done."""

    round: Uint
    reason: Text
    command_id: CommandId | None = None


@record(50, version=4, upcasts={1: grown(5), 2: _identified, 3: choosing(plans=(5,))})
@dataclass(frozen=True, slots=True)
class FederationOpened:
    """The first event of `rounds`: what a client needs to take part. `log_keys` and `identity` as in `Genesis`."""

    federation: Name
    schema: ModelSchema
    parameters_digest: Digest
    state_digest: Digest
    optimizer: Name
    first_plan: RoundPlan
    log_keys: Annotated[tuple[PublicKey, ...], Within(0, 64)] = ()
    identity: Identity = field(default_factory=lambda: Identity(True, ()))


@record(51, version=3, upcasts={1: grown(11), 2: choosing(plans=(11,))})
@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """A round is made.

    Parameters
    ----------
    outcome
        ``applied``; ``void`` or ``rollback``, with a `reason`: then the state is the parent's; ``regrid``: it is the parent's,
        on the lattice that `Regridded` names.
    step, step_exponents
        The integer change of the parameters in `steps`, and its exponent j for each tensor; None where void.
    slots_step, slot_exponents
        The change of the optimizer's slots, and for each slot its name and the exponent E of each tensor.
    """

    round: Uint
    parent: Uint
    outcome: Annotated[str, Within(1, 8)]
    reason: Text
    members: tuple[Member, ...]
    step: Payload | None
    step_exponents: tuple[Small, ...]
    slots_step: Payload | None
    slot_exponents: tuple[tuple[Name, tuple[Small, ...]], ...]
    parameters_digest: Digest
    state_digest: Digest
    next_plan: RoundPlan


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an update, as its client is told: the reason's class only, so that nobody learns how to evade."""

    client: Name
    digest: Digest
    outcome: Annotated[str, Within(1, 16)]


@record(52)
@dataclass(frozen=True, slots=True)
class Receipts:
    """Receipts of verdicts; the commit's position says up to which."""

    receipts: tuple[Receipt, ...]


@record(53)
@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The server's signed word on `accepted` as far as this commit covers it; the last event of every commit of `rounds`.

    Parameters
    ----------
    previous_events
        How many events the checkpoint before this one in `rounds` covers; 0 for the first.
    consistency
        RFC 6962 proof that the tree extends that one's.
    """

    signed: SignedCheckpoint
    previous_events: Uint
    consistency: Annotated[tuple[Digest, ...], Within(0, MAX_PATH)]


@record(60)
@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The full state at a round. Written last: a snapshot without its manifest is none."""

    round: Uint
    attempt: Annotated[bytes, Within(8, 8)]
    parameters_digest: Digest
    state_digest: Digest
    parameters: Payload
    slots: Payload | None
    slot_exponents: tuple[tuple[Name, tuple[Small, ...]], ...]
    rounds_index: Uint
    rounds_hash: Digest
    time_ms: Uint
