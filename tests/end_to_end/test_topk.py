"""Sparse updates with error feedback, from the client's disk to the model: what is left out is late, never lost or doubled."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest

import refold
from refold.demo import network
from refold.demo.data import Examples, deal, load_digits
from refold.demo.network import Weights, accuracy, train
from refold.federation import Federation
from refold.producers.publisher import Publisher
from refold.producers.residual import Residual
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.keys import SigningKey
from refold.testing import eventually

CLIENTS, ROUNDS, HIDDEN, RATE = 4, 20, 128, 0.3


@dataclass(frozen=True)
class Outcome:
    """What a federation came to: accuracy, mean payload of an update in bytes, and how many updates were refused."""

    accuracy: float
    payload_bytes: float
    refused: int


def made(folder: Path, initial: Weights, names: list[str], **plan: Any) -> Federation:
    folder.mkdir(exist_ok=True)
    settings = {"minimum": len(names), "deadline_s": 20.0, "heartbeat_s": 0.2, **plan}
    federation = refold.create(f"sqlite:{folder}/fed.db", initial, plan=refold.Plan(**settings))
    for name in names:
        federation.enroll(name, SigningKey.load_or_create(folder / f"{name}.pem").public)
    return federation


def initial_weights(seed: int, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.setattr(network, "HIDDEN", HIDDEN)
    return network.initial_weights(seed)


def learn(folder: Path, federation: Federation, initial: Weights, hands: list[Examples], test: Examples, seed: int) -> Outcome:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with federation.client(f"c{number}", key=folder / f"c{number}.pem") as client:
                for task in client.tasks():
                    rng = np.random.default_rng([seed, number, task.round])
                    local = train(task.numpy(), hands[number], epochs=1, rate=RATE, batch=16, rng=rng)
                    task.submit(local, num_examples=len(hands[number]))
        except BaseException as error:
            failures.append(error)

    crowd = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(hands))]
    with federation.serve():
        for thread in crowd:
            thread.start()
        eventually(lambda: bool(failures) or not any(t.is_alive() for t in crowd), timeout_s=60.0, what="the end")
    assert not failures, failures
    events = [event for event, _ in federation.log()]
    sizes = [event.payload.size_bytes for event in events if isinstance(event, UpdateAccepted) and event.payload is not None]
    refused = sum(event.count for event in events if isinstance(event, UpdateRejected))
    return Outcome(accuracy(federation.rebuild().numpy(), test), float(np.mean(sizes)), refused)


def test_one_percent_with_feedback_learns_as_the_whole_does_and_without_it_falls_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds are fixed, and the model does not depend on who comes first: these figures are the same on every run."""
    plans: dict[str, dict[str, Any]] = {"grid": {}, "topk": {"codec": "topk"}, "forgetful": {"codec": "topk"}}
    found: dict[str, list[Outcome]] = {name: [] for name in plans}
    for seed in (1, 2):
        initial = initial_weights(seed, monkeypatch)
        hands, test = deal(load_digits(), CLIENTS, alpha=None, seed=seed)
        for name, plan in plans.items():
            folder = tmp_path / f"{name}-{seed}"
            federation = made(folder, initial, [f"c{i}" for i in range(CLIENTS)], rounds=ROUNDS, **plan)
            with federation, monkeypatch.context() as patch:
                if name == "forgetful":
                    patch.setattr(Residual, "read", lambda *_: None)
                found[name].append(learn(folder, federation, initial, hands, test, seed))
    mean = {name: float(np.mean([outcome.accuracy for outcome in outcomes])) for name, outcomes in found.items()}
    whole_bytes = 4 * sum(array.size for array in initial_weights(1, monkeypatch).values())
    assert mean["topk"] > mean["grid"] - 0.01, mean
    assert mean["forgetful"] < mean["topk"] - 0.01, mean
    assert all(whole_bytes / outcome.payload_bytes > 50 for outcome in found["topk"])
    assert not any(outcome.refused for outcome in found["topk"])


# Killed.


def doomed(folder: Path, point: str) -> None:
    """Work as the client ann until the federation ends, or until this point of round 3 is reached, where it is killed."""

    def die(*_: object) -> None:
        if (folder / "round-3").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    kind, name, when = {
        "its unsent amount is kept": (Publisher, "keep", "before"),
        "its update is kept": (Publisher, "keep", "after"),
        "its update is sent": (Publisher, "send", "after"),
        "the residual is replaced": (Residual, "_remove", "before"),
        "the unsent amount is removed": (Residual, "_remove", "after"),
        "never": (Residual, "_remove", ""),
    }[point]
    real = getattr(kind, name)

    def patched(*arguments: Any) -> Any:
        if when == "before":
            die()
        found = real(*arguments)
        if when == "after":
            die()
        return found

    setattr(kind, name, patched)
    with refold.connect(f"sqlite:{folder}/fed.db") as federation, federation.client("ann", key=folder / "ann.pem") as client:
        for task in client.tasks():
            rng = np.random.default_rng(task.round)
            local = task.numpy()
            local["w"] += rng.normal(0, 0.01, local["w"].shape).astype("f4")
            local["steps"] += 1
            if task.round == 3:
                (folder / "round-3").touch()
            task.submit(local, num_examples=5)


POINTS = ("its unsent amount is kept", "its update is kept", "its update is sent", "the residual is replaced")
LAST_POINT = "the unsent amount is removed"


def run_doomed(folder: Path, *points: str) -> tuple[bytes, bytes]:
    """Return the digests of the last round and of the client's residual, its process being started once for each point."""
    with made(
        folder, {"w": np.zeros((40, 30), "f4"), "steps": np.array(0)}, ["ann"], rounds=5, density=0.02, codec="topk"
    ) as federation:
        with federation.serve():
            for point in points:
                done = subprocess.run([sys.executable, __file__, str(folder), point], timeout=60, check=False)
                assert done.returncode == (0 if point == "never" else -signal.SIGKILL), point
                (folder / "round-3").unlink(missing_ok=True)
        history = federation.history()
        try:
            amount = Residual(folder / "ann.outbox", federation.name, "ann").read(history.schema, history.lineage, 5)
            assert history.lineage.head == 5
        finally:
            history.close()
        assert amount is not None
        assert sorted(path.suffix for path in (folder / "ann.outbox").iterdir()) == [
            ".model",
            ".place",
            ".residual",
            ".witness",
        ]
        assert not [str(finding) for finding in federation.verify().findings if finding.is_broken]
        assert int(federation.rebuild().numpy()["steps"]) == 5
        return federation.rebuild().digest, blake3.blake3(amount[0].tobytes()).digest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    return run_doomed(tmp_path_factory.mktemp("undisturbed"), "never")


@pytest.mark.parametrize("point", [*POINTS, LAST_POINT])
def test_a_client_killed_as_soon_as(point: str, undisturbed: tuple[bytes, bytes], tmp_path: Path) -> None:
    """...goes on with the residual, and to the model, that there would have been."""
    assert run_doomed(tmp_path, point, "never") == undisturbed


if __name__ == "__main__":
    doomed(Path(sys.argv[1]), sys.argv[2])
