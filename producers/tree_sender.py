"""When a client sends its `StateTree`: behind a beat that told of another state than the log's."""

from __future__ import annotations

from dataclasses import replace

from refold.producers.held_digest import Held
from refold.schemas.keys import STATE_TREE_TAG, SigningKey
from refold.schemas.state_tree import StateTree, told_digests
from refold.schemas.updates import Heartbeat


class TreeSender:
    """Makes the trees of one client.

    Nobody has to ask for one: the client knows the log's digest too. It is sent behind the first beat that tells of a state
    that has diverged, and behind the second, fourth, eighth … as long as that goes on, in case one was not heard.
    """

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._of: tuple[int, bytes] = (0, b"")
        self._beats = 0

    def due(self, beat: Heartbeat, held: Held | None) -> StateTree | None:
        """Return the tree to send behind a beat that was just sent, or None."""
        told = beat.round, beat.parameters_digest
        if held is None or not held.has_diverged or held.round != beat.round:
            return None
        self._beats = self._beats + 1 if told == self._of else 1
        self._of = told
        if self._beats & (self._beats - 1):
            return None
        found = held.tree()
        if found.parameters_digest != beat.parameters_digest:
            return None  # It was changed since: the next beat tells of another digest.
        return self._signed(beat, *told_digests(found))

    def _signed(self, beat: Heartbeat, depth: str, digests: tuple[bytes, ...]) -> StateTree:
        tree = StateTree(
            beat.federation,
            beat.client,
            beat.session_index,
            beat.session_nonce,
            beat.beat,
            *self._of,
            depth,
            digests,
            self._key.key_id,
        )
        return replace(tree, signature=self._key.sign(STATE_TREE_TAG, tree.signed_digest))
