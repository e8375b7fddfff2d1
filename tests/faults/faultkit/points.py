"""Every durable write of every group and of a client, and a federation in which each happens in every round or two."""

from __future__ import annotations

import numpy as np

from faultkit.faults import Fault, both_sides

POINTS = {
    "consistency": ("checked/Attempted", "checked/Checked", "updates/offsets"),
    "detection": (
        "deltas/Chunk",
        "features/Chunk",
        "quarantine/Chunk",
        "quarantine/Quarantined",
        "accepted/EventList",
        "accepted/Commit",
        "updates/delete",
        "checked/delete",
    ),
    "aggregation": ("steps/Chunk", "rounds/EventList", "rounds/Commit"),
    "snapshots": (
        "snapshot-chunks/Chunk",
        "snapshots/SnapshotTaken",
        "snapshots/tombstone",
        "snapshot-chunks/tombstone",
        "snapshots/StepsMerged",
    ),
    "client": ("outbox/file", "outbox/put", "outbox/drop", "updates/Chunk", "updates/ClientUpdate", "health/Heartbeat"),
}
"""By group; a client's besides."""

PATCHES = (("refold.bus.ledger", "MAX_INLINE_EVENTS_BYTES", 400), ("refold.consumers.merging", "ROUNDS_A_TURN", 2))
"""So little goes into a commit that its events travel in records of their own, too, and steps are merged every other round."""


def busy_model(side: int) -> dict[str, np.ndarray]:
    """Return a model for chunks everywhere: updates, steps and snapshots for its size, features for its many tensors.

    Parameters
    ----------
    side
        Of its largest tensor, a square; at 420 a dense step takes more than goes inline.
    """
    return {"w": np.zeros((side, side), "f4"), **{f"t{n:03}": np.zeros(2, "f4") for n in range(260)}, "n": np.array(0)}


def deaths_of(group: str, times: int) -> list[Fault]:
    """Return death before and after each of a group's durable writes, the first to the last time."""
    return [fault for point in POINTS[group] for fault in both_sides(point, times)]
