"""Fault 20 on a real broker: a topic deleted or made anew behind Refold's back. Refused with the fix, never begun from zero.

What a topic's settings can do is in `test_doctor.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from kafka.admin import KafkaAdminClient

import refold
from refold.bus import Place, TopicSpec
from refold.federation import Federation
from refold.schemas.errors import BusError, ConfigurationError, IntegrityError, RefoldError, TryAgainError
from refold.schemas.keys import SigningKey
from refold.testing import craft_update, eventually, send_update
from refold.testing.kafka import Cluster

pytestmark = pytest.mark.kafka

TOPICS = ("updates", "checked", "commands", "accepted")


@pytest.fixture
def federation(kafka: Cluster, tmp_path: Path) -> Iterator[Federation]:
    """Yield a federation that made a round and that nobody serves."""
    url = f"{kafka.url}/lost-{os.urandom(3).hex()}"
    plan = refold.Plan(minimum=1, deadline_s=None)
    with refold.create(url, {"w": np.zeros(4, np.float32)}, plan=plan, partitions=1, keys=tmp_path / "keys") as made:
        key = SigningKey.load_or_create(tmp_path / "ann.pem")
        made.enroll("ann", key.public)
        with made.serve():
            eventually(lambda: made.history().lineage.opened is not None)
            send_update(made, craft_update(made, "ann", key), "ann")
            eventually(lambda: made.head == 1)
    with refold.connect(url, keys=tmp_path / "keys") as found:
        yield found


def delete(kafka: Cluster, federation: Federation, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        admin.delete_topics([topic])
    finally:
        admin.close()
    eventually(lambda: topic not in federation.bus.topics())


def refusal(federation: Federation) -> RefoldError:
    """Serve, and return the error that the server refuses or ends with."""
    try:
        with federation.serve() as server:
            for _ in range(100):
                with suppress(BusError, TryAgainError):
                    server.wait(0.1)
    except RefoldError as error:
        return error
    raise AssertionError(f"it serves, and the newest round is {federation.head}")


@pytest.mark.parametrize("short", [*TOPICS, "rounds"])
def test_f20_a_deleted_topic_is_refused_by_its_name(kafka: Cluster, federation: Federation, short: str) -> None:
    topic = getattr(federation.topics, short)
    delete(kafka, federation, topic)
    error = refusal(federation)
    assert topic in str(error)
    assert error.exit_code in (ConfigurationError.exit_code, IntegrityError.exit_code)
    assert error.hint


@pytest.mark.parametrize("short", TOPICS)
def test_f20_a_topic_made_anew_is_refused_and_nothing_begins_from_zero(
    kafka: Cluster, federation: Federation, short: str
) -> None:
    topic = getattr(federation.topics, short)
    [spec] = [spec for spec in federation.topics.specs(1) if spec.name == topic]
    delete(kafka, federation, topic)
    eventually(lambda: made_anew(federation, spec))
    error = refusal(federation)
    assert isinstance(error, IntegrityError)
    assert topic in str(error)
    assert "refold import" in error.hint
    assert federation.bus.end_offset(Place(topic, 0)) == 0


def test_f20_a_federation_whose_log_was_deleted_is_neither_read_nor_made_anew(
    kafka: Cluster, federation: Federation, tmp_path: Path
) -> None:
    url = f"{kafka.url}/{federation.name}"
    delete(kafka, federation, federation.topics.accepted)
    for attempt in (
        lambda: refold.connect(url).genesis,
        lambda: refold.create(url, {"w": np.zeros(4, np.float32)}, keys=tmp_path / "keys"),
    ):
        with pytest.raises(IntegrityError, match="its rounds are there"):
            attempt()


def test_f20_rounds_made_anew_are_derived_again_from_the_accepted_log(kafka: Cluster, federation: Federation) -> None:
    digest = federation.rebuild(1).digest
    [spec] = [spec for spec in federation.topics.specs(1) if spec.name == federation.topics.rounds]
    delete(kafka, federation, spec.name)
    eventually(lambda: made_anew(federation, spec))
    with federation.serve():
        eventually(lambda: federation.head == 1)
    assert federation.rebuild(1).digest == digest
    assert federation.verify().is_sound


def made_anew(federation: Federation, spec: TopicSpec) -> bool:
    try:
        federation.bus.create_topics([spec])
    except BusError:
        return False  # It is still being deleted.
    return spec.name in federation.bus.topics()
