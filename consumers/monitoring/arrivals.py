"""An adaptive failure detector for silence: how surprising is it that nothing was heard for so long?

Source: Hayashibara, Défago, Yared and Katayama, "The φ accrual failure detector", SRDS 2004.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

LONGEST_GAP = 3.0
"""A longer gap counts as one of this many intervals: who was dead for an hour must not be waited for that long again."""
MOST_PHI = 300.0


@dataclass(slots=True)
class Arrivals:
    """The gaps between a node's beats, in its own intervals.

    Parameters
    ----------
    window
        How many gaps are remembered.
    spread_floor
        Least standard deviation that is believed.
    """

    window: int
    spread_floor: float
    _gaps: deque[float] = field(default_factory=deque)
    _sum: float = 0.0
    _squares: float = 0.0

    def add(self, gap: float) -> None:
        """Take note of a gap."""
        kept = min(max(gap, 0.0), LONGEST_GAP)
        self._gaps.append(kept)
        self._sum += kept
        self._squares += kept * kept
        if len(self._gaps) > self.window:
            gone = self._gaps.popleft()
            self._sum -= gone
            self._squares -= gone * gone

    def phi(self, silence: float) -> float:
        """Return −log10 of the chance that a silence lasts this long (in intervals) or longer, were the node alive.

        As in the paper the gaps are taken as normal. Before any gap was seen, the interval itself is what is expected.
        """
        n = len(self._gaps)
        mean = max(self._sum / n, 1.0) if n else 1.0
        variance = max(self._squares / n - (self._sum / n) ** 2, 0.0) if n else 0.0
        # A few gaps say little of how they spread.
        spread = max(math.sqrt(variance), self.spread_floor * (1 + 2 / (n + 1)))
        return _phi((silence - mean) / spread)


def _phi(deviations: float) -> float:
    """Return −log10 of a normal variable's chance to exceed so many deviations; by its asymptote where erfc is too small."""
    if deviations < 30:
        chance = 0.5 * math.erfc(deviations / math.sqrt(2))
        return max(0.0, -math.log10(chance)) + 0.0
    log_chance = -deviations * deviations / 2 - math.log(deviations * math.sqrt(2 * math.pi))
    return min(MOST_PHI, -log_chance / math.log(10))
