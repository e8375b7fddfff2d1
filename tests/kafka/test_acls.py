"""A federation on a broker with ACLs on: everybody has the rights that `refold doctor --acls` prints, and not one more.

The printed commands are run word for word by Kafka's own tool. Then founder, operator, server, auditor and two clients, one
with an account and one with a certificate, do what they are for; all else is refused to a client, operation by operation.
"""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kafka.errors
import numpy as np
import pytest
from click.testing import CliRunner
from kafka.protocol.admin import (
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteGroupsRequest,
    DeleteRecordsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
    IncrementalAlterConfigsRequest,
)
from kafka.protocol.consumer import ListOffsetsRequest, OffsetCommitRequest
from kafka.protocol.metadata import FindCoordinatorRequest

import refold
from refold.bus import Bus, KafkaSecurity, Place, TopicSpec, open_bus
from refold.bus._kafka_answers import fetch_request
from refold.bus._kafka_batches import Sender, encode_record
from refold.bus._kafka_client import KafkaClient
from refold.bus._kafka_parcels import Parcel, produce_request
from refold.bus.topics import KEPT
from refold.cli.verbs import cli
from refold.producers.client import Client
from refold.schemas.erasure import ChangePruning, DeltasPruned
from refold.schemas.errors import ConfigurationError
from refold.testing.kafka import Cluster, run_tool

pytestmark = pytest.mark.kafka

NAME = "wards"
ROUNDS = 3
ROLES = {
    "founder": ["founder"],
    "server": ["server"],
    "operator": ["operator"],
    "auditor": ["auditor"],
    "client": ["ward-1", "ward-2"],
}
CLIENT_WRITES = {"updates", "health"}
CLIENT_READS = {"rounds", "steps", "snapshots", "snapshot-chunks"}
REFUSED = {
    kafka.errors.TopicAuthorizationFailedError.errno,
    kafka.errors.GroupAuthorizationFailedError.errno,
    kafka.errors.ClusterAuthorizationFailedError.errno,
}
TOPIC = 2


@dataclass
class World:
    """The broker, who may speak to it how, and where keys lie."""

    cluster: Cluster
    folder: Path

    @property
    def url(self) -> str:
        return f"{self.cluster.url}/{NAME}"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def account(self, user: str) -> KafkaSecurity:
        assert self.cluster.secured is not None
        return self.cluster.secured.account(user)

    def certificate(self, name: str) -> KafkaSecurity:
        assert self.cluster.secured is not None
        return self.cluster.secured.certificate(name)

    def connect(self, user: str) -> refold.Federation:
        return refold.connect(self.url, keys=self.keys, security=self.account(user))


def printed(world: World, *more: str) -> list[dict[str, Any]]:
    """Return what `refold doctor --acls` prints for everybody of this federation."""
    words = [f"--principal={role}={name}" for role, names in ROLES.items() for name in names]
    words += ["--bus", f"{world.cluster.certificate_url}/{NAME}", "--json", *more]
    told = CliRunner().invoke(cli, ["doctor", "--acls", *words])
    assert told.exit_code == 0, told.output
    return [json.loads(line) for line in told.output.splitlines()]


