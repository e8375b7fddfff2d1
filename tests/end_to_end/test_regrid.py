"""A model that outgrows its lattice comes onto a coarser one: training goes on, and every round is rebuilt in every way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.ledger import read_all
from refold.cli import run
from refold.producers.task import Task
from refold.schemas.errors import NotFoundError
from refold.schemas.events import Regridded, UpdateRejected
from refold.state.replay import load_snapshot
from refold.testing import eventually

NAMES = ("a", "b")
ROUNDS = 34

Local = Callable[[Task], dict[str, np.ndarray]]


def growing(task: Task) -> dict[str, np.ndarray]:
    """Return a model whose ``w`` grew by a sixteenth of what its lattice holds, and whose other tensor by little."""
    local, tensor = task.numpy(), task.state.schema.tensors[0]
    local["w"] += np.float32(2.0 ** (27 - tensor.exponent)) * np.array([1, -1, 0.37, 0.001], "f4")
    local["b"] += np.float32(0.01)
    return local


def take_part(federation: refold.Federation, folder: Path, name: str, local: Local) -> None:
    """Train until the federation ends."""
    with federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            task.submit(local(task), num_examples=1)


def run_to_the_end(federation: refold.Federation, folder: Path, local: Local = growing) -> None:
    """Serve and train until all rounds are done."""
    with federation.serve():
        clients = [threading.Thread(target=take_part, args=(federation, folder, name, local)) for name in NAMES]
        for client in clients:
            client.start()
        for client in clients:
            client.join(120)
        eventually(lambda: set(regrids(federation)) <= snapshots(federation), timeout_s=20.0, what="the epochs' snapshots")


def made(folder: Path, **settings: object) -> refold.Federation:
    """Make a federation of two clients."""
    plan = refold.Plan(minimum=2, rounds=ROUNDS, heartbeat_s=0.05, codec=str(settings.pop("codec", "grid")))
    initial = {"w": np.ones(4, "f4"), "b": np.full(3, 0.5, "f4"), "n": np.array(0)}
    federation = refold.create(
        f"sqlite:{folder}/f.db", initial, plan=plan, snapshots=refold.SnapshotPolicy(4, 50), defence="consistency", **settings
    )
    for name in NAMES:
        federation.enroll(name, refold.SigningKey.load_or_create(folder / f"{name}.pem").public)
    return federation


def regrids(federation: refold.Federation) -> dict[int, Regridded]:
    """Return the regriddings by the round that each opened."""
    return {event.round: event for event, _ in federation.log() if isinstance(event, Regridded)}


def snapshots(federation: refold.Federation) -> set[int]:
    """Return which rounds have a snapshot."""
    history = federation.history()
    history.close()
    return set(history.snapshots)


@pytest.mark.parametrize(("optimizer", "codec"), [(None, "grid"), (refold.FedAdam(lr=0.5), "float32")])
def test_a_model_that_outgrows_its_lattice_trains_on_and_is_rebuilt_in_every_way(
    tmp_path: Path, optimizer: refold.Optimizer | None, codec: str
) -> None:
    with made(tmp_path, optimizer=optimizer, codec=codec) as federation:
        run_to_the_end(federation, tmp_path)
        begun = regrids(federation)
        history = federation.history()
        rounds = history.lineage.rounds
        print([event.outcome for event in rounds.values()], begun.keys())
        assert federation.verify().findings == ()
        for round_ in rounds:
            digests = {federation.rebuild(round_, start=0).digest}
            for start in snapshots(federation):
                try:
                    digests.add(federation.rebuild(round_, start=start).digest)
                except NotFoundError:
                    pass
            assert digests == {rounds[round_].state_digest}
        history.close()
