"""Who a client is: its keys, enrolment tokens, the requests that it signs for new keys, and the events that these come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import blake3

from refold.schemas.canonical import Digest, Name, Text, Uint, Within, encode, record
from refold.schemas.updates import KeyId, Signature

PublicKey = Annotated[bytes, Within(32, 32)]
CommandId = Annotated[bytes, Within(16, 16)]
BY_TOKEN, BY_KEY = "token", "key"
INSECURE = "INSECURE: clients are not identified; anyone may take part, and send updates under any name"
"""What every start says in a federation whose genesis does not ask who clients are."""


@record(23)
@dataclass(frozen=True, slots=True)
class KeyRequestBody:
    """What a client asks for when it asks for a key of its own: that this key speaks for it from here on.

    There is nothing random in it: the same wish is the same bytes, however often it is sent.

    Parameters
    ----------
    authority
        Key id of who vouches: an enrolment token's, which is used up by it, or the client's present key's, which the new one
        replaces.
    """

    federation: Name
    client: Name
    public_key: PublicKey
    authority: KeyId


@record(24)
@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A client's signed request for a key, in `updates`.

    Parameters
    ----------
    authority_signature
        By the token's or the present key.
    possession_signature
        By the new key, so that nobody enrols a key that they do not hold.
    """

    body: KeyRequestBody
    authority_signature: Signature
    possession_signature: Signature

    @property
    def digest(self) -> bytes:
        """The request's identity, and what is signed."""
        return key_request_digest(self.body)


def key_request_digest(body: KeyRequestBody) -> bytes:
    """BLAKE3 of the body's canonical bytes, 32 bytes."""
    return blake3.blake3(encode(body), derive_key_context="refold 2026 key request").digest()


@record(25)
@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """What an operator hands to a client, once: a seed of an Ed25519 key that may ask for one key and nothing else.

    Parameters
    ----------
    last_round
        The last round during which it is taken; 0 for any.
    """

    federation: Name
    client: Name
    seed: Annotated[bytes, Within(32, 32)]
    last_round: Uint


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """Where a key request lay, and all that it takes to check it again.

    Parameters
    ----------
    kind
        Who vouched: ``token``, which is used up, or ``key``, which is replaced: what it signed behind this place of the
        partition, or elsewhere, counts for nothing.
    """

    partition: Uint
    offset: Uint
    digest: Digest
    kind: Annotated[str, Within(1, 16)]
    authority: KeyId
    authority_signature: Signature
    possession_signature: Signature


def _with_nothing(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, None)


@record(41, version=2, upcasts={1: _with_nothing})
@dataclass(frozen=True, slots=True)
class ClientEnrolled:
    """From here on this key speaks for this client: by an operator's command, or by the client's own request."""

    client: Name
    public_key: PublicKey
    command_id: CommandId | None
    request: RequestOrigin | None = None


@record(47)
@dataclass(frozen=True, slots=True)
class TokenAdmitted:
    """From here on this key may ask for one key of this client's."""

    client: Name
    public_key: PublicKey
    last_round: Uint
    command_id: CommandId


@record(48)
@dataclass(frozen=True, slots=True)
class ClientRevoked:
    """From here on these keys and tokens count for nothing, for updates that wait as well."""

    client: Name
    key_ids: Annotated[tuple[KeyId, ...], Within(1, 1024)]
    reason: Text
    command_id: CommandId


@record(49)
@dataclass(frozen=True, slots=True)
class ClientReleased:
    """A client that was frozen or banned takes part again; what was refused stays so."""

    client: Name
    reason: Text
    command_id: CommandId


@record(100)
@dataclass(frozen=True, slots=True)
class ClientBanned:
    """Nothing of this client is taken from here on; what was judged stays so."""

    client: Name
    reason: Text
    command_id: CommandId


@record(101)
@dataclass(frozen=True, slots=True)
class UpdatesRefused:
    """Updates of one client refused together, whatever they hold: it is frozen, banned or over its limits.

    Other updates may lie between the first and the last of them.

    Parameters
    ----------
    digest
        Of the first update; for each further one BLAKE3 over the digest so far and its own.
    """

    partition: Uint
    first_offset: Uint
    last_offset: Uint
    count: Uint
    digest: Digest
    client: Name
    reason: Annotated[str, Within(1, 64)]


@dataclass(frozen=True, slots=True)
class ClientNotice:
    """What happened to a client, as it is told: ``enrolled`` or ``revoked`` a key; ``frozen``, ``banned`` or ``released``."""

    client: Name
    what: Annotated[str, Within(1, 16)]
    key_id: KeyId | None


@record(102)
@dataclass(frozen=True, slots=True)
class ClientNotices:
    """Notices of what `accepted` says of clients; the commit's position says up to which event."""

    notices: Annotated[tuple[ClientNotice, ...], Within(1, 1 << 16)]
