"""What an operator's command comes to: the events that it causes, decided from the roster alone."""

from __future__ import annotations

from refold.consumers.checkpoint_policy import SnapshotRules
from refold.consumers.healing import HealingPolicy
from refold.consumers.roster import Roster
from refold.consumers.sealing import keyed
from refold.consumers.standing import Standing
from refold.schemas.checks import AdmitToken, EndFederation, EnrolClient, Order, ReleaseClient, RevokeKeys
from refold.schemas.erasure import ChangePruning, EraseClient, KeyClient
from refold.schemas.errors import UsageError
from refold.schemas.events import FederationEnded
from refold.schemas.identity import ClientBanned, ClientEnrolled, ClientReleased, ClientRevoked, TokenAdmitted
from refold.schemas.keys import is_weak, key_id
from refold.schemas.policies import HEALING, SNAPSHOTS, SUBJECTS, ChangePolicy, ModelReported, PolicyChanged, ReportModel
from refold.schemas.rollback import RollBack, RolledBack


def subject_of(order: Order) -> str:
    """Return the client that a command is about, or ""."""
    return "" if isinstance(order, EndFederation | ChangePruning | RollBack | ChangePolicy | ReportModel) else order.client


def obeyed(roster: Roster, order: Order, command_id: bytes) -> list[object]:
    """Return the events of a command that is taken now; none where it has nothing left to do.

    Raises
    ------
    UsageError
        It cannot be obeyed; the hint says what would help.
    """
    match order:
        case EndFederation():
            return [] if roster.ended else [FederationEnded(roster.closed, order.reason, command_id)]
        case EnrolClient():
            return [_enrolled(roster, order, command_id)]
        case AdmitToken():
            return [_admitted(roster, order, command_id)]
        case RevokeKeys():
            return [_revoked(roster, order, command_id)]
        case ReleaseClient():
            return [_released(roster, order, command_id)]
        case KeyClient() | EraseClient():
            return keyed(roster.sealing, order, command_id)
        case RollBack():
            return [_rolled_back(roster, order, command_id)]
        case ChangePolicy():
            return [_policy_changed(order, command_id)]
        case ReportModel():
            # A program may take longer over a model than its branch lasts: what was left needs no going back from.
            known = order.round <= roster.closed and roster.branches.staleness(order.round) is not None
            known = known and order.last_good <= order.round
            said = (order.round, order.metric, order.value, order.fault, order.last_good)
            return [ModelReported(*said, command_id)] if known and not roster.ended else []
        case ChangePruning():
            return [roster.pruning.changed(order, command_id)]
    return [ClientBanned(order.client, order.reason, command_id)]


def _policy_changed(order: ChangePolicy, command_id: bytes) -> PolicyChanged:
    checked = {HEALING: HealingPolicy.of, SNAPSHOTS: SnapshotRules.of}.get(order.subject)
    if checked is None:
        raise UsageError(f"no policy {order.subject!r}", hint=f"there are {', '.join(SUBJECTS)}")
    checked(order.settings)
    return PolicyChanged(order.subject, order.settings, command_id)


def _rolled_back(roster: Roster, order: RollBack, command_id: bytes) -> RolledBack:
    if roster.ended:
        raise UsageError("the federation has ended: nothing goes on from any round")
    return roster.branches.rolled_back(
        roster.genesis.policy,
        order.round,
        order.reason,
        command_id=command_id,
        calibration=order.calibration,
        clients=roster.able,
    )


def _enrolled(roster: Roster, order: EnrolClient, command_id: bytes) -> ClientEnrolled:
    _refuse_weak(order.public_key)
    standing = roster.clients.get(order.client, Standing())
    is_new = key_id(order.public_key) not in standing.keys.valid
    if is_new and len(standing.keys.valid) >= roster.limits.keys:
        raise UsageError(
            f"{order.client!r} has {len(standing.keys.valid)} keys and may have {roster.limits.keys}",
            hint="revoke one first: `refold revoke NAME --key-id ID`",
        )
    return ClientEnrolled(order.client, order.public_key, command_id)


def _refuse_weak(public: bytes) -> None:
    if is_weak(public):
        raise UsageError(f"{public.hex()} is a key for which anyone can sign", hint="make one with `refold enroll --new-key`")


def _admitted(roster: Roster, order: AdmitToken, command_id: bytes) -> TokenAdmitted:
    _refuse_weak(order.public_key)
    standing = roster.clients.get(order.client, Standing())
    unused = [token for token in standing.keys.tokens.values() if not token.is_over(roster.closed + 1)]
    if len(unused) >= roster.limits.tokens:
        raise UsageError(
            f"{order.client!r} has {len(unused)} unused tokens and may have {roster.limits.tokens}",
            hint="cancel one first: `refold revoke NAME --key-id ID`",
        )
    return TokenAdmitted(order.client, order.public_key, order.last_round, command_id)


def _revoked(roster: Roster, order: RevokeKeys, command_id: bytes) -> ClientRevoked:
    keys = roster.clients.get(order.client, Standing()).keys
    speaking = [name for name, retired in keys.retired.items() if retired.before]
    there = [*keys.valid, *keys.tokens, *speaking]
    unknown = [name.hex() for name in order.key_ids if name not in there]
    if unknown or not there:
        what = f"no valid key or token {', '.join(unknown)}" if unknown else "no valid key and no token"
        raise UsageError(f"{order.client!r} has {what}", hint="`refold show NAME` lists them")
    return ClientRevoked(order.client, tuple(order.key_ids or there), order.reason, command_id)


def _released(roster: Roster, order: ReleaseClient, command_id: bytes) -> ClientReleased:
    if not roster.clients.get(order.client, Standing()).state:
        raise UsageError(f"{order.client!r} is neither frozen nor banned")
    return ClientReleased(order.client, order.reason, command_id)
