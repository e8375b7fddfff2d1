"""Who may: every key, token, ban and release follows from a command or a request, and verdicts are on keys valid by then.

What `refold.consumers.standing` and `roster` do is written here again: an audit that shared its rules would share its faults.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from refold.schemas.events import (
    FederationEnded,
    Genesis,
    Origin,
    Regridded,
    RolledBack,
    RoundClosed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.identity import (
    BY_TOKEN,
    ClientBanned,
    ClientEnrolled,
    ClientReleased,
    ClientRevoked,
    KeyRequestBody,
    RequestOrigin,
    TokenAdmitted,
    key_request_digest,
)
from refold.schemas.keys import POSSESSION_TAG, REQUEST_TAG, UPDATE_TAG, key_id, verify
from refold.schemas.statements import body_of
from refold.schemas.updates import update_digest
from refold.state.epochs import Epochs

Changed = ClientEnrolled | TokenAdmitted | ClientRevoked | ClientReleased | ClientBanned
CHANGES = (ClientEnrolled, TokenAdmitted, ClientRevoked, ClientReleased, ClientBanned)
NOWHERE = (-1, 0)


@dataclass(slots=True)
class _Client:
    """A client's keys with the place up to which each still speaks (None: everywhere), its tokens, and how it is barred."""

    keys: dict[bytes, tuple[bytes, tuple[int, int] | None]] = field(default_factory=dict)
    tokens: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    barred: str = ""


