"""Fault tests: real processes on the SQLite bus, ended, frozen and starved. `faultkit` has what they share.

``REFOLD_FAULTS=long`` runs the longer variants: more kills, every crash point to its 20th passing, more flipped bits.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# Child processes get the parent's sys.path, and must find what they run by its name.
sys.path.insert(0, str(Path(__file__).parent))

from faultkit.brokers import ProxiedCluster
from faultkit.world import World

LONG = os.environ.get("REFOLD_FAULTS") == "long"


@pytest.fixture(scope="session")
def long_run() -> bool:
    """Whether the longer variants were asked for."""
    return LONG


@pytest.fixture
def chance(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Return random choices of this test's own, repeated by ``--seed``."""
    return random.Random(seed ^ zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Yield a folder for one federation; every process that it started is ended with the test."""
    with World(tmp_path) as world:
        yield world


@pytest.fixture(scope="session")
def proxied_cluster(kafka_is_available: None, seed: int) -> Iterator[ProxiedCluster]:
    """Yield three brokers behind fault proxies that all fault tests of the run share."""
    with ProxiedCluster(seed) as cluster:
        yield cluster


@pytest.fixture
def proxied(proxied_cluster: ProxiedCluster) -> Iterator[ProxiedCluster]:
    """Yield the brokers behind fault proxies; what a test did to them is mended for the next."""
    yield proxied_cluster
    proxied_cluster.restore()
