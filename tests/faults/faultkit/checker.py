"""The checker of `tests.checker`, given what a bus holds and what an archive kept."""

from __future__ import annotations

from pathlib import Path

import blake3

from faultkit.archive import all_events
from refold.bus.contract import Bus
from refold.bus.topics import is_chunk
from tests.checker import Findings, Log, check_log, follow, read_topic


def check(
    bus: Bus, federation: str, archive: Path | None = None, *, check_previous: bool = True, folds: bool = True
) -> Findings:
    """Check a federation's whole log.

    Parameters
    ----------
    archive
        Where updates went that were deleted since; without it only what still lies in the topic can be counted.
    check_previous
        False plants a bug: every commit of `accepted` counts, whatever it follows.
    folds
        Also fold the model of every round.
    """
    # `rounds` first: what it covers must then be in `accepted`.
    rounds, _ = follow(f"{federation}.rounds", read_topic(bus, f"{federation}.rounds"))
    topic = f"{federation}.accepted"
    accepted, stale = follow(topic, read_topic(bus, topic), check_previous=check_previous)
    sent = all_events(bus, f"{federation}.updates", archive)
    log = Log(accepted, rounds, sent, _chunks(bus, f"{federation}.deltas"), _chunks(bus, f"{federation}.steps"), stale)
    return check_log(log, folds=folds and check_previous)


def _chunks(bus: Bus, topic: str) -> dict[bytes, bytes]:
    """Return a topic's chunks by their digests."""
    values = [record.value for record in read_topic(bus, topic) if is_chunk(record.headers)]
    return {blake3.blake3(value).digest(): value for value in values if value is not None}
