"""What a detector is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from refold.consumers.features import SQUARES, Features

if TYPE_CHECKING:
    from refold.consumers.detectors.recent import Past

Floats = npt.NDArray[np.float64]

TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Cohort:
    """Training updates judged together, one a client.

    Parameters
    ----------
    clients, features
        In one order; the features' arrays are read-only.
    history
        For each client, its past values from each detector, oldest first: ``history[client][detector]``.
    metrics
        What each client reports of itself, empty where nobody does.
    recent
        The last rounds' features, for detectors that learn or foretell.
    root
        Features of the server's own update of the round, where it has data.
    tensors
        The tensors' names, in the order of the facts, for what is said to people; empty where nobody knows them.
    """

    round: int
    clients: tuple[str, ...]
    features: tuple[Features, ...]
    history: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    metrics: tuple[Mapping[str, float], ...] = ()
    recent: Past | None = None
    root: Features | None = None
    tensors: tuple[str, ...] = ()
    _kept: dict[str, npt.NDArray[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(_read_only(features) for features in self.features))

    @property
    def facts(self) -> Floats:
        """The features' facts: (clients, tensors, 6), read-only."""
        return self._stacked("facts")

    @property
    def histograms(self) -> npt.NDArray[np.int64]:
        """The features' histograms: (clients, 64), read-only."""
        return self._stacked("histogram")

    @property
    def norms(self) -> Floats:
        """The updates' norms."""
        return np.asarray(np.sqrt(self.facts[:, :, SQUARES].sum(axis=1)))

    def _stacked(self, name: str) -> npt.NDArray[Any]:
        """Stack an array of every client's features, once for all detectors."""
        if name not in self._kept:
            stacked = np.array([getattr(features, name) for features in self.features])
            stacked.flags.writeable = False
            self._kept[name] = stacked
        return self._kept[name]

    def __len__(self) -> int:
        """Return the number of updates."""
        return len(self.clients)

    def tensor(self, index: int) -> str:
        """Return what to call a tensor."""
        return f"tensor {self.tensors[index] if self.tensors else index}"

    def past(self, client: str, detector: str) -> tuple[float, ...]:
        """Return what a detector said of a client before, oldest first."""
        return tuple(self.history.get(client, {}).get(detector, ()))


@dataclass(frozen=True, slots=True)
class Scores:
    """A detector's answer.

    Parameters
    ----------
    values
        One a client, of this round alone, higher is worse. They are what `Cohort.history` holds in later rounds.
    thresholds
        One a client; above it the client is found anomalous. A detector with a memory lowers it for a client with a bad habit.
    evidence
        One sentence a client.
    supports
        From a detector that knows what honest updates look like: one a client, above which it supports what another found.
    """

    values: Floats
    thresholds: Floats
    evidence: tuple[str, ...]
    supports: Floats | None = None


class Detector(Protocol):
    """Scores cohorts. Has no memory of its own: what it needs of the past comes with the cohort."""

    name: str
    version: int
    reason: str
    """The reason code of a rejection by this detector."""

    def score(self, cohort: Cohort) -> Scores:
        """Judge a cohort of at least three updates. Values must be finite."""
        ...


def median(values: npt.NDArray[Any], axis: int = 0) -> npt.NDArray[Any]:
    """Return what `numpy.median` does, without the checks that take longer than the sorting of a few."""
    ordered = np.sort(values if values.dtype.kind == "f" else values.astype(np.float64), axis=axis)
    count = values.shape[axis]
    low, high = ordered.take((count - 1) // 2, axis=axis), ordered.take(count // 2, axis=axis)
    return np.asarray((low + high) * ordered.dtype.type(0.5))


def robust_z(values: Floats, *, least_scale: float) -> Floats:
    """Return (value − median) / (1.4826 · MAD), the scale not below `least_scale`.

    Source: Rousseeuw and Croux, Alternatives to the median absolute deviation, 1993.
    """
    centre = median(values)
    scale = 1.4826 * median(np.abs(values - centre))
    return np.asarray((values - centre) / max(float(scale), least_scale))


@dataclass(frozen=True, slots=True)
class Habit:
    """Looks back at a client's values: what is bearable once may not be so round after round.

    Parameters
    ----------
    mean
        The mean of a client's last values, the one of now among them, may not exceed this.
    rounds, least_rounds
        How many values count, and how many there must be.
    least
        A value below this is never anomalous, whatever the habit: who behaves again is free again.
    """

    mean: float
    least: float
    rounds: int = 8
    least_rounds: int = 4

    def thresholds(self, cohort: Cohort, detector: str, usual: float) -> Floats:
        """Return for each client what its value of now may not exceed: `usual`, or less where its past is bad."""
        found = []
        for client in cohort.clients:
            # One terrible round is clipped, so that it does not outweigh seven good ones.
            past = np.clip(cohort.past(client, detector)[-(self.rounds - 1) :], -usual, usual)
            enough = len(past) + 1 >= self.least_rounds
            found.append(min(usual, self.mean * (len(past) + 1) - float(past.sum())) if enough else usual)
        return np.maximum(found, self.least)


def _read_only(features: Features) -> Features:
    """Return the same features through views that cannot be written to."""
    arrays = (features.facts, features.histogram, features.sketch, features.subset)
    if not any(array.flags.writeable for array in arrays):
        return features
    return replace(
        features,
        facts=_view(features.facts),
        histogram=_view(features.histogram),
        sketch=_view(features.sketch),
        subset=_view(features.subset),
    )


def _view(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
