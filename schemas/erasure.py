"""Sealing keys and erasure: what operators command, and the events of `accepted`, which `rounds` repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from refold.schemas.canonical import Name, Text, Within, record
from refold.schemas.updates import KeyId

SealingPublic = Annotated[bytes, Within(32, 32)]
CommandId = Annotated[bytes, Within(16, 16)]


@record(88)
@dataclass(frozen=True, slots=True)
class KeyClient:
    """Let this client seal its updates to this X25519 key from now on. The server holds its private half."""

    client: Name
    public_key: SealingPublic


@record(89)
@dataclass(frozen=True, slots=True)
class EraseClient:
    """Erase what this client sent sealed: destroy all its sealing keys."""

    client: Name
    reason: Text


@record(105)
@dataclass(frozen=True, slots=True)
class ClientKeyed:
    """From here on this client seals its updates to this key. Those sealed to an earlier one still open."""

    client: Name
    public_key: SealingPublic
    command_id: CommandId


@record(106)
@dataclass(frozen=True, slots=True)
class ClientErased:
    """This client's sealing keys are void: nothing that was sealed to them is taken any more.

    Once `rounds` repeats this, every round that needs them is made, and every server destroys them.

    Parameters
    ----------
    key_ids
        Those that it had, in the order in which it got them.
    """

    client: Name
    key_ids: Annotated[tuple[KeyId, ...], Within(0, 4096)]
    reason: Text
    command_id: CommandId
