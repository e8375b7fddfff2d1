"""Three clients in threads that train a federation to its end, on deltas too large to travel inline."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from refold.federation import Federation
from refold.producers.task import Task
from refold.testing import eventually

NAMES = ("ann", "bob", "cid")
SHAPE = (450, 450)


def trained(task: Task, name: str) -> dict[str, Any]:
    """Return what a client's training makes of a task's model, the same in every run."""
    rng = np.random.default_rng([sum(name.encode()), task.round])
    return {"w": (task.numpy()["w"] + rng.normal(0.01, 0.01, task.numpy()["w"].shape)).astype("f4")}


def learn(federation: Federation, folder: Path, **more: Any) -> None:
    """Serve a federation and train it to its end; what fails in a client's thread fails the test."""
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with federation.client(name, key=folder / f"{name}.pem", **more) as client:
                for task in client.tasks():
                    task.submit(trained(task, name), num_examples=10)
        except BaseException as error:
            failures.append(error)

    crowd = [threading.Thread(target=work, args=(name,), daemon=True) for name in NAMES]
    with federation.serve() as server:
        for thread in crowd:
            thread.start()

        def over() -> bool:
            server.wait(0.0)
            return bool(failures) or not any(thread.is_alive() for thread in crowd)

        eventually(over, timeout_s=60.0, what="the end")
        eventually(lambda: 0 in federation.history().snapshots, what="the first snapshot")
    assert not failures, failures
