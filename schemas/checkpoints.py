"""Checkpoints: the server's signed word on `accepted`, small enough for everybody to keep.

Whoever holds one can tell that a log shown later is not the log it was about. Two that contradict each other, both signed,
prove it to everyone else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import blake3

from refold.schemas.canonical import Digest, Name, Uint, Within, encode, record
from refold.schemas.keys import CHECKPOINT_TAG, SigningKey, key_id, verify
from refold.schemas.updates import KeyId, Signature


@record(90)
@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed: the first events of `accepted`, and where `rounds` stood when it was.

    Parameters
    ----------
    events
        How many events of `accepted` it covers, from index 0.
    root
        Root of the Merkle tree (RFC 6962, SHA-256) whose leaves are these events' bytes.
    head
        Hash of the commit that the last of them is in: it covers the commits' own fields too.
    rounds_index, rounds_head
        Index of the next event of `rounds` and hash of its last commit, before the commit that carries this checkpoint.
    time_ms
        The server's wall clock; decides nothing.
    """

    federation: Name
    events: Annotated[int, Within(1, 2**63 - 1)]
    root: Digest
    head: Digest
    rounds_index: Uint
    rounds_head: Digest
    time_ms: Uint

    @property
    def digest(self) -> bytes:
        """What is signed, 32 bytes: BLAKE3 of the canonical bytes."""
        return blake3.blake3(encode(self), derive_key_context="refold 2026 checkpoint").digest()

    def agrees(self, other: Checkpoint) -> bool:
        """Whether both can be true of one federation, as far as the two alone tell; their times may differ."""
        if self.federation != other.federation:
            return False
        if self.events == other.events and (self.root, self.head) != (other.root, other.head):
            return False
        if self.rounds_index == other.rounds_index and self.rounds_head != other.rounds_head:
            return False
        return (self.events - other.events) * (self.rounds_index - other.rounds_index) >= 0


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with the Ed25519 signature of one of the federation's log keys."""

    checkpoint: Checkpoint
    key_id: KeyId
    signature: Signature

    def is_signed_by(self, log_keys: Iterable[bytes]) -> bool:
        """Whether one of these public keys signed it."""
        message = self.checkpoint.digest
        return any(
            verify(public, CHECKPOINT_TAG, message, self.signature) for public in log_keys if key_id(public) == self.key_id
        )


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> SignedCheckpoint:
    """Sign a checkpoint with a log key."""
    return SignedCheckpoint(checkpoint, key.key_id, key.sign(CHECKPOINT_TAG, checkpoint.digest))
