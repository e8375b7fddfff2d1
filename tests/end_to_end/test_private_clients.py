"""Clients that clip and add noise: what they send is what their setting says, and they stop when their budget is spent."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.federation import Federation
from refold.producers.privacy import epsilon_of
from refold.producers.task import Task
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.keys import SigningKey
from refold.testing import eventually

NAMES = ("ann", "bob", "cid", "dan")
SIZE = 20_000
CLIP, MULTIPLIER = 0.5, 6.0


def made(folder: Path, **plan: Any) -> Federation:
    settings = {"minimum": 3, "rounds": 3, "deadline_s": 10.0, "heartbeat_s": 0.05, **plan}
    federation = refold.create(f"sqlite:{folder}/fed.db", {"w": np.zeros(SIZE, "f4")}, plan=refold.Plan(**settings))
    for name in NAMES:
        federation.enroll(name, SigningKey.load_or_create(folder / f"{name}.pem").public)
    return federation


def learn(federation: Federation, folder: Path, settings: dict[str, refold.Privacy]) -> dict[str, float]:
    """Let all clients train until the end and return what each has spent."""
    spent: dict[str, float] = {}
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with federation.client(name, key=folder / f"{name}.pem", privacy=settings[name]) as client:
                for task in client.tasks():
                    task.submit(trained(task), num_examples=10)
                assert client.privacy is not None
                spent[name] = client.privacy.epsilon()
        except BaseException as error:
            failures.append(error)

    crowd = [threading.Thread(target=work, args=(name,), daemon=True) for name in settings]
    with federation.serve():
        for thread in crowd:
            thread.start()
        eventually(lambda: bool(failures) or not any(t.is_alive() for t in crowd), timeout_s=60.0, what="the end")
    assert not failures, failures
    return spent


def trained(task: Task) -> dict[str, Any]:
    return {"w": task.numpy()["w"] + np.float32(1.0)}  # 141 long: far beyond the clip


def verdicts(federation: Federation) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for event, _ in federation.log():
        match event:
            case UpdateAccepted():
                found[event.origin.client, "accepted"] += 1
            case UpdateRejected():
                found[event.origin.client, event.reasons[0]] += event.count
    return found


@pytest.mark.parametrize("codec", ["grid", "float32"])
def test_what_a_private_client_sends_is_its_noise_and_hardly_its_change(tmp_path: Path, codec: str) -> None:
    setting = refold.Privacy(CLIP, MULTIPLIER)
    with made(tmp_path, codec=codec) as federation:
        spent = learn(federation, tmp_path, dict.fromkeys(NAMES, setting))
        norms = [seen.norm for e, _ in federation.log() if isinstance(e, UpdateAccepted) and (seen := federation.features(e))]
        assert verdicts(federation) == {(name, "accepted"): 3 for name in NAMES}
        assert federation.verify().is_sound
    assert norms == pytest.approx([CLIP * MULTIPLIER * SIZE**0.5] * len(norms), rel=0.05)
    assert spent == pytest.approx(dict.fromkeys(NAMES, epsilon_of([(MULTIPLIER, 3)], 1e-5)))


def test_a_client_whose_budget_is_spent_declines_says_so_once_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free = refold.Privacy(CLIP, MULTIPLIER)
    tight = refold.Privacy(CLIP, MULTIPLIER, epsilon=epsilon_of([(MULTIPLIER, 2)], 1e-5) + 1e-6)
    with made(tmp_path, rounds=4) as federation:
        spent = learn(federation, tmp_path, {**dict.fromkeys(NAMES, free), "dan": tight})
        found = verdicts(federation)
        (why,) = {e.detail for e, _ in federation.log() if isinstance(e, UpdateRejected)}
    assert (found["dan", "accepted"], found["dan", "declined"]) == (2, 2)
    assert all(found[name, "accepted"] == 4 for name in NAMES[:3])
    assert why == "the privacy budget is spent"
    told = [record.getMessage() for record in caplog.records if record.name == "refold.client" and why in record.getMessage()]
    assert told == ["dan declines round 3, and each after it for as long as this holds: the privacy budget is spent"]
    assert spent["dan"] <= (tight.epsilon or 0)
