"""Events in one line for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

from refold.cli.output import short
from refold.schemas.checks import Alert, Attempted, Checked, Command, Quarantined
from refold.schemas.events import (
    Checkpointed,
    ClientErased,
    ClientKeyed,
    DeltasPruned,
    FederationEnded,
    FederationOpened,
    Genesis,
    ModelReported,
    Origin,
    Overflowed,
    PolicyChanged,
    PruningChanged,
    Receipt,
    Receipts,
    Regridded,
    RolledBack,
    RoundClosed,
    RoundCommitted,
    SnapshotTaken,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.health import HealthReport
from refold.schemas.identity import (
    INSECURE,
    ClientBanned,
    ClientEnrolled,
    ClientNotices,
    ClientReleased,
    ClientRevoked,
    KeyRequest,
    TokenAdmitted,
    UpdatesRefused,
)
from refold.schemas.keys import key_id
from refold.schemas.sealing import sealing_key_id
from refold.schemas.updates import ClientUpdate, Heartbeat, ServerHeartbeat


def round_of(event: Any) -> int | None:
    """Return the round that an event is about; an update's is the one that it helps to make."""
    match event:
        case UpdateAccepted() | UpdateRejected():
            return event.origin.base_round + 1
        case RoundClosed() | RoundCommitted() | RolledBack() | Regridded() | Overflowed() | ModelReported():
            return event.round
        case FederationEnded() | SnapshotTaken() | Alert():
            return event.round
    return None


def clients_of(event: Any) -> frozenset[str]:
    """Return the clients that an event names."""
    match event:
        case UpdateAccepted() | UpdateRejected():
            return frozenset({event.origin.client})
        case ClientEnrolled() | TokenAdmitted() | ClientRevoked() | ClientReleased() | ClientBanned() | UpdatesRefused():
            return frozenset({event.client})
        case ClientKeyed() | ClientErased():
            return frozenset({event.client})
        case Quarantined() | Heartbeat():
            return frozenset({event.client})
        case ClientNotices():
            return frozenset(notice.client for notice in event.notices)
        case RoundClosed() | RoundCommitted():
            return frozenset(member.client for member in event.members)
        case Receipts():
            return frozenset(receipt.client for receipt in event.receipts)
    return frozenset()


def one_line(event: Any) -> str:
    """Return what an event says, without its type."""
    match event:
        case Genesis() | FederationOpened():
            said = f"{event.federation}: {event.schema.size:,} parameters, {event.optimizer}, state {short(event.state_digest)}"
            return said if event.identity.required else f"{said}  {INSECURE}"
        case ClientKeyed():
            return f"{event.client}  sealing key {sealing_key_id(event.public_key).hex()}"
        case PruningChanged():
            kept = f"the newest {event.keep_rounds} rounds" if event.keep_rounds else "all rounds"
            return f"payloads of {kept} are kept, none of rounds below {event.before_round}"
        case DeltasPruned():
            return f"payloads of rounds below {event.before_round} are pruned, in {len(event.places)} partitions"
        case ClientErased():
            return f"{event.client}  {len(event.key_ids)} sealing keys void  {event.reason}".rstrip()
        case UpdateAccepted():
            sealed = "  sealed" if event.sealing else ""
            return f"{_origin(event.origin)}  weight {event.weight}{sealed}  {_metrics(event.metrics)}".rstrip()
        case UpdateRejected():
            times = f"  ×{event.count}" if event.count > 1 else ""
            return f"{_origin(event.origin)}  {', '.join(event.reasons)}{times}  {event.detail}".rstrip()
        case Unattributed():
            return f"{_range(event)}  {event.reason}  ×{event.count}  {event.detail}".rstrip()
        case RoundClosed():
            return f"round {event.round} on {event.parent}  {_members(event.members)}  {event.closed_by}"
        case RoundCommitted():
            why = f": {event.reason}" if event.reason else ""
            said = f"round {event.round} on {event.parent}  {event.outcome}{why}"
            return f"{said}  {_members(event.members)}  state {short(event.state_digest)}"
        case Receipts():
            return ", ".join(_receipt(receipt) for receipt in event.receipts)
    return _identity_line(event) or _other_line(event)


