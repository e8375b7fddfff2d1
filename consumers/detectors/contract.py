"""What a detector is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refold.consumers.features import Features

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cohort:
    """Training updates judged together, one a client.

    Parameters
    ----------
    clients, features
        In one order; arrays in the features are read-only.
    history
        For each client, its past values from each detector, oldest first: ``history[client][detector]``.
    """

    round: int
    clients: tuple[str, ...]
    features: tuple[Features, ...]
    history: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of updates."""
        return len(self.clients)

    def past(self, client: str, detector: str) -> Sequence[float]:
        """Return what a detector said of a client before, oldest first."""
        return self.history.get(client, {}).get(detector, ())


@dataclass(frozen=True, slots=True)
class Scores:
    """A detector's answer.

    Parameters
    ----------
    values
        One a client, higher is worse; above `threshold` the client is found anomalous.
    evidence
        One sentence a client.
    """

    values: Floats
    threshold: float
    evidence: tuple[str, ...]


class Detector(Protocol):
    """Scores cohorts. Has no memory of its own: what it needs of the past comes with the cohort."""

    name: str
    version: int
    reason: str
    """The reason code of a rejection by this detector."""

    def score(self, cohort: Cohort) -> Scores:
        """Judge a cohort of at least three updates. Values must be finite."""
        ...


def robust_z(values: Floats, *, least_scale: float) -> Floats:
    """Return (value − median) / (1.4826 · MAD), the scale not below `least_scale`.

    Source: Rousseeuw and Croux, Alternatives to the median absolute deviation, 1993.
    """
    centre = np.median(values)
    scale = 1.4826 * np.median(np.abs(values - centre))
    return np.asarray((values - centre) / max(float(scale), least_scale))
