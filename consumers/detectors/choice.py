"""Detectors by name, those of other packages among them: who installs one under `refold.detectors` can choose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from refold.consumers.detectors.autoencoder import Autoencoder
from refold.consumers.detectors.contract import Detector
from refold.consumers.detectors.deviation import Deviation
from refold.consumers.detectors.direction import Direction
from refold.consumers.detectors.forest import Forest
from refold.consumers.detectors.gan import Gan
from refold.consumers.detectors.neighbours import LocalOutlier, Neighbours
from refold.consumers.detectors.norm import Norm, TensorNorm
from refold.consumers.detectors.one_class import OneClass
from refold.consumers.detectors.pattern import LEAST_RATE, MOST_RATE, RATE, Pattern
from refold.consumers.detectors.prediction import Prediction
from refold.consumers.detectors.quantile import Quantile
from refold.consumers.detectors.ranks import Ranks
from refold.consumers.detectors.reported import Reported
from refold.consumers.detectors.root import Root
from refold.consumers.detectors.signs import Signs
from refold.consumers.detectors.tree import Tree
from refold.consumers.detectors.twins import Twins
from refold.schemas.errors import UsageError

GROUP = "refold.detectors"
_ALL = (
    *(Norm, TensorNorm, Quantile, Direction, Pattern, Deviation, Signs, Ranks, Twins, Prediction),
    *(Forest, OneClass, Neighbours, LocalOutlier, Tree, Autoencoder, Gan, Reported, Root),
)
OWN: dict[str, Callable[[], Detector]] = {kind.name: kind for kind in _ALL}
DEFAULT = ("norm", "tensor-norm", "quantile", "direction", "pattern")


FALSE_ALARM_PPM = "false_alarm_ppm"
"""Setting of a federation's defence: the false-alarm rate in millionths, where it is not the usual one."""


def require_rate(rate: float) -> None:
    """Refuse a false-alarm rate that detectors are not calibrated to.

    Raises
    ------
    UsageError
        It is too low or too high.
    """
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise UsageError(f"a false-alarm rate of {rate} cannot be kept", hint=f"from {LEAST_RATE} to {MOST_RATE}")


def chosen(names: Sequence[str], *, false_alarm_rate: float = RATE) -> list[Detector]:
    """Return new detectors of these names: Refold's own, else those that installed packages offer.

    Parameters
    ----------
    false_alarm_rate
        For those that are calibrated to one.

    Raises
    ------
    UsageError
        There is none of a name.
    ConfigurationError
        One needs what is not installed.
    """
    found: list[Detector] = []
    for name in names:
        make = OWN.get(name)
        if make is None:
            offered = list(entry_points(group=GROUP, name=name))
            if not offered:
                hint = f"one of {', '.join(OWN)}, or install a package that has it"
                raise UsageError(f"there is no detector {name!r}", hint=hint)
            make = offered[0].load()
        found.append(Pattern(rate=false_alarm_rate) if make is Pattern else make())
    return found