class IdentityAudit:
    """Folds what `accepted` says of clients. Each method yields what is wrong, in words."""

    def __init__(self) -> None:
        self._genesis: Genesis | None = None
        self._clients: dict[str, _Client] = {}
        self._commands: dict[bytes, int] = {}
        self._round = 1
        self._epochs = Epochs()

    @property
    def count(self) -> int:
        """How many clients have, or had, a key."""
        return sum(bool(client.keys) for client in self._clients.values())

    @property
    def is_open(self) -> bool:
        """Whether anyone may take part under any name."""
        return self._genesis is not None and not self._genesis.identity.required

    def begin(self, genesis: Genesis) -> None:
        """Take note of how clients are known."""
        self._genesis = self._genesis or genesis

    def close(self, event: RoundClosed | RolledBack | Regridded) -> None:
        """Take note that a round was closed: the next one is open."""
        self._round = event.round + 1
        self._epochs.add(event.round, event.parent, event.exponents if isinstance(event, Regridded) else ())

    def change(self, index: int, event: Changed | FederationEnded) -> Iterator[str]:
        """Take a change in."""
        if event.command_id is not None:
            yield from self.commanded(index, event.command_id)
        if isinstance(event, FederationEnded):
            return
        client = self._clients.setdefault(event.client, _Client())
        match event:
            case ClientEnrolled():
                yield from self._enrolled(client, event)
            case TokenAdmitted():
                client.tokens[key_id(event.public_key)] = event.public_key, event.last_round
            case ClientRevoked():
                yield from _revoked(client, event)
            case ClientReleased():
                if not client.barred:
                    yield f"{event.client!r} is released and was neither frozen nor banned"
                client.barred = ""
            case ClientBanned():
                client.barred = "banned"

    def commanded(self, index: int, command_id: bytes) -> Iterator[str]:
        """Take note that an event follows from a command."""
        first = self._commands.setdefault(command_id, index)
        if first != index:
            yield f"command {command_id.hex()} is taken a second time, first by event {first}"

    def _enrolled(self, client: _Client, event: ClientEnrolled) -> Iterator[str]:
        request = event.request
        if (event.command_id is None) == (request is None):
            yield f"{event.client!r} is enrolled by {'nothing' if request is None else 'a command and a request at once'}"
        if request is not None:
            yield from self._requested(client, event, request)
            if request.kind == BY_TOKEN:
                client.tokens.pop(request.authority, None)
            elif request.authority in client.keys:
                client.keys[request.authority] = client.keys[request.authority][0], (request.partition, request.offset)
        client.keys[key_id(event.public_key)] = event.public_key, None

    def _requested(self, client: _Client, event: ClientEnrolled, request: RequestOrigin) -> Iterator[str]:
        """Yield why a request cannot have enrolled this key."""
        named = f"the request that enrolled key {key_id(event.public_key).hex()} of {event.client!r}"
        authority = self._authority(client, request)
        if authority is None:
            yield f"{named} names a {request.kind} that was not valid by then"
            return
        assert self._genesis is not None
        body = KeyRequestBody(self._genesis.federation, event.client, event.public_key, request.authority)
        digest = key_request_digest(body)
        vouched = verify(authority, REQUEST_TAG, digest, request.authority_signature)
        held = verify(event.public_key, POSSESSION_TAG, digest, request.possession_signature)
        if digest != request.digest or not vouched or not held:
            yield f"{named} was not signed by both keys"
        if client.barred:
            yield f"{named} was taken while the client was {client.barred}"

    def _authority(self, client: _Client, request: RequestOrigin) -> bytes | None:
        """Return the public key that may vouch for a request, or None."""
        if request.kind == BY_TOKEN:
            public, last_round = client.tokens.get(request.authority, (None, 0))
            return None if 0 < last_round < self._round else public
        public, until = client.keys.get(request.authority, (None, NOWHERE))
        return public if until is None else None

    def verdict(self, origin: Origin) -> Iterator[str]:
        """Check that a verdict is on a client whose key counted at its update's place."""
        if self.is_open:
            return
        keys = self._clients[origin.client].keys if origin.client in self._clients else {}
        _, until = keys.get(origin.key_id, (b"", NOWHERE))
        if until is not None and (origin.partition != until[0] or origin.offset >= until[1]):
            state = "is revoked" if origin.key_id in keys else "is not enrolled"
            yield f"a verdict on {origin.client!r}, whose key {origin.key_id.hex()} {state} by then"

    def accepted(self, origin: Origin) -> Iterator[str]:
        """Check that an accepted update's client was not barred."""
        client = self._clients.get(origin.client)
        if client is not None and client.barred:
            yield f"an update of {origin.client!r} is accepted while it is {client.barred}"

    def signature(self, event: UpdateAccepted) -> str:
        """Return why an accepted update is not what its client signed, or "": the body is made again from the verdict."""
        origin, said = event.origin, event.statement
        if self.is_open or self._genesis is None or said is None:
            return ""
        genesis = self._genesis
        schema = genesis.schema.on(self._epochs.of(origin.base_round).lattice)
        body = body_of(event, said, federation=genesis.federation, schema_digest=schema.digest)
        if update_digest(body) != origin.digest:
            return "is not what its digest says"
        client = self._clients.get(origin.client, _Client())
        public, _ = client.keys.get(origin.key_id, (b"", NOWHERE))
        return "" if verify(public, UPDATE_TAG, origin.digest, said.signature) else "is not signed by its client"

    def rejected(self, event: UpdateRejected) -> None:
        """Take note of an equivocation, which freezes its client."""
        if "equivocation" in event.reasons and not self.is_open:
            client = self._clients.setdefault(event.origin.client, _Client())
            client.barred = client.barred or "frozen"

    def bar(self, clients: Iterable[str]) -> None:
        """Take note of clients that a rollback bans."""
        for name in clients:
            self._clients.setdefault(name, _Client()).barred = "banned"

    def together(self, event: Any) -> Iterator[str]:
        """Check that updates refused together were refused for what their client was."""
        client = self._clients.get(event.client)
        barred = client.barred if client is not None else ""
        if event.reason in ("frozen", "banned") and event.reason != barred:
            yield f"updates of {event.client!r} are refused as {event.reason}, which it is not"


def _revoked(client: _Client, event: ClientRevoked) -> Iterator[str]:
    for key in event.key_ids:
        if client.tokens.pop(key, None) is None and key not in client.keys:
            yield f"key {key.hex()} of {event.client!r} is revoked and was never there"
        if key in client.keys:
            client.keys[key] = client.keys[key][0], NOWHERE
