"""Which state trees are looked at: signed ones, of the very state that their client's beats tell of.

A tree may have half a megabyte, so what it costs is bounded before it is decoded: one of a client that does not hold another
state than the log's, or whose tree of that state was seen, is passed over by the record's key alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from refold.bus.contract import Record
from refold.consumers.astray import Astray
from refold.consumers.roster import Roster
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord
from refold.schemas.keys import STATE_TREE_TAG, verify
from refold.schemas.model import ModelSchema
from refold.schemas.state_tree import StateTree, root_of

TREE_TYPE = b"refold.StateTree"
MOST_LOOKED_AT = 4
"""Trees of one client that are decoded for one state that it told of: a flood in its name costs no more."""

Told = tuple[int, bytes]


@dataclass(slots=True)
class TreeReader:
    """Believes trees.

    Parameters
    ----------
    ignored
        How many were not, by reason: ``unasked``, ``flood``, ``form``, ``forged``.
    """

    ignored: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, tuple[Told, int]] = field(default_factory=dict)
    """What each client told of, and how often a tree of it may still be looked at."""

    def take(
        self, records: Iterable[Record], roster: Roster, astray: Astray, schema_of: Callable[[int], ModelSchema]
    ) -> Iterator[tuple[StateTree, str]]:
        """Yield trees that their clients signed, with why they cannot be true, or "" where they are sound.

        Parameters
        ----------
        schema_of
            Gives the model on the lattice of a round.
        """
        for record in records:
            if record.header("ce_type") != TREE_TYPE:
                continue
            client = (record.key or b"").decode(errors="replace")
            beat = astray.beat_of(client)
            if beat is None:
                self.ignored["unasked"] += 1
                self._seen.pop(client, None)
                continue
            tree = self._read(record, client, (beat.round, beat.parameters_digest))
            if tree is not None and self._is_signed(tree, roster):
                self._seen[client] = (beat.round, beat.parameters_digest), 0
                yield tree, _fault(tree, schema_of(tree.round))

    def _read(self, record: Record, client: str, told: Told) -> StateTree | None:
        """Return the tree of what a client told of, if that is what a record holds."""
        seen, left = self._seen.get(client, (told, MOST_LOOKED_AT))
        left = left if seen == told else MOST_LOOKED_AT
        if left == 0:
            self.ignored["flood"] += 1
            return None
        self._seen[client] = told, left - 1
        try:
            tree = decode(record.value or b"", StateTree)
        except InvalidRecord:
            self.ignored["form"] += 1
            return None
        if tree.client != client or (tree.round, tree.parameters_digest) != told:
            self.ignored["unasked"] += 1
            return None
        return tree

    def _is_signed(self, tree: StateTree, roster: Roster) -> bool:
        if tree.federation != roster.genesis.federation:
            return False
        if not roster.required:
            return True
        public = roster.clients[tree.client].keys.valid.get(tree.key_id)
        if public is not None and verify(public, STATE_TREE_TAG, tree.signed_digest, tree.signature):
            return True
        self.ignored["forged"] += 1
        return False


def _fault(tree: StateTree, schema: ModelSchema) -> str:
    root = root_of(tree, schema)
    if root is None:
        return f"has {len(tree.digests)} digests of {tree.depth}, which is not the model's number"
    return "" if root == tree.parameters_digest else "is not of the digest that it told"
