"""Clients' own requests for keys: whether one is granted, decided at its place in the log from the roster alone."""

from __future__ import annotations

from dataclasses import dataclass

from refold.bus.contract import partition_for
from refold.consumers.roster import Roster
from refold.consumers.standing import Source, Standing
from refold.schemas.identity import BY_KEY, BY_TOKEN, ClientEnrolled, KeyRequest, RequestOrigin
from refold.schemas.keys import POSSESSION_TAG, REQUEST_TAG, key_id, verify


@dataclass(frozen=True, slots=True)
class Authority:
    """Who vouches for a request: a token or a key of the client's."""

    kind: str
    public: bytes


def request_fault(roster: Roster, request: KeyRequest, source: Source, partitions: int) -> str:
    """Return the reason for which a request is refused, or "".

    It must lie in its client's own partition: a key that is replaced still speaks for what lay there before the request.
    """
    body = request.body
    if body.federation != roster.genesis.federation:
        return "wrong-federation"
    if source[0] != partition_for(body.client.encode(), partitions):
        return "misplaced"
    standing = roster.clients.get(body.client)
    if standing is None:
        return "not-enrolled"
    if roster.ended or standing.state:
        return standing.state or "federation-ended"
    new = key_id(body.public_key)
    if new in standing.keys.valid:
        return "duplicate"
    authority = authority_of(standing, body.authority, roster.closed + 1)
    if authority is None:
        return "revoked-key" if body.authority in standing.keys.retired else "token"
    return _signed(request, authority) or _room(roster, standing, new, authority)


def authority_of(standing: Standing, name: bytes, round_: int) -> Authority | None:
    """Return the token or key of this id that may vouch while this round is open, or None."""
    token = standing.keys.tokens.get(name)
    if token is not None:
        return None if token.is_over(round_) else Authority(BY_TOKEN, token.public)
    public = standing.keys.valid.get(name)
    return Authority(BY_KEY, public) if public is not None else None


def _signed(request: KeyRequest, authority: Authority) -> str:
    digest = request.digest
    if not verify(authority.public, REQUEST_TAG, digest, request.authority_signature):
        return "signature"
    held = verify(request.body.public_key, POSSESSION_TAG, digest, request.possession_signature)
    return "" if held else "possession"


def _room(roster: Roster, standing: Standing, new: bytes, authority: Authority) -> str:
    """Refuse a key that the client had before, and one too many: a key that is replaced makes room, a token does not."""
    if new in standing.keys.retired:
        return "known-key"
    full = authority.kind == BY_TOKEN and len(standing.keys.valid) >= roster.limits.keys
    return "over-limit" if full else ""


def granted(roster: Roster, request: KeyRequest, source: Source) -> ClientEnrolled:
    """Return the event of a request that has no fault."""
    body = request.body
    standing = roster.clients[body.client]
    authority = authority_of(standing, body.authority, roster.closed + 1)
    assert authority is not None
    origin = RequestOrigin(
        *source,
        request.digest,
        authority.kind,
        body.authority,
        request.authority_signature,
        request.possession_signature,
    )
    return ClientEnrolled(body.client, body.public_key, None, origin)
