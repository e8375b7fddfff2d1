"""What tests against real brokers share beside the fixtures `kafka` and `kafka_cluster`: small programs, the compose file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from refold.bus import TopicSpec
from refold.bus.kafka import KafkaBus
from refold.testing.kafka import Authority, Cluster, Listener, Secured

COMPOSE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"


@pytest.fixture
def bus(kafka: Cluster) -> Iterator[KafkaBus]:
    """Yield a bus on the run's broker."""
    with KafkaBus((kafka.bootstrap,), federation="suite") as opened:
        yield opened


@pytest.fixture(scope="session")
def secured_kafka(kafka_is_available: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a broker that asks who is calling, and has one port for each thing that may be wrong with a port."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    users = ("founder", "server", "operator", "auditor", "ward-1", "ward-2", "stranger", "changing")
    more = {
        "EXPIRED": Listener("SSL", authority.issue("expired", valid=timedelta(days=-1))),
        "ELSEWHERE": Listener("SSL", authority.issue("elsewhere", hosts=["broker.example"])),
        "PLAIN": Listener("PLAINTEXT"),
        "OPEN": Listener("SASL_PLAINTEXT"),
    }
    with Cluster(secured=Secured(folder, {user: os.urandom(12).hex() for user in users}, more)) as cluster:
        yield cluster


@pytest.fixture
def topic(bus: KafkaBus) -> Callable[..., str]:
    """Return what makes a topic of a new name."""

    def make(**settings: Any) -> str:
        name = f"driver-{os.urandom(6).hex()}"
        bus.create_topics([TopicSpec(name, **settings)])
        return name

    return make


@pytest.fixture
def services() -> dict[str, Any]:
    """Return the services of ``docker/compose.yaml`` with anchors and merges resolved."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return what writes a shell script into ``tmp_path/bin`` under a name."""

    def write(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write
