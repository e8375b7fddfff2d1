"""The bus that a benchmark runs on: a file, a cluster that is there, or one that it starts and ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STARTED = "kafka"


@contextmanager
def brokers(bus: str, nodes: int = 1) -> Iterator[str]:
    """Yield ``kafka://HOST:PORT[,…]``: as given, or of brokers started for as long as this lasts if `bus` is ``kafka``."""
    if bus != STARTED:
        yield bus.rstrip("/")
        return
    from refold.testing.kafka import Cluster

    with Cluster(nodes) as cluster:
        yield f"kafka://{cluster.bootstrap}"


@contextmanager
def federation_url(bus: str, folder: Path, name: str = "bench") -> Iterator[str]:
    """Yield the URL of a federation that is not there yet: in a file of `folder` if `bus` is ``sqlite``, else on brokers."""
    if bus == "sqlite":
        yield f"sqlite:{folder}/{name}.db"
    elif bus.startswith("kafka"):
        with brokers(bus) as url:
            yield f"{url}/{name}-{os.urandom(3).hex()}"
    else:
        yield bus
