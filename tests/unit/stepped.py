"""A federation in memory whose server is stepped by hand: what tests of intake and identity share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import refold
from refold.bus import Place
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.federation import Federation
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord
from refold.schemas.keys import SigningKey
from refold.testing import craft_update, send_update

NAMES = ("ann", "bob", "eve")
KEYS = {name: SigningKey.generate() for name in NAMES}


def make(bus: MemoryBus, keys: Path, **said: Any) -> Federation:
    """Make a federation of `NAMES`, for a round of which all three are needed, with the plan's settings changed."""
    plan = refold.Plan(**{"minimum": 3, "deadline_s": None, "heartbeat_s": 1.0, **said})
    made = refold.create("memory:toy", {"w": np.zeros((40, 5), "f4")}, plan=plan, keys=keys, partitions=1, bus=bus)
    for name in NAMES:
        made.enroll(name, KEYS[name].public)
    return made


def events(federation: Federation, *kinds: type) -> list[Any]:
    """Return the log's events of these kinds."""
    return [e for entry in read_all(federation.bus, federation.topics.accepted) for e in entry.events if isinstance(e, kinds)]


def send(federation: Federation, name: str = "ann", key: SigningKey | None = None, **changes: Any) -> int:
    """Send a client's update and return its offset."""
    return send_update(federation, craft_update(federation, name, key or KEYS[name], **changes), name)


def records(federation: Federation, topic: str, *kinds: type) -> list[Any]:
    """Return a topic's records of these kinds."""
    with federation.bus.consumer() as consumer:
        partitions = federation.bus.topics()[topic].partitions
        consumer.assign([Place(topic, partition) for partition in range(partitions)])
        found = []
        while batch := consumer.poll():
            for record in batch:
                try:
                    found.append(decode(record.value or b"", *kinds))
                except InvalidRecord:
                    continue
        return found
