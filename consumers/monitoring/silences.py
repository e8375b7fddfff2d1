"""How long nodes have been silent while the bus was not: for all of them at once, since every turn asks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Silences:
    """When each node was heard last, by a clock that stands still while nobody at all is heard.

    Places are those of `refold.consumers.monitoring.outliers.Pasts`. Of a node that is gone nothing is expected: it has no
    silence.
    """

    def __init__(self) -> None:
        self._heard_s = np.full(16, np.inf)

    def heard(self, place: int, running_s: float) -> None:
        """Take note that a node was heard."""
        if place >= len(self._heard_s):
            more = max(place + 1, 2 * len(self._heard_s)) - len(self._heard_s)
            self._heard_s = np.concatenate([self._heard_s, np.full(more, np.inf)])
        self._heard_s[place] = running_s

    def gone(self, place: int) -> None:
        """Expect nothing more of a node until it is heard."""
        self._heard_s[place] = np.inf

    @property
    def expected(self) -> int:
        """How many nodes something is expected of."""
        return int(np.count_nonzero(np.isfinite(self._heard_s)))

    def longer_than(self, silence_s: float, running_s: float) -> npt.NDArray[np.int64]:
        """Return the places of nodes that have been silent for so long or longer, in order."""
        return np.flatnonzero(running_s - self._heard_s >= silence_s)
