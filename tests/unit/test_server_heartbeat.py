"""A server's heartbeats: its groups, its log, signed with the log's key."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from refold.bus import Place
from refold.bus.clock import SystemClock
from refold.bus.memory import MemoryBus
from refold.bus.topics import Topics
from refold.consumers.server import AtWork
from refold.consumers.server_heartbeat import NEVER_MS, ServerHeartbeatThread
from refold.schemas.canonical import decode
from refold.schemas.keys import SERVER_HEARTBEAT_TAG, SigningKey, verify
from refold.schemas.updates import GroupStatus, ServerHeartbeat, server_heartbeat_digest

KEY = SigningKey.generate()
TOPICS = Topics("toy")


def test_a_servers_beats_tell_its_groups_and_what_they_warn_of_and_are_signed(tmp_path: Path) -> None:
    bus = MemoryBus()
    bus.create_topics([spec for spec in TOPICS.specs(1) if spec.name == TOPICS.health])
    members = [AtWork("detection", 0.25, 0), AtWork("health", math.inf, 3)]
    thread = ServerHeartbeatThread(
        bus, TOPICS, "host-1", lambda: members, KEY, interval_s=0.01, clock=SystemClock(), folder=tmp_path
    )
    logging.getLogger("refold.test_server_heartbeat").warning("detection starts again from the log in 0.1 s: the bus is gone")
    try:
        beats = _beats(bus)
    finally:
        thread.close()
    beat = beats[-1]
    assert verify(KEY.public, SERVER_HEARTBEAT_TAG, server_heartbeat_digest(beat), beat.signature)
    assert beat.groups == (GroupStatus("detection", 250, 0), GroupStatus("health", NEVER_MS, 3))
    assert [each.beat for each in beats] == list(range(len(beats)))
    assert beat.condition is not None
    assert beat.condition.log is not None
    assert beat.condition.log.warnings == 1
    assert beat.condition.measure("process_memory_bytes")
    assert logging.getLogger("refold").handlers == []


def _beats(bus: MemoryBus) -> list[ServerHeartbeat]:
    found: list[ServerHeartbeat] = []
    deadline_s = time.monotonic() + 20
    with bus.consumer() as consumer:
        consumer.assign([Place(TOPICS.health, 0)])
        while time.monotonic() < deadline_s:
            found += [decode(record.value or b"", ServerHeartbeat) for record in consumer.poll(0.05)]
            if found and found[-1].condition and found[-1].condition.log and found[-1].condition.log.warnings:
                return found
    raise AssertionError("no beat told of the warning")
