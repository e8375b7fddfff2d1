"""Fault 21 as the health group sees it: one client's own way to real brokers is bad, and is named as the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from faultkit.brokers import NETWORKS, ProxiedCluster
from faultkit.processes import wait_until
from faultkit.world import World

from refold.bus import open_bus
from refold.bus.clock import SystemClock
from refold.bus.ledger import LedgerReader
from refold.consumers.health import HealthSettings, Watcher
from refold.consumers.monitoring.kinds import LATE
from refold.consumers.standby import Seat
from refold.producers.heartbeat import HeartbeatThread
from refold.schemas.health import DEGRADED, HEALTHY, NETWORK
from refold.schemas.identity import ClientEnrolled
from refold.schemas.keys import SigningKey
from refold.testing import SteppedServer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

INTERVAL_S, KNOWN_BEATS = 0.4, 10
SLOW = NETWORKS["50 to 500 ms of latency"]


@pytest.fixture
def world(tmp_path: Path, proxied: ProxiedCluster) -> Iterator[World]:
    """Yield a folder for one federation behind the proxies."""
    with proxied.new_world(tmp_path) as world:
        yield world


@contextmanager
def beating(world: World, victim: str) -> Iterator[None]:
    """Let every client beat, the victim alone through the proxies."""
    with ExitStack() as stack:
        for name in world.clients:
            bus = stack.enter_context(open_bus(world.place.url if name == victim else world.fed.bus.url))
            thread = HeartbeatThread(
                bus,
                world.fed.topics,
                name,
                (1, b"session!"),
                SigningKey.load(world.place.key(name)),
                interval_s=INTERVAL_S,
                properties=(),
                clock=SystemClock(),
            )
            stack.callback(thread.close)
        yield


def test_f21_a_clients_own_slow_way_to_its_brokers_is_named_network_and_nobody_else_is_blamed(
    world: World, proxied: ProxiedCluster
) -> None:
    world.found(clients=6, heartbeat_s=INTERVAL_S, deadline_s=600.0)
    enrolled = LedgerReader(world.fed.bus, world.fed.topics.accepted)
    with SteppedServer(world.fed) as server:
        found: list[str] = []

        def are_enrolled() -> bool:
            server.settle()
            events = [event for entry in enrolled.poll() for event in entry.events]
            found.extend(event.client for event in events if isinstance(event, ClientEnrolled))
            return set(found) == set(world.clients)

        wait_until(are_enrolled, "the clients to be enrolled")
    enrolled.close()
    victim = world.clients[2]
    seat = Seat(world.fed.bus, world.fed.topics, world.fed.genesis, "judge", SystemClock(), None)
    watcher = Watcher(seat, HealthSettings())
    nodes = watcher.monitor.nodes

    def blamed() -> list[str]:
        watcher.turn()
        return [node.client for node in nodes.values() if (node.state, node.cause) == (DEGRADED, NETWORK)]

    with beating(world, victim):
        wait_until(
            lambda: not blamed() and len(nodes) == 6 and min(node.last.beat for node in nodes.values()) >= KNOWN_BEATS,
            "everyone to be known, and well",
            pause_s=0.05,
        )
        proxied.have(SLOW)
        wait_until(lambda: blamed() == [victim], "the network to be blamed", pause_s=0.05)
        assert nodes[victim].kind == LATE
        proxied.heal()
        wait_until(lambda: not blamed() and nodes[victim].state == HEALTHY, "the victim to be well again", pause_s=0.05)
    watcher.close()
