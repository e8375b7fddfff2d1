"""A node whose state became another than the log's: found by the next heartbeat, named to the block, fetched anew."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.clock import ManualClock, SystemClock
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.consumers.server_heartbeat import ServerHeartbeatThread
from refold.federation import Federation
from refold.producers.held_digest import Held, difference
from refold.producers.task import Task
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.keys import SigningKey, log_key
from refold.state.model_state import ModelState
from refold.state.optimizers import FedAdam
from refold.testing import eventually

MODEL = {"w": np.zeros((60, 50), "f4"), "b": np.zeros(7, "f4")}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with MemoryBus() as bus:
        plan = refold.Plan(minimum=2, rounds=3, deadline_s=30.0, heartbeat_s=0.05)
        with refold.create("memory:toy", MODEL, plan=plan, keys=tmp_path, partitions=1, bus=bus) as made:
            for name in ("ann", "bob"):
                made.enroll(name, SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
            yield made


def alerts(federation: Federation, kind: str) -> list[Alert]:
    with federation.bus.consumer() as consumer:
        consumer.assign([refold.bus.Place(federation.topics.alerts, 0)])
        found = [decode(record.value or b"", Alert) for record in consumer.poll(0.0)]
    return [alert for alert in found if alert.kind == kind]


def train(task: Task) -> None:
    rng = np.random.default_rng(task.round)
    task.submit(
        {name: array + rng.normal(0.01, 0.01, array.shape).astype("f4") for name, array in task.numpy().items()},
        num_examples=10,
    )


def test_a_state_that_flipped_in_memory_is_found_named_and_fetched_anew(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with federation.client(name, key=tmp_path / f"{name}.pem", outbox=tmp_path / name) as client:
                for task in client.tasks():
                    if name == "ann" and task.round == 2 and not told.is_set():
                        assert client._model.state is not None
                        client._model.state.parameters[0][1234] ^= 1 << 9
                        told.wait(20.0)
                    train(task)
        except BaseException as error:
            failures.append(error)

    with caplog.at_level(logging.WARNING, "refold.client"), federation.serve():
        crowd = [threading.Thread(target=work, args=(name,), daemon=True) for name in ("ann", "bob")]
        for thread in crowd:
            thread.start()
        eventually(lambda: bool(failures or len(alerts(federation, "diverged")) == 2), what="alerts of the divergence")
        told.set()
        for thread in crowd:
            thread.join(30.0)
    assert not failures
    assert [(alert.subject, alert.what) for alert in alerts(federation, "diverged")] == [
        ("ann", "ann holds another state of round 1 than the log's"),
        ("ann", "ann differs from the log's round 1 in w, block 0 of 1 (elements 0 to 2999)"),
    ]
    assert "fetched anew: w, block 0 of 1 (elements 0 to 2999)" in caplog.text
    assert "what was trained from round 1 is not sent" in caplog.text
    accepted = [e for entry in read_all(federation.bus, federation.topics.accepted) for e in entry.events]
    assert not [e for e in accepted if isinstance(e, UpdateRejected)], "it tells that it is right again before it sends anew"
    assert {e.origin.base_round for e in accepted if isinstance(e, UpdateAccepted) and e.origin.client == "ann"} == {0, 1, 2}
    assert federation.head == 3


def test_looking_takes_a_bounded_share_of_the_time_and_says_what_it_found_last(federation: Federation) -> None:
    class Slow(ManualClock):
        def monotonic_s(self) -> float:
            self.advance(0.5)
            return super().monotonic_s()

    schema = federation.genesis.schema
    held = ModelState(schema, 0, [np.arange(tensor.size, dtype=np.int32) for tensor in schema.tensors])
    clock = Slow()
    looked = Held(held, held.parameters_digest, clock)
    assert looked.digest() == held.parameters_digest
    true = held.copy()
    held.parameters[1][3] += 1
    assert looked.digest() != held.parameters_digest, "half a second of hashing is followed by 25 of rest"
    assert not looked.has_diverged
    clock.advance(60.0)
    assert looked.digest() == held.parameters_digest
    assert looked.has_diverged
    assert difference(held, true) == "b, block 0 of 1 (elements 0 to 6)"


@pytest.mark.parametrize("place", ["parameters", "optimizer"])
def test_a_bit_that_flips_in_a_servers_memory_never_reaches_the_log(tmp_path: Path, place: str) -> None:
    plan = refold.Plan(minimum=1, rounds=3, heartbeat_s=0.05)
    with MemoryBus() as bus:
        made = refold.create(
            "memory:toy", MODEL, plan=plan, keys=tmp_path, partitions=1, bus=bus, optimizer=FedAdam(lr=0.01), defence="none"
        )
        made.enroll("ann", SigningKey.load_or_create(tmp_path / "ann.pem").public)
        with made, made.serve() as server, made.client("ann", key=tmp_path / "ann.pem", outbox=tmp_path / "ann") as client:
            key = log_key(made.keyring.secret(made.genesis.secret_digest))
            beats = ServerHeartbeatThread(
                bus, made.topics, "host", server.members, key, holds=server.holds, interval_s=0.05, clock=SystemClock()
            )
            for task in client.tasks():
                if task.round == 3:
                    eventually(lambda: bool(server.holds()) and server.holds()[0].round == 2)
                    state = server._holding._state
                    assert state is not None
                    flipped = state.parameters[0] if place == "parameters" else state.slots["m"][0]
                    flipped[1234] ^= 1 << 9
                    eventually(lambda: bool(alerts(made, "diverged")), what="an alert, by a heartbeat, of what a server holds")
                train(task)
            beats.close()
            eventually(lambda: made.head == 3)
            half = "parameters" if place == "parameters" else "optimizer state"
            tensor = "w" if place == "parameters" else "m/w"
            where = f"{tensor}, block 0 of 1 (elements 0 to 2999)"
            assert [(alert.severity, alert.what) for alert in alerts(made, "diverged")] == [
                ("error", f"host holds, for aggregation, other {half} of round 2 than the log's"),
                ("error", f"the state of round 2 in this server's memory differs from the log's in {where}"),
            ]
            assert made.rebuild(3, start=0).round == 3, "its digest is the one that its steps lead to"


def test_a_training_that_comes_back_in_another_state_than_it_told_of_is_found(federation: Federation, tmp_path: Path) -> None:
    with federation.serve(), federation.client("ann", key=tmp_path / "ann.pem", outbox=tmp_path / "ann") as client:
        task = next(client.tasks())
        optimizer = {"momentum": np.zeros(4, "f4")}
        first = task.checkpoint(optimizer=optimizer)
        for step in first.batches(range(3)):
            optimizer["momentum"] += np.float32(step)
        assert client._heartbeat is not None
        told = client._heartbeat.vitals.training
        assert told is not None
        assert (told.round, told.step) == (1, 3)
        assert client._heartbeat.beat_now(10.0)
        eventually(lambda: not alerts(federation, "diverged"))
        again = task.checkpoint(optimizer={"momentum": np.zeros(4, "f4")})
        assert again.restored
        assert client._heartbeat.vitals.training == told, "what was brought back is what was kept"
        optimizer["momentum"][2] = 7.0
        first.save()
        eventually(lambda: bool(alerts(federation, "diverged")), what="an alert of the training that changed")
    (alert,) = alerts(federation, "diverged")
    assert alert.what == "ann's training for round 1 tells of another optimizer and model at step 3 than before"
