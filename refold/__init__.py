"""Refold: federated learning as a fold over a log.

The model of a federation is rebuilt from an append-only log of client updates, bit for bit, for any round.

    >>> import refold
    >>> federation = refold.create("sqlite:ward.db", initial=weights, plan=refold.Plan(minimum=4, rounds=20))

Parts are loaded on use, so that a client never imports what only a server needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refold.bus.security import KafkaSecurity
    from refold.detection import Cohort, Detection, DetectionConfig, Verdict
    from refold.federation import Federation, connect
    from refold.founding import create
    from refold.plan import Plan
    from refold.producers.checkpoint import ClientCheckpoint
    from refold.producers.privacy import Privacy
    from refold.schemas.errors import RefoldError
    from refold.schemas.events import SnapshotPolicy
    from refold.schemas.keys import SigningKey
    from refold.schemas.plans import Schedule
    from refold.state.model_state import ModelState
    from refold.state.optimizers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

__version__ = "0.1.0"

_PLACES = {
    "ClientCheckpoint": "refold.producers.checkpoint",
    "Cohort": "refold.detection",
    "Detection": "refold.detection",
    "DetectionConfig": "refold.detection",
    "Verdict": "refold.detection",
    "Federation": "refold.federation",
    "connect": "refold.federation",
    "create": "refold.founding",
    "KafkaSecurity": "refold.bus.security",
    "Plan": "refold.plan",
    "Privacy": "refold.producers.privacy",
    "RefoldError": "refold.schemas.errors",
    "SnapshotPolicy": "refold.schemas.events",
    "SigningKey": "refold.schemas.keys",
    "Schedule": "refold.schemas.plans",
    "ModelState": "refold.state.model_state",
    "FedAdagrad": "refold.state.optimizers",
    "FedAdam": "refold.state.optimizers",
    "FedAvg": "refold.state.optimizers",
    "FedAvgM": "refold.state.optimizers",
    "FedYogi": "refold.state.optimizers",
}

__all__ = [
    "ClientCheckpoint",
    "Cohort",
    "Detection",
    "DetectionConfig",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "Federation",
    "KafkaSecurity",
    "ModelState",
    "Plan",
    "Privacy",
    "RefoldError",
    "Schedule",
    "SigningKey",
    "SnapshotPolicy",
    "Verdict",
    "connect",
    "create",
]


def __getattr__(name: str) -> Any:
    """Load a public name's part on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'refold' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
