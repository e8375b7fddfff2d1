"""`refold doctor` on a real broker, and what a server refuses to start on: settings planted with Kafka's own words."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

import refold
from refold.bus import open_bus
from refold.cli import run
from refold.schemas.errors import ConfigurationError
from refold.testing.kafka import Cluster

pytestmark = pytest.mark.kafka

Doctor = Callable[[], tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def url(kafka: Cluster, tmp_path: Path) -> str:
    """Return the URL of a new federation."""
    url = f"{kafka.url}/doctor-{os.urandom(3).hex()}"
    refold.create(url, {"w": np.zeros(4, np.float32)}, partitions=2, keys=tmp_path / "keys").close()
    return url


@pytest.fixture
def doctor(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    def examine() -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        code = run(["doctor", "--bus", url, "--keys", str(tmp_path / "keys"), "--json"])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return examine


def set_topic(kafka: Cluster, topic: str, **settings: str) -> None:
    """Change a topic's settings as an operator would who does not know better."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        named = {name.replace("_", "."): value for name, value in settings.items()}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=named)])
        # It is acknowledged by the controller, and the broker, which is asked what is set, learns of it a moment later.
        deadline = time.monotonic() + 10
        while not is_set(admin, topic, named) and time.monotonic() < deadline:
            pass
    finally:
        admin.close()


def is_set(admin: KafkaAdminClient, topic: str, wanted: dict[str, str]) -> bool:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict.fromkeys(wanted))
    [found] = [topics[topic] for topics in admin.describe_configs([resource], config_filter="all").values()]
    return all(found[name]["value"] == value for name, value in wanted.items())


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


def test_a_sound_federation_has_no_failure_and_one_broker_is_a_warning(doctor: Doctor) -> None:
    code, found = doctor()
    assert code == 0
    assert {one["severity"] for one in found} == {"ok", "warning"}
    assert [one["subject"] for one in found if one["severity"] == "warning"] == ["brokers"]
    assert {"version", "packages", "logs", "keys", "clock"} <= {one["subject"] for one in found}


@pytest.mark.parametrize(
    ("topic", "settings", "what"),
    [
        ("accepted", {"retention_ms": "60000"}, "deletes what is older than 60 s"),
        ("updates", {"retention_bytes": "1000000"}, "the oldest records go"),
        ("rounds", {"cleanup_policy": "compact"}, "older records of a key are lost"),
        ("snapshots", {"cleanup_policy": "delete"}, "grows for ever"),
        ("deltas", {"max_message_bytes": "100000"}, "the largest records are refused"),
        ("accepted", {"unclean_leader_election_enable": "true"}, "acknowledged records are gone"),
    ],
)
def test_a_setting_that_loses_data_is_a_failure_and_its_fix_is_the_command_that_mends_it(
    kafka: Cluster, url: str, doctor: Doctor, tmp_path: Path, topic: str, settings: dict[str, str], what: str
) -> None:
    full = f"{name_of(url)}.{topic}"
    set_topic(kafka, full, **settings)
    code, found = doctor()
    failures = [one for one in found if one["severity"] == "failure"]
    assert code == 1
    assert any(one["subject"] == full and what in one["what"] for one in failures), found
    with refold.connect(url, keys=tmp_path / "keys") as federation, pytest.raises(ConfigurationError, match="kafka-configs"):
        federation.serve()
    # The fix, word for word, as far as its settings go.
    for one in failures:
        name, _, value = one["fix"].partition("--add-config ")[2].partition("=")
        assert one["fix"].startswith(f"kafka-configs.sh --bootstrap-server {kafka.bootstrap} --alter")
        set_topic(kafka, full, **{name.replace(".", "_"): value.strip("[]")})
    code, found = doctor()
    assert not any(one["severity"] == "failure" and what in one["what"] for one in found)


def test_more_partitions_than_the_log_knows_are_a_failure(kafka: Cluster, url: str, doctor: Doctor) -> None:
    from kafka.admin import NewPartitions

    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        deltas = f"{name_of(url)}.deltas"
        admin.create_partitions({deltas: NewPartitions(total_count=5)})
        # As in `set_topic`.
        deadline = time.monotonic() + 10
        with open_bus(url) as bus:
            while bus.topics()[deltas].partitions < 5 and time.monotonic() < deadline:
                pass
    finally:
        admin.close()
    code, found = doctor()
    assert code == 1
    [failure] = [one for one in found if one["severity"] == "failure"]
    assert "keys have moved" in failure["what"]
    assert "refold export" in failure["fix"]
