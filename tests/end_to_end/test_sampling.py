"""Who takes part by a rule, by properties, and without waiting: whole federations, and what their logs say of it."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.consumers.audit import Audit
from refold.federation import Federation
from refold.producers.task import Task
from refold.schemas.events import RoundClosed, UpdateAccepted, UpdateRejected
from refold.testing import SteppedServer, eventually

Work = Callable[[Task], object]


class Crowd:
    """Clients in threads of their own, each with its key and properties."""

    def __init__(self, federation: Federation, folder: Path) -> None:
        self.federation, self.folder = federation, folder
        self.threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def enrol(self, name: str) -> Path:
        key = self.folder / f"{name}.pem"
        self.federation.enroll(name, refold.SigningKey.load_or_create(key).public)
        return key

    def join(self, name: str, work: Work, **properties: Any) -> None:
        key = self.enrol(name)
        thread = threading.Thread(target=self._take_part, args=(name, key, work, properties), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _take_part(self, name: str, key: Path, work: Work, properties: dict[str, Any]) -> None:
        try:
            with refold.connect(self.federation.url).client(name, key=key, properties=properties) as client:
                for task in client.tasks():
                    work(task)
        except BaseException as error:
            self.failures.append(error)

    def wait(self, timeout_s: float = 60.0) -> None:
        done = lambda: bool(self.failures) or not any(t.is_alive() for t in self.threads)  # noqa: E731
        eventually(done, what="the clients' end", timeout_s=timeout_s)
        assert not self.failures, self.failures


@contextmanager
def serving(folder: Path, **plan: Any) -> Iterator[Crowd]:
    made = refold.create(
        f"sqlite:{folder}/it.db", {"w": np.zeros(20, "f4")}, plan=refold.Plan(seed=bytes(16), **{"heartbeat_s": 0.1, **plan})
    )
    with made, made.serve() as server:
        yield Crowd(made, folder)
        server.wait(0.0)


def train(task: Task) -> None:
    state = task.numpy()
    state["w"] += np.random.default_rng(task.round).normal(0.01, 0.001, 20).astype("f4")
    task.submit(state, num_examples=10)


def verdicts(federation: Federation) -> dict[str, list[tuple[int, int, str]]]:
    """Return for each client (round it counted in, its base, reason or "accepted") of its training updates."""
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    round_ = 1
    for event, _ in federation.log():
        match event:
            case UpdateAccepted() if event.origin.kind == "train":
                found[event.origin.client].append((round_, event.origin.base_round, "accepted"))
            case UpdateRejected():
                found[event.origin.client].append((round_, event.origin.base_round, event.reasons[0]))
            case RoundClosed():
                round_ = event.round + 1
    return found


def assert_sound(federation: Federation) -> None:
    broken = [str(found) for found in Audit(federation.bus, federation.topics).report().findings if found.is_broken]
    assert not broken, broken


def test_only_clients_with_the_properties_are_asked_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = {"where": ("rows >= 100", "region = north"), "minimum": 2, "rounds": 4, "deadline_s": 20.0}
    with serving(tmp_path, **plan) as crowd:
        crowd.join("small", train, rows=5, region="north")
        crowd.join("south", train, rows=500, region="south")
        crowd.join("silent", train)
        crowd.join("a", train, rows=100, region="north")
        crowd.join("b", train, rows=900, region="north")
        # Whom nobody asks lives beside them, and no round waits for its deadline on their account.
        crowd.wait(15.0)
        found = verdicts(crowd.federation)
        assert_sound(crowd.federation)
    assert {name: len(said) for name, said in found.items()} == {"a": 4, "b": 4}
    assert "south is asked for nothing: the plan wants rows >= 100 and region = north" in caplog.text


def test_a_client_that_joins_late_and_fits_takes_part(tmp_path: Path) -> None:
    started = threading.Event()

    def slowly(task: Task) -> None:
        if task.round == 3:
            crowd.join("late", train, rows=200)
            started.set()
            eventually(lambda: any(said[0] >= 3 for said in waiting("late")), what="the latecomer")
        train(task)

    def waiting(name: str) -> list[tuple[int, int, str]]:
        end = crowd.federation.bus.topics()[crowd.federation.topics.updates].partitions
        offsets = sum(crowd.federation.bus.end_offset(refold_place(crowd.federation, p)) for p in range(end))
        return [(3, 2, "sent")] if offsets > 2 else []

    with serving(tmp_path, where="rows >= 100", minimum=1, rounds=5, deadline_s=20.0) as crowd:
        crowd.join("first", slowly, rows=100)
        crowd.wait()
        found = verdicts(crowd.federation)
    assert started.is_set()
    assert {said for _, _, said in found["late"]} == {"accepted"}
    assert len(found["late"]) >= 2


def refold_place(federation: Federation, partition: int) -> Any:
    from refold.bus import Place

    return Place(federation.topics.updates, partition)


def test_rounds_without_waiting_take_fast_clients_and_stale_updates_of_slow_ones(tmp_path: Path) -> None:
    federation_ = refold.create(
        f"sqlite:{tmp_path}/it.db",
        {"w": np.zeros(20, "f4")},
        plan=refold.Plan(minimum=1, buffer=2, max_staleness=8, discount="root", rounds=8, heartbeat_s=0.1, seed=bytes(16)),
    )
    with federation_ as federation, SteppedServer(federation) as server:
        crowd = Crowd(federation, tmp_path)
        keys = {name: crowd.enrol(name) for name in ("fast-1", "fast-2", "slow")}
        server.settle()
        clients = {name: federation.client(name, key=key, properties={}) for name, key in keys.items()}
        slow = tasks_of(clients["slow"])
        at_work = next(slow)
        fast = {name: tasks_of(clients[name]) for name in ("fast-1", "fast-2")}
        for _ in range(3):
            for name in fast:
                train(next(fast[name]))
            server.settle()
        assert (federation.head, at_work.base_round) == (3, 0)
        train(at_work)  # Three rounds behind: it counts, for less, in the round that is open now.
        train(next(fast["fast-1"]))
        server.settle()
        assert federation.head == 4
        train(next(slow))
        train(next(fast["fast-2"]))
        server.settle()
        for client in clients.values():
            client.close()
        found = verdicts(federation)
        closed = [event for event, _ in federation.log() if isinstance(event, RoundClosed)]
        assert_sound(federation)
    assert found["slow"] == [(4, 0, "accepted"), (5, 4, "accepted")]
    assert {said for name in found for _, _, said in found[name]} == {"accepted"}
    weights = [{member.client: member.weight for member in event.members} for event in closed]
    assert weights[3] == {"fast-1": 10, "slow": 5}  # 10 / √(1 + 3)
    assert [event.closed_by for event in closed] == ["complete"] * 5


def tasks_of(client: Any) -> Iterator[Task]:
    client.__enter__()
    return iter(client.tasks())


@pytest.mark.parametrize("buffer", [2])
def test_a_slow_client_holds_up_no_buffered_round(tmp_path: Path, buffer: int) -> None:
    release = threading.Event()

    def dawdle(task: Task) -> None:
        if task.round == 1:
            release.wait(60)
        train(task)

    def hurry(task: Task) -> None:
        if task.round == 9:
            release.set()
        train(task)

    plan = {"minimum": 1, "buffer": buffer, "max_staleness": 20, "rounds": 30, "deadline_s": 30.0}
    with serving(tmp_path, **plan) as crowd:
        crowd.join("slow", dawdle)
        for name in ("fast-1", "fast-2"):
            crowd.join(name, hurry)
        crowd.wait()
        found = verdicts(crowd.federation)
        assert_sound(crowd.federation)
    stale = found["slow"][0]
    assert stale[1] == 0
    assert stale[0] >= 9
    assert stale[2] == "accepted"
    assert sum(len(said) for said in found.values()) >= 60
