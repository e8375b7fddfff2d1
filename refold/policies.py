"""Policies that may change while a federation runs, as its maker says them."""

from __future__ import annotations

from collections.abc import Mapping

from refold.consumers.checkpoint_policy import SnapshotRules
from refold.consumers.healing import HealingPolicy
from refold.schemas.canonical import Scalar
from refold.schemas.events import SnapshotPolicy
from refold.schemas.plans import settings
from refold.schemas.policies import HEALING, SNAPSHOTS, PolicyChanged


def policies_of(
    healing: str | Mapping[str, Scalar], snapshots: SnapshotPolicy | Mapping[str, Scalar] | None
) -> tuple[PolicyChanged, ...]:
    """Return what the log says of policies from its beginning on, where that is not as usual.

    Raises
    ------
    UsageError
        A setting that there is not, or a value that it cannot have.
    """
    found = []
    if healing:
        said = settings({"mode": healing} if isinstance(healing, str) else healing)
        HealingPolicy.of(said)
        found.append(PolicyChanged(HEALING, said))
    if snapshots and not isinstance(snapshots, SnapshotPolicy):
        SnapshotRules.of(settings(snapshots))
        found.append(PolicyChanged(SNAPSHOTS, settings(snapshots)))
    return tuple(found)