@pytest.fixture(scope="module")
def world(secured_kafka: Cluster, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return the broker after the printed commands were run."""
    found = World(secured_kafka, tmp_path_factory.mktemp("acls"))
    assert secured_kafka.secured is not None
    secured_kafka.secured.write_admin_file(found.folder / "admin.properties")
    lines = [one["command"] for one in printed(found)]

    def run(line: str) -> str:
        done = run_tool(shlex.split(line), folder=found.folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        assert all("Adding ACLs" in said for said in pool.map(run, lines))
    return found


class Ward:
    """A client in a thread of its own, that trains until the federation ends."""

    def __init__(self, world: World, name: str, url: str, security: KafkaSecurity) -> None:
        self.rounds: list[int] = []
        self.failure: BaseException | None = None
        self._open = lambda: refold.connect(url, security=security).client(name, key=world.folder / f"{name}.pem")
        self.thread = threading.Thread(target=self._run, name=name)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self._open() as client:
                for task in client.tasks():
                    task.submit({"w": task.numpy()["w"] + np.float32(0.01)}, num_examples=5)
                    self.rounds.append(task.round)
        except BaseException as error:
            self.failure = error


@pytest.fixture(scope="module")
def finished(world: World) -> World:
    """Return the world after a federation of three rounds, each part with its own account and rights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REFOLD_KEYS", raising=False)
        plan = refold.Plan(minimum=2, rounds=ROUNDS, heartbeat_s=0.2)
        initial = {"w": np.zeros(40_000, np.float32)}  # Larger than what travels inside an event.
        snapshots = refold.SnapshotPolicy(1, 2)
        refold.create(
            world.url, initial, plan=plan, snapshots=snapshots, partitions=2, keys=world.keys, security=world.account("founder")
        ).close()
        with world.connect("operator") as federation:
            federation.command(ChangePruning(keep_rounds=1, before_round=None))
            for name in ROLES["client"]:
                federation.enroll(name, refold.SigningKey.load_or_create(world.folder / f"{name}.pem").public)
        with world.connect("server") as federation, federation.serve() as server:
            wards = [
                Ward(world, "ward-1", world.url, world.account("ward-1")),
                Ward(world, "ward-2", f"{world.cluster.certificate_url}/{NAME}", world.certificate("ward-2")),
            ]
            for ward in wards:
                ward.thread.join(120)
                assert not ward.thread.is_alive()
                assert ward.failure is None
                assert ward.rounds == [1, 2, 3]
            server.wait(0.1)
    return world


def test_servers_clients_and_operators_with_their_rights_make_every_round(finished: World) -> None:
    with finished.connect("auditor") as federation:
        assert federation.ended
        assert federation.head == ROUNDS
        report = federation.verify()
        assert report.is_sound, report.findings
        assert any(isinstance(event, DeltasPruned) for event, _ in federation.log())
        deltas = (Place(federation.topics.deltas, partition) for partition in range(2))
        assert any(federation.bus.begin_offset(place) > 0 for place in deltas), "nothing was pruned"


def test_an_auditor_rebuilds_exports_examines_and_attaches_and_writes_nothing(finished: World, tmp_path: Path) -> None:
    with finished.connect("auditor") as federation:
        state = federation.rebuild(2)
        copied = federation.export(f"sqlite:{tmp_path}/copy.db", verify=True)
        assert copied.complete
        assert len(list(federation.subscribe("report", follow=False))) > ROUNDS
        with pytest.raises(ConfigurationError, match="operation Write"):
            write_to(federation.bus, federation.topics.commands)
    with refold.connect(f"sqlite:{tmp_path}/copy.db") as copy:
        assert copy.rebuild(2).digest == state.digest


def write_to(bus: Bus, topic: str) -> None:
    with bus.producer() as producer:
        producer.send(topic, b"x", partition=0)
        producer.flush()


def read_from(bus: Bus, topic: str) -> None:
    with bus.consumer() as consumer:
        consumer.assign([Place(topic, 0)])
        consumer.seek(Place(topic, 0), 0)
        consumer.poll(5.0)


def join(bus: Bus, group: str, topic: str) -> None:
    with bus.consumer(group=group) as consumer:
        consumer.subscribe([topic], on_assigned=lambda _: None, on_revoked=lambda _: None)
        consumer.poll(5.0)


# -- what a client may not do ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["account", "certificate"])
def ask(finished: World, request: pytest.FixtureRequest) -> Iterator[Callable[[Any], int]]:
    """Yield what asks the broker as a client does, with an account or a certificate, and returns the answer's error code."""
    if request.param == "account":
        client = KafkaClient((finished.cluster.bootstrap,), finished.account("ward-1"))
    else:
        client = KafkaClient((finished.cluster.certificate_url.removeprefix("kafka://"),), finished.certificate("ward-2"))

    def code(message: Any) -> int:
        answer = client.ask(message, 1)
        return next(_codes(answer))

    yield code
    client.close()


def _codes(answer: Any) -> Iterator[int]:
    """Yield an answer's error codes that lie deepest: those of partitions before those of topics."""
    for name in ("topics", "responses", "partitions", "partition_responses", "results"):
        for part in getattr(answer, name, None) or ():
            yield from _codes(part)
    if hasattr(answer, "error_code"):
        yield answer.error_code


def read(topic: str) -> Any:
    return fetch_request({Place(topic, 0): 0}, 1000, 0.0)


def look_up(topic: str) -> Any:
    kind = ListOffsetsRequest.ListOffsetsTopic
    part = kind.ListOffsetsPartition(partition_index=0, current_leader_epoch=-1, timestamp=-1, max_num_offsets=1)
    return ListOffsetsRequest(replica_id=-1, isolation_level=0, topics=[kind(name=topic, partitions=[part])], max_version=6)


def write(topic: str) -> Any:
    parcel = Parcel(Place(topic, 0), encode_record(0, 0, b"k", b"v", ()), [None])  # type: ignore[list-item]
    parcel.seal(Sender(-1, -1), -1)
    return produce_request(parcel)


def delete_records(topic: str) -> Any:
    kind = DeleteRecordsRequest.DeleteRecordsTopic
    part = kind.DeleteRecordsPartition(partition_index=0, offset=0)
    return DeleteRecordsRequest(topics=[kind(name=topic, partitions=[part])], timeout_ms=1000)


def delete_topic(topic: str) -> Any:
    return DeleteTopicsRequest(topic_names=[topic], timeout_ms=1000, max_version=5)


def add_partitions(topic: str) -> Any:
    kind = CreatePartitionsRequest.CreatePartitionsTopic
    return CreatePartitionsRequest(topics=[kind(name=topic, count=9, assignments=None)], timeout_ms=1000, validate_only=True)


def describe_settings(topic: str) -> Any:
    kind = DescribeConfigsRequest.DescribeConfigsResource
    resource = kind(resource_type=TOPIC, resource_name=topic, configuration_keys=None)
    return DescribeConfigsRequest(resources=[resource], include_synonyms=False, include_documentation=False)


def alter_settings(topic: str) -> Any:
    kind = IncrementalAlterConfigsRequest.AlterConfigsResource
    config = kind.AlterableConfig(name="retention.ms", config_operation=0, value="1")
    resource = kind(resource_type=TOPIC, resource_name=topic, configs=[config])
    return IncrementalAlterConfigsRequest(resources=[resource], validate_only=True)


ALLOWED: dict[Callable[[str], Any], set[str]] = {
    read: CLIENT_READS,
    write: CLIENT_WRITES,
    look_up: CLIENT_READS | CLIENT_WRITES,
    delete_records: set(),
    delete_topic: set(),
    add_partitions: set(),
    describe_settings: set(),
    alter_settings: set(),
}


@pytest.mark.parametrize("operation", ALLOWED, ids=lambda operation: operation.__name__)
def test_a_client_may_do_with_each_topic_what_it_is_for_and_nothing_else(
    ask: Callable[[Any], int], operation: Callable[[str], Any]
) -> None:
    found = {short: ask(operation(f"{NAME}.{short}")) for short in KEPT}
    allowed = {short for short, code in found.items() if code not in REFUSED}
    assert allowed == ALLOWED[operation], found
    assert {code for short, code in found.items() if short in allowed} <= {0}


def test_a_client_makes_no_topics_and_is_in_no_group(ask: Callable[[Any], int]) -> None:
    kind = CreateTopicsRequest.CreatableTopic
    topic = kind(name=f"{NAME}.mine", num_partitions=1, replication_factor=1, assignments=[], configs=[])
    assert ask(CreateTopicsRequest(topics=[topic], timeout_ms=1000, validate_only=False)) in REFUSED
    for group in (f"{NAME}.consistency", f"{NAME}.attached.mine"):
        assert ask(DeleteGroupsRequest(groups_names=[group])) in REFUSED
        assert ask(FindCoordinatorRequest(key=group, key_type=0, coordinator_keys=[group], max_version=3)) in REFUSED
        commit = OffsetCommitRequest(
            group_id=group,
            generation_id_or_member_epoch=-1,
            member_id="",
            group_instance_id=None,
            topics=[_position(f"{NAME}.rounds")],
            max_version=8,
        )
        assert ask(commit) in REFUSED


def _position(topic: str) -> Any:
    kind = OffsetCommitRequest.OffsetCommitRequestTopic
    part = kind.OffsetCommitRequestPartition(
        partition_index=0, committed_offset=0, committed_leader_epoch=-1, committed_metadata=""
    )
    return kind(name=topic, partitions=[part])


# -- what is said of it ------------------------------------------------------------------------------------------------------


def said(raised: pytest.ExceptionInfo[ConfigurationError]) -> tuple[object, object, object]:
    where = raised.value.where
    assert "refold doctor --acls" in raised.value.hint
    assert raised.value.exit_code == 78
    return where.get("topic") or where.get("group"), where["operation"], where["account"]


def test_a_refusal_names_topic_operation_account_and_what_to_do(finished: World) -> None:
    with open_bus(finished.url, security=finished.account("ward-1")) as bus:
        for short, right in (("rounds", "Write"), ("accepted", "Describe")):
            with pytest.raises(ConfigurationError) as raised:
                write_to(bus, f"{NAME}.{short}")
            assert said(raised) == (f"{NAME}.{short}", right, "User:ward-1")
        for short, right in (("updates", "Read"), ("deltas", "Describe")):
            with pytest.raises(ConfigurationError) as raised:
                read_from(bus, f"{NAME}.{short}")
            assert said(raised) == (f"{NAME}.{short}", right, "User:ward-1")
        with pytest.raises(ConfigurationError) as raised:
            bus.delete_records(Place(f"{NAME}.rounds", 0), 1)
        assert said(raised) == (f"{NAME}.rounds", "Delete", "User:ward-1")
        with pytest.raises(ConfigurationError) as raised:
            bus.create_topics([TopicSpec(f"{NAME}.mine")])
        assert said(raised) == (f"{NAME}.mine", "Create", "User:ward-1")
        with pytest.raises(ConfigurationError) as raised:
            join(bus, f"{NAME}.mine", f"{NAME}.rounds")
        assert said(raised) == (f"{NAME}.mine", "Describe", "User:ward-1")


def test_who_has_no_right_at_all_is_told_so_and_not_that_there_is_no_federation(finished: World) -> None:
    with pytest.raises(ConfigurationError) as raised:
        finished.connect("stranger")
    assert said(raised) == (f"{NAME}.rounds", "Describe", "User:stranger")
    url = f"{finished.cluster.url}/other"
    with open_bus(url, security=finished.account("stranger")) as bus, pytest.raises(ConfigurationError) as raised:
        refold.create(url, {"w": np.zeros(2, np.float32)}, keys=finished.keys, bus=bus)
    # Before topics are made: whether there was a log. The broker does not tell him that there is none.
    assert said(raised) == ("other.rounds", "Describe", "User:stranger")


def test_a_client_without_the_right_to_write_stops_with_the_reason(finished: World) -> None:
    """An auditor's account reads all that a client reads; it must not be tried again for ever."""
    key = refold.SigningKey.load(finished.folder / "ward-1.pem")
    with finished.connect("auditor") as federation:
        client = federation.client("ward-1", key=key, outbox=finished.folder / "no-right.outbox")
        with pytest.raises(ConfigurationError) as raised:
            work_until_the_heartbeat_is_refused(client)
    assert said(raised) == (f"{NAME}.health", "Write", "User:auditor")


def work_until_the_heartbeat_is_refused(client: Client) -> None:
    with client:
        assert client._heartbeat is not None
        client._heartbeat._thread.join(20)
        client._doing("waiting")


def test_a_server_without_its_rights_refuses_to_start_with_the_reason(finished: World) -> None:
    with finished.connect("operator") as federation, pytest.raises(ConfigurationError) as raised:
        federation.serve()
    # What is asked first: whether this is a copy that is under way.
    assert said(raised) == (f"{NAME}.copy", "Describe", "User:operator")
