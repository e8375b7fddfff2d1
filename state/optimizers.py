"""Server optimizers: how a cohort's mean delta becomes a change of the model.

Each computes elementwise in float64 with + − × ÷ √ alone, one NumPy operation at a time, so that every machine gets the same
bits: IEEE 754 rounds these five correctly, and nothing can be fused into a multiply-add. Slots hold √v rather than v, whose
range is twice as wide in bits.

Source: Reddi et al., "Adaptive Federated Optimization", 2021, algorithm 2; without bias correction, as there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from refold.schemas.errors import UsageError

Values = npt.NDArray[np.float64]
Result = tuple[Values, tuple[Values, ...]]


class Optimizer(Protocol):
    """A rule from mean delta and slots to change and slots. Elementwise: any part of a tensor may be given on its own."""

    @property
    def name(self) -> str:
        """The name that records carry."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots, in order."""

    def settings(self) -> tuple[tuple[str, float], ...]:
        """Return what `from_settings` needs to make it again."""

    def change(self, delta: Values, slots: tuple[Values, ...]) -> Result:
        """Return the parameters' change and the new slots; must not write to its arguments."""


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The weighted mean itself, times `lr`.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017.
    """

    name: ClassVar[str] = "fedavg"
    slots: ClassVar[tuple[str, ...]] = ()
    lr: float = 1.0

    def __post_init__(self) -> None:
        _check(self, lr=(0, math.inf))

    def settings(self) -> tuple[tuple[str, float], ...]:
        return _settings(self)

    def change(self, delta: Values, slots: tuple[Values, ...]) -> Result:
        return np.multiply(delta, self.lr), ()


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """Server momentum: ``m = β·m + Δ``, the change is ``lr·m``.

    Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", 2019.
    """

    name: ClassVar[str] = "fedavgm"
    slots: ClassVar[tuple[str, ...]] = ("m",)
    lr: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        _check(self, lr=(0, math.inf), beta=(0, 1))

    def settings(self) -> tuple[tuple[str, float], ...]:
        return _settings(self)

    def change(self, delta: Values, slots: tuple[Values, ...]) -> Result:
        momentum = np.add(np.multiply(slots[0], self.beta), delta)
        return np.multiply(momentum, self.lr), (momentum,)


@dataclass(frozen=True, slots=True)
class FedAdam:
    """``m = β1·m + (1−β1)·Δ``, ``v = β2·v + (1−β2)·Δ²``, the change is ``lr·m / (√v + τ)``."""

    name: ClassVar[str] = "fedadam"
    slots: ClassVar[tuple[str, ...]] = ("m", "root_v")
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self, lr=(0, math.inf), beta1=(0, 1), beta2=(0, 1), tau=(0, math.inf))

    def settings(self) -> tuple[tuple[str, float], ...]:
        return _settings(self)

    def change(self, delta: Values, slots: tuple[Values, ...]) -> Result:
        momentum = _blend(slots[0], delta, self.beta1)
        root = np.sqrt(_blend(np.square(slots[1]), np.square(delta), self.beta2))
        return _adaptive(momentum, root, self.lr, self.tau), (momentum, root)


@dataclass(frozen=True, slots=True)
class FedYogi:
    """As `FedAdam`, but v moves towards Δ² by at most ``(1−β2)·Δ²``."""

    name: ClassVar[str] = "fedyogi"
    slots: ClassVar[tuple[str, ...]] = ("m", "root_v")
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self, lr=(0, math.inf), beta1=(0, 1), beta2=(0, 1), tau=(0, math.inf))

    def settings(self) -> tuple[tuple[str, float], ...]:
        return _settings(self)

    def change(self, delta: Values, slots: tuple[Values, ...]) -> Result:
        momentum = _blend(slots[0], delta, self.beta1)
        squared, held = np.square(delta), np.square(slots[1])
        towards = np.multiply(np.multiply(squared, 1.0 - self.beta2), np.sign(np.subtract(held, squared)))
        root = np.sqrt(np.subtract(held, towards))
        return _adaptive(momentum, root, self.lr, self.tau), (momentum, root)


@dataclass(frozen=True, slots=True)
class FedAdagrad:
    """``m = β1·m + (1−β1)·Δ``, ``v = v + Δ²``, the change is ``lr·m / (√v + τ)``."""

    name: ClassVar[str] = "fedadagrad"
    slots: ClassVar[tuple[str, ...]] = ("m", "root_v")
    lr: float = 0.01
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self, lr=(0, math.inf), beta1=(0, 1), tau=(0, math.inf))

    def settings(self) -> tuple[tuple[str, float], ...]:
        return _settings(self)

    def change(self, delta: Values, slots: tuple[Values, ...]) -> Result:
        momentum = _blend(slots[0], delta, self.beta1)
        root = np.sqrt(np.add(np.square(slots[1]), np.square(delta)))
        return _adaptive(momentum, root, self.lr, self.tau), (momentum, root)


OPTIMIZERS: dict[str, type[Any]] = {kind.name: kind for kind in (FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad)}


def from_settings(name: str, settings: Iterable[tuple[str, float]]) -> Optimizer:
    """Return the optimizer that a record names.

    Raises
    ------
    UsageError
        Unknown name or setting, or a setting outside its range.
    """
    kind = OPTIMIZERS.get(name)
    if kind is None:
        raise UsageError(f"no optimizer {name!r}", hint=f"one of {', '.join(OPTIMIZERS)}")
    try:
        made: Optimizer = kind(**dict(settings))
    except TypeError as error:
        raise UsageError(f"{name} has no such setting: {error}") from error
    return made


def _settings(optimizer: Any) -> tuple[tuple[str, float], ...]:
    return tuple((field.name, float(getattr(optimizer, field.name))) for field in dataclasses.fields(optimizer))


def _check(optimizer: Any, **ranges: tuple[float, float]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(optimizer, name)
        above = value > low if name in ("lr", "tau") else value >= low
        if not (isinstance(value, int | float) and above and value < high):
            raise UsageError(f"{optimizer.name}: {name} = {value!r} lies outside {low:g} … {high:g}")


def _blend(held: Values, new: Values, beta: float) -> Values:
    return np.add(np.multiply(held, beta), np.multiply(new, 1.0 - beta))


def _adaptive(momentum: Values, root: Values, lr: float, tau: float) -> Values:
    return np.divide(np.multiply(momentum, lr), np.add(root, tau))
