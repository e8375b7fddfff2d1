"""Erasure and pruning: what operators command, and the events that these come to.

`rounds` repeats the events about sealing keys, since clients need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from refold.schemas.canonical import Name, Text, Uint, Within, record
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


@record(94)
@dataclass(frozen=True, slots=True)
class ChangePruning:
    """Say which payloads go: `PruningChanged` says what its fields mean. None leaves a setting as it is."""

    keep_rounds: Uint | None
    before_round: Uint | None


@record(107)
@dataclass(frozen=True, slots=True)
class PruningChanged:
    """From here on payloads of old rounds go.

    Parameters
    ----------
    keep_rounds
        Of how many rounds, the newest, they are kept; 0 keeps those of all.
    before_round
        Those of rounds below this one go whatever `keep_rounds` says; 0 for none.
    """

    keep_rounds: Uint
    before_round: Uint
    command_id: CommandId


@dataclass(frozen=True, slots=True)
class Pruned:
    """That a partition's records below an offset are gone, or will be in a moment; `topic` is its short name."""

    topic: Name
    partition: Uint
    next_offset: Uint


@record(108)
@dataclass(frozen=True, slots=True)
class DeltasPruned:
    """The payloads of rounds below this one are pruned: accepted deltas, large features, quarantine.

    Written before anything is deleted. Rounds stay exact from their steps; these can no longer be derived again.
    """

    before_round: Uint
    places: tuple[Pruned, ...]
