"""Commands: whatever is done in an operator's name follows from a command that an operator signed."""

from __future__ import annotations

from collections.abc import Iterator

from refold.bus.contract import Bus, Place
from refold.bus.ranges import records_in
from refold.bus.topics import Topics
from refold.consumers.audit.findings import STANDING, Finding
from refold.consumers.audit.identity import Changed
from refold.consumers.commands import signed_part
from refold.schemas.canonical import decode
from refold.schemas.checks import (
    AdmitToken,
    BanClient,
    Command,
    EndFederation,
    EnrolClient,
    ReleaseClient,
    RevokeKeys,
)
from refold.schemas.erasure import ChangePruning, ClientErased, ClientKeyed, EraseClient, KeyClient, PruningChanged
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import FederationEnded, Genesis
from refold.schemas.identity import ClientBanned, ClientEnrolled, ClientReleased, ClientRevoked, TokenAdmitted
from refold.schemas.keys import COMMAND_TAG, key_id, verify
from refold.schemas.policies import ChangePolicy, ModelReported, PolicyChanged, ReportModel
from refold.schemas.rollback import RollBack, RolledBack

Ordered = Changed | FederationEnded | ClientKeyed | ClientErased | PruningChanged | RolledBack | PolicyChanged | ModelReported
Done = tuple[int, int, Ordered]
"""Index and offset in `accepted`, and an event that names a command."""


def audit_orders(bus: Bus, topics: Topics, genesis: Genesis, done: list[Done]) -> Iterator[Finding]:
    """Yield what no operator ordered."""
    ordered = _signed_orders(bus, topics, genesis)
    for index, offset, event in done:
        if event.command_id is None or _follows(event, ordered.get(event.command_id)):
            continue
        client = (
            None
            if isinstance(event, FederationEnded | PruningChanged | RolledBack | PolicyChanged | ModelReported)
            else event.client
        )
        what = f"a {type(event).__name__}{f' of {client!r}' if client else ''} without a command that an operator signed"
        yield Finding(
            STANDING, what, "whoever wrote `accepted` did this by themselves", topics.accepted, 0, offset, index, client
        )


def _follows(event: Ordered, order: object) -> bool:
    """Whether an event is what an order asks for."""
    match event, order:
        case ClientEnrolled(), EnrolClient():
            return (event.client, event.public_key) == (order.client, order.public_key)
        case TokenAdmitted(), AdmitToken():
            asked = (order.client, order.public_key, order.last_round)
            return (event.client, event.public_key, event.last_round) == asked
        case ClientRevoked(), RevokeKeys():
            same = (event.client, event.reason) == (order.client, order.reason)
            return same and event.key_ids == (order.key_ids or event.key_ids)
        case ClientReleased(), ReleaseClient():
            return (event.client, event.reason) == (order.client, order.reason)
        case ClientBanned(), BanClient():
            return (event.client, event.reason) == (order.client, order.reason)
        case ClientKeyed(), KeyClient():
            return (event.client, event.public_key) == (order.client, order.public_key)
        case ClientErased(), EraseClient():
            return (event.client, event.reason) == (order.client, order.reason)
        case PruningChanged(), ChangePruning():
            pairs = ((event.keep_rounds, order.keep_rounds), (event.before_round, order.before_round))
            return all(asked in (None, found) for found, asked in pairs)
        case PolicyChanged(), ChangePolicy():
            return (event.subject, event.settings) == (order.subject, order.settings)
        case ModelReported(), ReportModel():
            names = ("round", "metric", "value", "fault", "last_good")
            return all(getattr(event, name) == getattr(order, name) for name in names)
        case RolledBack(), RollBack():
            same = (event.parent, event.reason) == (order.round, order.reason)
            return same and event.calibration == order.calibration
        case FederationEnded(), EndFederation():
            return event.reason == order.reason
    return False


def _signed_orders(bus: Bus, topics: Topics, genesis: Genesis) -> dict[bytes, object]:
    """Return every order that an operator of this federation signed, by its command's id."""
    operators = {key_id(public): public for public in genesis.operator_keys}
    servers = {key_id(public): public for public in genesis.log_keys}
    place = Place(topics.commands, 0)
    found: dict[bytes, object] = {}
    for record in records_in(bus, place, bus.begin_offset(place), bus.end_offset(place) - 1):
        try:
            command = decode(record.value or b"", Command)
            order = decode(command.body)
        except InvalidRecord:
            continue
        public = operators.get(command.key_id) or (servers.get(command.key_id) if isinstance(order, ReportModel) else None)
        signed = public is not None and verify(public, COMMAND_TAG, signed_part(command), command.signature)
        if signed and command.federation == genesis.federation:
            found.setdefault(command.command_id, order)
    return found
