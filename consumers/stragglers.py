"""Whom the open round waits for a bounded time only: nodes that the health group holds to be stragglers.

A round that everyone else has answered goes on waiting for them for as long again as the others took, and is closed then; but
not before it took some intervals and seconds, however quick the others were. That is their own deadline, earlier than the
round's. Whether it was over is decided here and now by the server's clock; the log keeps how the round was closed. While no
health group reports, nobody is known to be one, and rounds wait as ever.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from refold.bus.contract import Record
from refold.consumers.planning import is_complete
from refold.consumers.reported import ReportReader
from refold.schemas.health import STRAGGLER
from refold.schemas.plans import RoundPlan

PATIENCE = 2.0
"""A round is closed once it took this many times as long as it took the others."""
LEAST_BEATS, LEAST_S = 10, 5.0
"""A round takes so many intervals and so long before that, however quick the others were: on a busy machine an honest client is
easily twice as slow in a round of milliseconds, and its work would be lost to nothing gained."""
FRESH_REPORTS = 3


@dataclass(slots=True)
class Stragglers:
    """Follows the reports, and how long the open round has waited for stragglers alone."""

    reports: ReportReader
    _reported_s: float = -math.inf
    _round: int = -1
    _others_s: float = field(default=math.inf)

    def take(self, records: Iterable[Record], now_s: float) -> None:
        """Take in what was just read of `health`; their age is counted from here, not by their writer's clock."""
        before = self.reports.newest
        self.reports.take(records)
        if self.reports.newest is not before:
            self._reported_s = now_s

    def known(self, now_s: float) -> frozenset[str]:
        """Return the nodes that are stragglers now."""
        newest = self.reports.newest
        if newest is None or now_s - self._reported_s > FRESH_REPORTS * newest.every_ms / 1000:
            return frozenset()
        return frozenset(node.client for node in self.reports.nodes() if node.cause == STRAGGLER)

    def had_their_time(
        self, plan: RoundPlan, living: Collection[str], done: Collection[str], candidates: int, waited_s: float, now_s: float
    ) -> bool:
        """Whether the round waits for stragglers alone, and did so for as long again as the others took.

        Parameters
        ----------
        waited_s
            How long the round has waited, as `refold.consumers.liveness.Deadline` counts it.
        """
        if plan.round != self._round:
            self._round, self._others_s = plan.round, math.inf
        others = set(living) - self.known(now_s)
        if len(others) == len(living) or not is_complete(plan, others, done, candidates):
            self._others_s = math.inf
            return False
        self._others_s = min(self._others_s, waited_s)
        return waited_s >= max(PATIENCE * self._others_s, LEAST_BEATS * plan.heartbeat_ms / 1000, LEAST_S)