def _identity_line(event: Any) -> str:
    """Return what an event says of who a client is, or ""."""
    match event:
        case ClientEnrolled():
            request = event.request
            by = "" if request is None else f"  by {request.kind} {request.authority.hex()}"
            return f"{event.client}  key {key_id(event.public_key).hex()}{by}"
        case TokenAdmitted():
            until = f"  up to round {event.last_round}" if event.last_round else ""
            return f"{event.client}  token {key_id(event.public_key).hex()}{until}"
        case ClientRevoked():
            return f"{event.client}  keys {' '.join(key.hex() for key in event.key_ids)}  {event.reason}".rstrip()
        case ClientReleased() | ClientBanned():
            return f"{event.client}  {event.reason}".rstrip()
        case UpdatesRefused():
            return f"{_range(event)}  {event.client}  {event.reason}  ×{event.count}"
        case ClientNotices():
            return ", ".join(f"{notice.client} {notice.what}" for notice in event.notices)
        case KeyRequest():
            body = event.body
            return f"{body.client}  asks for key {key_id(body.public_key).hex()} by {body.authority.hex()}"
    return ""


def _other_line(event: Any) -> str:
    match event:
        case Checkpointed():
            said = event.signed.checkpoint
            return f"{said.events} events  root {short(said.root)}  signed by {event.signed.key_id.hex()}"
        case PolicyChanged():
            return f"{event.subject}  " + " ".join(f"{name}={value}" for name, value in event.settings)
        case ModelReported():
            value = "not finite" if event.value is None else f"{event.value:.4g}"
            told = event.fault or f"{event.metric}={value}"
            return f"round {event.round}  {told}"
        case RolledBack():
            why = f"  {event.reason}" if event.reason else ""
            return f"round {event.round} on {event.parent}  left round {event.abandoned}  {event.cause}{why}"
        case Regridded():
            return f"round {event.round} on {event.parent}  {event.reason}"
        case Overflowed():
            return f"round {event.round}  tensors {', '.join(map(str, event.tensors))}"
        case FederationEnded():
            return f"after round {event.round}: {event.reason}"
        case SnapshotTaken():
            return f"round {event.round}  state {short(event.state_digest)}"
        case Alert():
            advice = f": {event.advice}" if event.advice else ""
            return f"{event.severity}  {event.subject}  {event.what}{advice}"
        case Quarantined():
            who = event.client or "unknown"
            return f"{event.partition}/{event.offset}  {who}  {', '.join(event.reasons)}  {event.detail}".rstrip()
        case Heartbeat():
            return f"{event.client}  {event.activity}  round {event.round}  beat {event.beat}"
        case ServerHeartbeat():
            return f"{event.member}  {', '.join(one.group for one in event.groups)}  beat {event.beat}"
        case HealthReport():
            counted = Counter(node.state for node in event.nodes)
            return f"{event.member}  {', '.join(f'{count} {state}' for state, count in counted.items()) or 'no nodes'}"
        case Checked():
            return f"{event.partition}/{event.offset}  {event.fault or 'sound'}  {event.detail}".rstrip()
        case Attempted():
            return f"{event.partition}/{event.offset}  by {event.member}"
        case ClientUpdate():
            return f"round {event.body.round}  {event.body.client}  {event.body.kind}  {short(event.digest)}"
        case Command():
            return f"{event.command_id.hex()[:12]}  signed by {event.key_id.hex()}"
    return ""


def _origin(origin: Origin) -> str:
    return f"round {origin.base_round + 1}  {origin.client}  {origin.kind}  {short(origin.digest)}"


def _metrics(metrics: tuple[tuple[str, float], ...]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in metrics)


def _members(members: tuple[Any, ...]) -> str:
    kept = sum(not member.weight for member in members)
    return f"{len(members)} members" + (f", {kept} not applied" if kept else "")


def _range(event: Unattributed | UpdatesRefused) -> str:
    last = f" to {event.last_offset}" if event.last_offset != event.first_offset else ""
    return f"{event.partition}/{event.first_offset}{last}"


def _receipt(receipt: Receipt) -> str:
    return f"{receipt.client} {receipt.outcome}"
