"""Differential privacy at the client: clipping, noise, and what that has cost so far.

Each update is one Gaussian mechanism: the change of all float tensors is clipped to `clip_norm` and gets noise of deviation
``noise_multiplier · clip_norm`` before anything else is made of it. Whatever a client's data are, two updates that it could
have sent differ by at most twice the clip, so the cost is that of a mechanism with half the multiplier: it protects this client
from whoever reads its updates, the server included, and counts any change of its data, not of one example alone. Nothing is
taken off for rounds in which it was not selected: the log says who took part.

Not covered: metrics, numbers of examples, integer tensors, evaluations, and whether and when a client takes part.

Durable steps of an update, before those of `refold.producers.publisher`: 1. the release is written down (`spending`); 2. noise
is drawn and the update coded. A crash after 1 counts a release that never was, so never too few.

Sources: Dwork and Roth, The algorithmic foundations of differential privacy, 2014; Kasiviswanathan et al., What can we learn
privately?, 2011 (the local model); Dong, Roth and Su, Gaussian differential privacy, 2022 (composition); Balle and Wang,
Improving the Gaussian mechanism, 2018, as Google's dp-accounting has it (ε).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from refold.producers.noise import NormalStream
from refold.producers.spending import SpendingFile, Spent
from refold.schemas.errors import ConfigurationError, UsageError
from refold.state.clipping import Normal, clipped_and_noised, length_of, require_room
from refold.state.model_state import ModelState
from refold.state.tensors import Arrays

SENSITIVITY = 2.0
"""How far apart two clipped changes can be, in clips."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """How a client hides its data in its updates.

    Parameters
    ----------
    clip_norm
        The most Euclidean length of a change, all float tensors together.
    noise_multiplier
        Deviation of the noise on every parameter, in clips.
    delta
        δ of the guarantee, above 0 and below 1: well below one over the number of people in the data.
    epsilon
        The ε that may be spent; an update that would go beyond it is declined. None spends without a limit.
    """

    clip_norm: float
    noise_multiplier: float
    delta: float = 1e-5
    epsilon: float | None = None

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UsageError(f"privacy: {name} {value} is not above 0 and finite")
        if not 0 < self.delta < 1:
            raise UsageError(f"privacy: delta {self.delta} is not between 0 and 1")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise UsageError(f"privacy: epsilon {self.epsilon} is not above 0 and finite")

    @property
    def sigma(self) -> float:
        """Deviation of the noise, in units of the parameters."""
        return self.noise_multiplier * self.clip_norm


class PrivateUpdates:
    """Makes one client's updates private and knows what they have cost.

    Raises
    ------
    ConfigurationError
        The library that adds costs up is not installed, or the file beside the outbox is damaged.
    """

    def __init__(self, setting: Privacy, file: SpendingFile, normal: Normal | None = None) -> None:
        self.setting = setting
        self._file = file
        self._normal = normal or NormalStream()
        epsilon_of(((1.0, 1),), setting.delta)
        self._spent = file.change(lambda spent: replace(spent, delta=setting.delta, budget=setting.epsilon))

    @property
    def spent(self) -> Spent:
        """What was released so far, by other processes of this client too as far as their last look."""
        return self._spent

    def epsilon(self, delta: float | None = None) -> float:
        """Return the ε that is spent, at the setting's δ or another."""
        return epsilon_of(self._spent.released, self.setting.delta if delta is None else delta)

    def has_room(self) -> bool:
        """Whether another update stays within what may be spent."""
        self._spent = self._file.read()
        return self._fits(self._spent)

    def noised(self, base: ModelState, local: Mapping[str, Any]) -> Arrays:
        """Return a trained ``state_dict``, clipped and with noise; counted whether it is sent or not.

        Raises
        ------
        UsageError
            The budget is spent, or the noise is too small for the lattice; nothing was counted for the latter.
        StorageFullError
            It cannot be written down; nothing was released.
        """
        # What is no update at all costs nothing.
        require_room(base.schema, self.setting.sigma)
        length_of(base, local)
        # 1. Written down.
        self._spent = self._file.change(lambda spent: self._one_more(spent, base.round + 1))
        # 2. Noise.
        setting = self.setting
        return clipped_and_noised(base, local, clip_norm=setting.clip_norm, sigma=setting.sigma, normal=self._normal)

    def _one_more(self, spent: Spent, round_: int) -> Spent:
        if not self._fits(spent):
            raise UsageError(f"the privacy budget ε = {self.setting.epsilon:g} is spent", client=spent.client, round=round_)
        return spent.after(self.setting.noise_multiplier, round_)

    def _fits(self, spent: Spent) -> bool:
        if self.setting.epsilon is None:
            return True
        return epsilon_of(spent.after(self.setting.noise_multiplier, 0).released, self.setting.delta) <= self.setting.epsilon


def epsilon_of(released: Iterable[tuple[float, int]], delta: float) -> float:
    """Return the ε of so many releases, each with its noise multiplier, at a δ; exact to a millionth.

    Raises
    ------
    ConfigurationError
        The library is not installed.
    """
    return _epsilon(tuple(released), delta)


@lru_cache(maxsize=256)
def _epsilon(released: tuple[tuple[float, int], ...], delta: float) -> float:
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigurationError(
            "what privacy costs is added up by dp-accounting, which is not installed", hint="pip install 'refold[privacy]'"
        ) from error
    if not released:
        return 0.0
    # Gaussian mechanisms one after another are one whose inverse square multiplier is the sum of theirs, exactly.
    together = math.sqrt(sum(count / (multiplier / SENSITIVITY) ** 2 for multiplier, count in released))
    return float(dp_accounting.get_epsilon_gaussian(1.0 / together, delta))
