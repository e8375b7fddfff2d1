"""Which manifests of `updates` are known, pending and judged: the position that a commit of `accepted` covers."""

from __future__ import annotations

from refold.schemas.checks import NO_OFFSET
from refold.schemas.commits import PartitionPosition

Run = tuple[int, int]


class Coverage:
    """One partition, as detection sees it.

    Every manifest up to `seen_to` is known. A `Checked` whose back-reference lies beyond shows a hole, which detection inspects
    itself before it goes on.
    """

    def __init__(self, position: PartitionPosition) -> None:
        self.partition = position.partition
        self.seen_to = position.next_offset - 1
        self.pending: set[int] = set()
        self._position = position

    def hole_before(self, previous: int) -> Run | None:
        """Return the run of offsets of which nothing is known though `previous` lies among them; None if there is none."""
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
        return self._position.is_judged(offset)

    def after(self, judged: set[int]) -> PartitionPosition:
        """Return the position once these have their verdicts too.

        All that is known and does not wait is judged; beyond what is known, the log's own word stands.
        """
        pending = sorted(self.pending - judged)
        known_to = max(self.seen_to, self._position.next_offset - 1)
        ends = [*pending[1:], known_to + 1] if pending else []
        known = [(left + 1, right - 1) for left, right in zip(pending, ends, strict=True)]
        beyond = [(max(first, known_to + 1), last) for first, last in self._position.judged_above if last > known_to]
        runs = _joined([*known, *beyond])
        following = pending[0] if pending else known_to + 1
        if runs and runs[0][0] <= following:
            following = runs.pop(0)[1] + 1
        return PartitionPosition(self.partition, following, tuple(runs))

    def take(self, position: PartitionPosition) -> None:
        """Follow what a commit covers."""
        self._position = position
        self.seen_to = max(self.seen_to, position.next_offset - 1)
        self.pending = {offset for offset in self.pending if not self.is_judged(offset)}


def _joined(runs: list[Run]) -> list[Run]:
    """Return ascending runs without empty ones, those that touch made one."""
    found: list[Run] = []
    for first, last in runs:
        if first > last:
            continue
        if found and found[-1][1] + 1 == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found
