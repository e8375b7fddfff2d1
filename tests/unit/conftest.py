"""A small federation that trained for real, made once; each test damages a copy of its own."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.federation import Federation
from refold.schemas.keys import SigningKey

# The tests of the command line share `clikit`.
sys.path.insert(0, str(Path(__file__).parent))

ROUNDS = 3
CLIENTS = ("c0", "c1", "c2")
SHAPE = (600, 600)  # its deltas and steps are too large to travel inline


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a federation with three rounds, one update declined and one record that nobody signed."""
    folder = tmp_path_factory.mktemp("trained")
    initial = {"w": np.zeros(SHAPE, np.float32), "n": np.array(0, np.int64)}
    # Beats far enough apart that no client is taken for dead, and no round closes without it, on a busy machine.
    plan = refold.Plan(minimum=2, deadline_s=60, heartbeat_s=0.5, config={"epochs": 2})
    made = refold.create(
        f"sqlite:{folder}/fed.db", initial, optimizer=refold.FedAdam(lr=0.05), plan=plan, snapshots=refold.SnapshotPolicy(2, 2)
    )
    with made as federation:
        for name in CLIENTS:
            key = SigningKey.load_or_create(folder / f"{name}.pem")
            federation.enroll(name, key.public)
        with federation.bus.producer() as producer:
            producer.send(federation.topics.updates, b"no update at all", partition=0)
        threads = [threading.Thread(target=_train, args=(folder, name)) for name in CLIENTS]
        with federation.serve():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with closing(federation.history()) as history:
                _until(lambda: history.refresh().head == ROUNDS and 2 in history.snapshots)
    return folder


def _train(folder: Path, name: str) -> None:
    rng = np.random.default_rng(int(name[1:]))
    with refold.connect(f"sqlite:{folder}/fed.db") as federation, federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            if (name, task.round) == ("c2", 2):
                task.decline("nothing new").wait()
                continue
            state = task.numpy()
            state["w"] += rng.normal(0.01, 0.01, SHAPE).astype(np.float32)
            state["n"] += 1
            task.submit(state, num_examples=10, metrics={"loss": 1.0}).wait()
            if task.round == ROUNDS:
                return


def _until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "the federation did not get so far in time"
        time.sleep(0.02)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained federation's folder, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def federation(folder: Path) -> Iterator[Federation]:
    """Return the copy, open."""
    with refold.connect(f"sqlite:{folder}/fed.db") as found:
        yield found
