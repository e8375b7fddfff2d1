"""Which manifests of `updates` are known, pending and judged: the position that a commit of `accepted` covers."""

from __future__ import annotations

from refold.schemas.checks import NO_OFFSET
from refold.schemas.commits import PartitionPosition


class Coverage:
    """One partition, as detection sees it.

    Every manifest up to `seen_to` is known. A `Checked` whose back-reference lies beyond shows a hole, which detection inspects
    itself before it goes on.
    """

    def __init__(self, position: PartitionPosition) -> None:
        self.partition = position.partition
        self.seen_to = position.next_offset - 1
        self.pending: set[int] = set()
        self._next = position.next_offset
        self._judged = set(position.judged_above)

    def hole_before(self, previous: int) -> tuple[int, int] | None:
        """Return the offsets (first, last) of which nothing is known though `previous` lies there; None if there are none."""
        if previous == NO_OFFSET or previous <= self.seen_to:
            return None
        return (self.seen_to + 1, previous)

    def note(self, offset: int) -> bool:
        """Learn of a manifest, all before it being known; return whether it waits for its verdict."""
        self.seen_to = max(self.seen_to, offset)
        if self.is_judged(offset) or offset in self.pending:
            return False
        self.pending.add(offset)
        return True

    def pass_over(self, last_offset: int) -> None:
        """Learn that no other manifest lies up to this offset."""
        self.seen_to = max(self.seen_to, last_offset)

    def is_judged(self, offset: int) -> bool:
        """Whether the log holds a verdict on this offset."""
        return offset < self._next or offset in self._judged

    def after(self, judged: set[int]) -> PartitionPosition:
        """Return the position once these have their verdicts too."""
        pending = self.pending - judged
        following = min(pending, default=self.seen_to + 1)
        following = max(following, self._next)
        above = {offset for offset in self._judged | judged if offset > following}
        return PartitionPosition(self.partition, following, tuple(sorted(above)))

    def take(self, position: PartitionPosition) -> None:
        """Follow what a commit covers."""
        self._next = position.next_offset
        self._judged = set(position.judged_above)
        self.seen_to = max(self.seen_to, self._next - 1)
        self.pending = {offset for offset in self.pending if not self.is_judged(offset)}
