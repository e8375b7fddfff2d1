"""``docker/compose.yaml`` as far as it can be judged without an engine: its brokers are the launcher's, and nothing dangles."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from refold.testing.kafka.jars import kafka_version
from refold.testing.kafka.nodes import HEAP
from refold.testing.kafka.settings import CONTROLLER, EXTERNAL, INTERNAL, PLACED, shared_settings

Services = dict[str, Any]

DOCKER = Path(__file__).resolve().parents[2] / "docker"
CLUSTERS = {1: ("kafka",), 3: ("kafka-1", "kafka-2", "kafka-3")}
NOT_BROKER_SETTINGS = {"KAFKA_HEAP_OPTS"}


def broker_settings(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return a container's environment as the image makes broker settings of it."""
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
        for name, value in environment.items()
        if name.startswith("KAFKA_") and name not in NOT_BROKER_SETTINGS
    }


def differences(services: Services) -> Iterator[str]:
    """Yield every setting in which a broker of the compose file differs from the launcher's."""
    for nodes, names in CLUSTERS.items():
        wanted = shared_settings(nodes)
        for name in names:
            found = broker_settings(services[name]["environment"])
            yield from (f"{name}: no {setting}" for setting in (wanted.keys() | PLACED) - found.keys())
            yield from (f"{name}: {setting}, which the launcher leaves" for setting in found.keys() - wanted.keys() - PLACED)
            yield from (
                f"{name}: {s}={found[s]}, not {wanted[s]}" for s in wanted.keys() & found.keys() if found[s] != wanted[s]
            )


def test_brokers_have_the_launchers_settings(services: Services) -> None:
    assert list(differences(services)) == []


@pytest.mark.parametrize(
    ("broker", "setting", "value"),
    [
        ("kafka", "KAFKA_AUTO_CREATE_TOPICS_ENABLE", "true"),
        ("kafka-2", "KAFKA_MIN_INSYNC_REPLICAS", 1),
        ("kafka-3", "KAFKA_LOG_CLEANER_BACKOFF_MS", 1),
        ("kafka-1", "KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE", None),
        ("kafka", "KAFKA_NODE_ID", None),
    ],
)
def test_a_planted_difference_is_named(services: Services, broker: str, setting: str, value: object) -> None:
    changed = copy.deepcopy(services)
    if value is None:
        del changed[broker]["environment"][setting]
    else:
        changed[broker]["environment"][setting] = value
    (said,) = differences(changed)
    assert said.startswith(f"{broker}: ")
    assert setting.removeprefix("KAFKA_").lower().replace("_", ".") in said


@pytest.mark.parametrize("nodes", CLUSTERS)
def test_brokers_of_a_cluster_find_each_other(services: Services, nodes: int) -> None:
    found = [broker_settings(services[name]["environment"]) for name in CLUSTERS[nodes]]
    assert [each["node.id"] for each in found] == [str(number) for number in range(1, nodes + 1)]
    voters = ",".join(f"{number}@{name}:29092" for number, name in enumerate(CLUSTERS[nodes], 1))
    for name, each in zip(CLUSTERS[nodes], found, strict=True):
        assert each["controller.quorum.voters"] == voters
        assert each["listeners"] == f"{EXTERNAL}://:9092,{INTERNAL}://:19092,{CONTROLLER}://:29092"
        assert f"{INTERNAL}://{name}:19092" in each["advertised.listeners"]
        assert services[name]["hostname"] == name


def test_the_host_reaches_each_broker_at_the_port_that_it_is_told_and_nobody_else_does(services: Services) -> None:
    for name in (name for names in CLUSTERS.values() for name in names):
        (published,) = services[name]["ports"]
        address, outside, inside = published.split(":")
        assert (address, inside) == ("127.0.0.1", "9092")
        told = broker_settings(services[name]["environment"])["advertised.listeners"]
        assert f"{EXTERNAL}://localhost:{outside}" in told.split(",")


def test_the_image_is_the_version_of_the_jars_and_has_as_much_memory(services: Services) -> None:
    for names in CLUSTERS.values():
        for name in names:
            assert services[name]["image"] == f"apache/kafka:{kafka_version()}"
            assert services[name]["environment"]["KAFKA_HEAP_OPTS"] == HEAP


def test_one_broker_starts_unless_a_profile_is_named(services: Services) -> None:
    profiles = {name: service.get("profiles") for name, service in services.items()}
    assert profiles == {
        "kafka": ["alone"],
        **{name: ["cluster"] for name in CLUSTERS[3]},
        **dict.fromkeys(("init", "server", "ward-1", "ward-2", "ward-3")),
    }
    assert "COMPOSE_PROFILES=alone" in (DOCKER / ".env").read_text().splitlines()


def test_everybody_finds_whichever_brokers_run_under_one_name(services: Services) -> None:
    for name in CLUSTERS[3]:
        assert services[name]["networks"]["default"]["aliases"] == ["kafka"]
    for name in ("init", "server", "ward-1", "ward-2", "ward-3"):
        assert services[name]["environment"]["REFOLD_BUS"] == "kafka://kafka:19092/digits"
    waited_for = services["init"]["depends_on"]
    assert waited_for.keys() == {name for names in CLUSTERS.values() for name in names}
    assert all(each == {"condition": "service_healthy", "required": False} for each in waited_for.values())


def test_a_client_sees_its_own_key_and_no_other(services: Services) -> None:
    for ward in ("ward-1", "ward-2", "ward-3"):
        assert services[ward]["volumes"] == [f"{ward}:/keys/{ward}"]
        assert f"/keys/{ward}/key.pem" in services[ward]["command"]
    assert services["server"]["volumes"] == ["server:/keys/server"]
