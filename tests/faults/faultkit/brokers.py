"""Three brokers with a fault proxy in front of each: what clients and servers reach is the proxies alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from kafka.admin import KafkaAdminClient

from faultkit.world import World
from refold.testing.kafka import Cluster
from refold.testing.kafka.cluster import free_ports
from refold.testing.proxy import TO_BROKER, TO_CLIENT, FaultProxy, Network

SETTINGS = {
    # A broker that was killed is let in again only once the session of its former life is over: by default 9 s.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}

NETWORKS = {
    "50 to 500 ms of latency": Network(delay_s=(0.05, 0.5)),
    "1 Mbit/s": Network(bytes_per_s=125_000),
    "a stalled broker": Network(holds=frozenset({TO_BROKER, TO_CLIENT})),
    "questions lost one way": Network(holds=frozenset({TO_BROKER})),
    "answers lost one way": Network(holds=frozenset({TO_CLIENT})),
    "half-open connections": Network(silent=True),
    "a broker that refuses": Network(accepts=False),
}
"""Bad networks; flapping and resets are deeds of a proxy."""

FLIPPING = Network(flip_every_bytes=400_000, flips_spare_bytes=2048)
"""Changes bits inside large records, which have a checksum; the rest of Kafka's protocol has none but TLS's."""


class ProxiedCluster:
    """A cluster of three and its proxies. Use as a context manager.

    Parameters
    ----------
    seed
        Of the proxies' delays and flips.
    """

    def __init__(self, seed: int = 0) -> None:
        ports = free_ports(3)
        self.cluster = Cluster(3, settings=SETTINGS, advertised=dict(enumerate(ports, 1)))
        self.proxies = {
            node: FaultProxy(self.cluster.ports[node], port=port, seed=seed + node) for node, port in enumerate(ports, 1)
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.cluster)
            for proxy in self.proxies.values():
                stack.enter_context(proxy)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.close()

    @property
    def ids(self) -> tuple[int, ...]:
        """The nodes."""
        return self.cluster.ids

    def new_world(self, folder: Path) -> World:
        """Return a federation's folder; its processes reach the brokers through the proxies, the test itself does not."""
        name = f"proxied-{os.urandom(3).hex()}"
        return World(folder, f"{self.cluster.url}/{name}", f"{self.cluster.inner_url}/{name}")

    def have(self, network: Network, nodes: Iterable[int] = ()) -> None:
        """Give these nodes' proxies, or all, a network."""
        for node in tuple(nodes) or self.ids:
            self.proxies[node].network = network

    def heal(self) -> None:
        """Make all networks good ones."""
        for proxy in self.proxies.values():
            proxy.heal()

    @property
    def flips(self) -> int:
        """How many bits were flipped on the way."""
        return sum(proxy.carried.flips for proxy in self.proxies.values())

    def restore(self) -> None:
        """Heal all networks, thaw what is frozen and start what is down."""
        self.heal()
        self.cluster.restore()

    def leader_of(self, topic: str, partition: int = 0) -> int:
        """Return the node that leads a partition."""
        admin = KafkaAdminClient(bootstrap_servers=self.cluster.bootstrap)
        try:
            (found,) = admin.describe_topics([topic])
            return int(found["partitions"][partition]["leader_id"])
        finally:
            admin.close()
