"""Making checkpoints: the Merkle tree of `accepted` as aggregation folds it, and what it signs of it.

Nothing here is kept on disk. The tree depends on `accepted` alone, so a successor comes to the same roots, whoever was killed
where; a checkpoint counts with the commit of `rounds` that carries it.
"""

from __future__ import annotations

from refold.bus.ledger import Entry
from refold.schemas.checkpoints import Checkpoint, sign_checkpoint
from refold.schemas.commits import Chain
from refold.schemas.errors import IntegrityError
from refold.schemas.events import Checkpointed
from refold.schemas.keys import SigningKey
from refold.schemas.merkle import Span, consistency_ranges, leaf_hash


class LogSigner:
    """Folds `accepted` from its beginning and signs checkpoints of it.

    Parameters
    ----------
    last
        The newest checkpoint in `rounds`, or None.
    """

    def __init__(self, federation: str, key: SigningKey, last: Checkpointed | None) -> None:
        self._federation = federation
        self._key = key
        self._last = last
        self._tree = Span()
        self._covered = Span()
        self._since = Span()

    def fold(self, entry: Entry) -> None:
        """Take a commit of `accepted` in.

        Raises
        ------
        IntegrityError
            The log is not the one that the last checkpoint was made of.
        """
        for data in entry.encoded:
            leaf = leaf_hash(data)
            self._tree.add(leaf)
            self._since.add(leaf)
        if self._tree.end == self._last_events:
            self._require_same(entry)
            self._covered, self._since = self._tree.copy(), Span(self._tree.end)

    def sign(self, entry: Entry, rounds: Chain, time_ms: int) -> Checkpointed:
        """Return the checkpoint of all that was folded; `rounds` is the chain that the commit with it will extend."""
        checkpoint = Checkpoint(
            self._federation,
            self._tree.end,
            self._tree.root(),
            entry.hash,
            rounds.next_index,
            rounds.head,
            time_ms,
        )
        path = tuple(
            (self._covered if end <= self._covered.end else self._since).root(first, end)
            for first, end in consistency_ranges(self._covered.end, self._tree.end)
        )
        return Checkpointed(sign_checkpoint(checkpoint, self._key), self._covered.end, path)

    def taken(self, made: Checkpointed) -> None:
        """Go on from a checkpoint that is in `rounds` now."""
        self._last = made
        self._covered, self._since = self._tree.copy(), Span(self._tree.end)

    @property
    def _last_events(self) -> int:
        return self._last.signed.checkpoint.events if self._last else 0

    def _require_same(self, entry: Entry) -> None:
        assert self._last is not None
        said = self._last.signed.checkpoint
        if (said.root, said.head) != (self._tree.root(), entry.hash):
            raise IntegrityError(
                f"the first {said.events} events of `accepted` are not those of the checkpoint in `rounds`",
                hint="one of the two logs was replaced; `refold verify` says where, nothing is signed until then",
            )
