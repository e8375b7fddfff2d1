"""Servers are nodes too: the health group says which is silent or sick, and believes no forged word of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus import Place
from refold.bus.clock import ManualClock
from refold.bus.memory import MemoryBus
from refold.consumers.health import HealthSettings, Watcher
from refold.consumers.monitoring.servers import MOST_AT_ONCE
from refold.consumers.reported import follow_reports
from refold.consumers.standby import Seat
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Alert
from refold.schemas.condition import Condition
from refold.schemas.keys import SERVER_HEARTBEAT_TAG, SigningKey, log_key
from refold.schemas.updates import GroupStatus, ServerHeartbeat, server_heartbeat_digest

WELL = (GroupStatus("detection", 100, 0), GroupStatus("health", 50, 0))


class Servers:
    """Two servers that beat by hand, and the health group that watches them."""

    def __init__(self, bus: MemoryBus, keys: Path, clock: ManualClock) -> None:
        self.bus, self.clock, self.number = bus, clock, 0
        plan = refold.Plan(minimum=2, heartbeat_s=1.0, deadline_s=600.0)
        self.fed = refold.create("memory:toy", {"w": np.zeros(4, "f4")}, plan=plan, keys=keys, bus=bus)
        self.key = log_key(self.fed.keyring.secret(self.fed.genesis.secret_digest))
        self.watcher = self.new_watcher("w1")

    def new_watcher(self, member: str) -> Watcher:
        seat = Seat(self.bus, self.fed.topics, self.fed.genesis, member, self.clock, self.key)
        return Watcher(seat, HealthSettings())

    def beat(self, member: str, *, key: SigningKey | None = None, life: bytes = b"life-one", **changes: object) -> bytes:
        measures = Condition((("disk_used_ratio", 0.5),), 0, None, None)
        made = ServerHeartbeat(
            "toy", member, life, self.number, 1000, WELL, self.clock.wall_ms(), self.key.key_id, b"", measures
        )
        made = replace(made, **changes)
        signed = replace(made, signature=(key or self.key).sign(SERVER_HEARTBEAT_TAG, server_heartbeat_digest(made)))
        self.send(encode(signed))
        return encode(signed)

    def send(self, value: bytes) -> None:
        with self.bus.producer() as producer:
            producer.send(self.fed.topics.health, value, partition=0)

    def run(self, beats: int, *members: str, **ill: object) -> None:
        for _ in range(beats):
            for member in members:
                self.beat(member, **(ill if member == "b" else {}))
            self.number += 1
            for _ in range(2):
                self.clock.advance(0.5)
                self.watcher.turn()

    def alerts(self) -> list[tuple[str, str, str]]:
        with self.bus.consumer() as consumer:
            consumer.assign([Place(self.fed.topics.alerts, 0)])
            found = [
                decode(record.value or b"", Alert) for records in iter(lambda: consumer.poll(0.0), []) for record in records
            ]
        return [(alert.subject, alert.kind, alert.state) for alert in found]

    def states(self) -> dict[str, str]:
        reader, consumer = follow_reports(self.bus, self.fed.topics, self.fed.genesis)
        consumer.close()
        return {node.client: node.state for node in reader.nodes()}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    clock = ManualClock(1_800_000_000.0)
    with MemoryBus(clock=clock.monotonic_s) as bus:
        yield Servers(bus, tmp_path, clock)


def test_a_server_that_falls_silent_is_told_of_and_shown_among_the_nodes(servers: Servers) -> None:
    servers.run(12, "a", "b")
    assert servers.states() == {"server a": "healthy", "server b": "healthy"}
    servers.run(12, "a")
    assert servers.states() == {"server a": "healthy", "server b": "dead"}
    assert servers.alerts() == [("server b", "silent", "suspect"), ("server b", "silent", "dead")]
    successor = servers.new_watcher("w2")
    assert successor.servers.monitor.nodes["server b"].state == "dead"


def test_a_server_that_is_stopped_in_order_alarms_nobody_and_is_known_no_more(servers: Servers) -> None:
    servers.run(12, "a", "b")
    servers.run(1, "a", "b", groups=())
    servers.run(8, "a")
    assert servers.states() == {"server a": "healthy"}
    assert servers.alerts() == []


@pytest.mark.parametrize(
    ("ill", "kind"),
    [
        ({"groups": (GroupStatus("detection", 90_000, 0),)}, "group"),
        ({"groups": (GroupStatus("detection", 100, 3),)}, "group"),
        ({"condition": Condition((("disk_used_ratio", 0.99),), 0, None, None)}, "disk"),
    ],
)
def test_a_server_that_is_sick_is_degraded_until_it_is_well(servers: Servers, ill: dict[str, object], kind: str) -> None:
    servers.number = 100  # It has been there for longer than a group may take for one step.
    servers.run(12, "a", "b")
    servers.run(3, "a", "b", **ill)
    assert servers.states() == {"server a": "healthy", "server b": "degraded"}
    servers.run(10, "a", "b")
    assert servers.alerts() == [("server b", kind, "degraded"), ("server b", "recovered", "healthy")]


def test_where_no_server_is_heard_at_all_the_bus_is_looked_at_first(servers: Servers) -> None:
    servers.run(12, "a", "b")
    servers.run(9)
    assert set(servers.states().values()) == {"healthy"}


def test_f40_a_forged_word_of_a_server_or_an_old_one_changes_nothing(servers: Servers) -> None:
    mallory = SigningKey.generate()
    servers.run(12, "a", "b")
    old = servers.beat("b")
    for _ in range(12):
        for number in range(3):
            servers.beat("b", key=mallory, beat=servers.number + number)
            servers.beat("a", key=mallory, groups=())
            servers.beat(f"ghost-{number}", key=mallory)
        servers.send(old)
        servers.run(1, "a")
    assert servers.states() == {"server a": "healthy", "server b": "dead"}
    assert servers.watcher.servers.ignored["forged"] > 0


def test_f40_a_flood_of_forged_servers_crowds_out_no_true_one(servers: Servers) -> None:
    mallory = SigningKey.generate()
    servers.run(12, "a", "b")
    for _ in range(4):
        for number in range(MOST_AT_ONCE + 40):
            servers.beat(f"ghost-{number}", key=mallory)
        servers.run(1, "a", "b")
    assert servers.states() == {"server a": "healthy", "server b": "healthy"}
    assert servers.watcher.servers.ignored["flood"] > 0
