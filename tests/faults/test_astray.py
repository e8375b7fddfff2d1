"""Nodes whose state is not the log's: memory that another process changes, and clients that lie about what they hold."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.ledger import read_all
from refold.federation import Federation
from refold.producers.client import Client
from refold.producers.held_model import HeldModel
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Alert
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.keys import HEARTBEAT_TAG, SigningKey
from refold.schemas.updates import Heartbeat, heartbeat_digest
from refold.state.model_state import ModelState
from refold.testing import eventually

NODE = """
import sys, numpy as np, refold
with refold.connect(sys.argv[1], keys=sys.argv[2]) as federation:
    with federation.client("ann", key=sys.argv[2] + "/ann.pem", outbox=sys.argv[2] + "/ann") as client:
        waits = True
        for task in client.tasks():
            if task.round == 2 and waits:
                waits = False
                print(task.state.parameters[1].ctypes.data, flush=True)
                sys.stdin.readline()
            arrays = {name: array + np.float32(0.01) for name, array in task.numpy().items()}
            print(task.round, task.submit(arrays, num_examples=1).outcome, flush=True)
"""
MODEL = {"first": np.ones(40, "f4"), "second": np.zeros(300_000, "f4")}


def alerts(federation: Federation) -> list[Alert]:
    with federation.bus.consumer() as consumer:
        consumer.assign([refold.bus.Place(federation.topics.alerts, 0)])
        return [decode(record.value or b"", Alert) for record in consumer.poll(0.0)]


def verdicts(federation: Federation) -> Counter[tuple[str, str]]:
    events = [event for entry in read_all(federation.bus, federation.topics.accepted) for event in entry.events]
    accepted = [(event.origin.client, "accepted") for event in events if isinstance(event, UpdateAccepted)]
    refused = [
        (event.origin.client, reason) for event in events if isinstance(event, UpdateRejected) for reason in event.reasons
    ]
    return Counter(accepted + refused)


def create(tmp_path: Path, **settings: object) -> Federation:
    plan = refold.Plan(minimum=1, rounds=3, deadline_s=5.0, heartbeat_s=0.05)
    made = refold.create(f"sqlite:{tmp_path}/it.db", MODEL, plan=plan, keys=tmp_path, partitions=1, **settings)  # type: ignore[arg-type]
    made.enroll("ann", SigningKey.load_or_create(tmp_path / "ann.pem").public)
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="writes to another process's memory by /proc")
def test_f26_a_bit_flipped_in_a_client_process_is_found_named_and_mended_and_training_goes_on(tmp_path: Path) -> None:
    with create(tmp_path) as made, made.serve():
        command = [sys.executable, "-c", NODE, f"sqlite:{tmp_path}/it.db", str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as node:
            assert node.stdin is not None
            assert node.stdout is not None
            assert node.stdout.readline() == "1 None\n"
            _flip(node.pid, int(node.stdout.readline()) + 4 * 200_000)
            eventually(lambda: len([one for one in alerts(made) if one.kind == "diverged"]) == 2)
            node.stdin.write("\n")
            node.stdin.flush()
            said = node.stdout.read()
        assert node.returncode == 0
        assert said == "2 diverged\n2 None\n3 None\n"
        assert [alert.what for alert in alerts(made) if alert.kind == "diverged"] == [
            "ann holds another state of round 1 than the log's",
            "ann differs from the log's round 1 in second, block 1 of 3 (elements 131072 to 262143)",
        ]
        assert verdicts(made) == {("ann", "accepted"): 3}
        assert made.head == 3


def _flip(pid: int, address: int) -> None:
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(address)
        byte = memory.read(1)[0]
        memory.seek(address)
        memory.write(bytes([byte ^ 4]))


class Astray(HeldModel):
    """Tells of another state than it holds, and goes on sending."""

    def hold(self, round_: int) -> ModelState:
        held = super().hold(round_)
        assert self.heartbeat is not None
        vitals = self.heartbeat.vitals
        vitals.held, vitals.holds = None, (round_, b"\x07" * 32)
        assert self.heartbeat.beat_now(10.0)
        return held


@pytest.mark.parametrize("divergence", ["refuse", "tell"])
def test_f37_a_client_that_goes_on_from_a_state_that_is_not_the_logs_is_refused_by_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, divergence: str
) -> None:
    with create(tmp_path, divergence=divergence, defence="consistency") as made, made.serve():
        monkeypatch.setattr("refold.producers.client.HeldModel", Astray)
        with made.client("ann", key=tmp_path / "ann.pem", outbox=tmp_path / "ann") as ann:
            assert isinstance(ann._model, Astray)
            task = next(ann.tasks())
            arrays = {name: array + np.float32(0.01) for name, array in task.numpy().items()}
            outcome = task.submit(arrays, num_examples=1).wait(20.0)
        assert outcome == ("integrity" if divergence == "refuse" else "accepted")
        assert verdicts(made) == {("ann", "diverged" if divergence == "refuse" else "accepted"): 1}
        assert "ann holds another state of round 0 than the log's" in [alert.what for alert in alerts(made)]


def test_f36_a_client_that_tells_two_states_under_one_number_is_frozen_with_its_next_update(tmp_path: Path) -> None:
    with create(tmp_path, defence="consistency") as made, made.serve():
        with made.client("ann", key=tmp_path / "ann.pem", outbox=tmp_path / "ann") as ann:
            task = next(ann.tasks())
            key = SigningKey.load(tmp_path / "ann.pem")
            _tell_two_states(made, ann, key)
            eventually(lambda: any(alert.kind == "lying" for alert in alerts(made)))
            task.submit({name: array + np.float32(0.01) for name, array in task.numpy().items()}, num_examples=1)
            eventually(lambda: verdicts(made)["ann", "equivocation"] == 1)
        assert made.head == 0


def _tell_two_states(made: Federation, ann: Client, key: SigningKey) -> None:
    assert ann._heartbeat is not None
    base = Heartbeat("it", "ann", *ann._session, 1_000_000, 50, "waiting", 0, b"\x01" * 32, (), 0, key.key_id)
    with made.bus.producer() as producer:
        for beat in (base, replace(base, parameters_digest=b"\x02" * 32)):
            beat = replace(beat, signature=key.sign(HEARTBEAT_TAG, heartbeat_digest(beat)))
            producer.send(made.topics.health, encode(beat), key=b"ann")
        producer.flush()
