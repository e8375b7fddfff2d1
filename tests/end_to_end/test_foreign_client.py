"""A client that was written from docs/WIRE.md alone takes part in a real federation."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# The foreign client is no part of the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foreign.client import ForeignClient

import refold
from refold.bus import open_bus
from refold.bus.ledger import read_all
from refold.consumers.audit import Audit
from refold.federation import Federation
from refold.schemas.events import UpdateAccepted
from refold.schemas.keys import SigningKey
from refold.testing import eventually

INITIAL = {
    "w": np.linspace(-1, 1, 360_000, dtype=np.float32).reshape(600, 600),  # three blocks; as floats two chunks
    "b": np.zeros(3, np.float32),
    "steps": np.array(0, np.int64),
}
FOREIGN = "gerät-7"
"""Two bytes for one of its characters: lengths and partitions must count what the page says."""


class World:
    """A federation on a file, and foreign clients that reach it through a bus of their own."""

    def __init__(self, folder: Path, **plan: Any) -> None:
        self.folder = folder
        self.url = f"sqlite:{folder}/toy.db"
        self.key = Ed25519PrivateKey.generate()
        (folder / "outbox").mkdir()
        said = {"minimum": 1, "deadline_s": 20.0, "heartbeat_s": 0.05, "rounds": 3, **plan}
        snapshots = refold.SnapshotPolicy(2, 2)
        self.federation = refold.create(
            self.url, INITIAL, plan=refold.Plan(**said), snapshots=snapshots, rules={"steps": "sum"}, partitions=3
        )
        self.federation.enroll(FOREIGN, self.key.public_key().public_bytes_raw())

    def foreign(self, key: Ed25519PrivateKey | None = None) -> ForeignClient:
        return ForeignClient(open_bus(self.url, create=False), "toy", FOREIGN, key or self.key, self.folder / "outbox")

    def accepted(self) -> dict[bytes, UpdateAccepted]:
        entries = read_all(self.federation.bus, self.federation.topics.accepted)
        events = [event for entry in entries for event in entry.events]
        return {event.origin.digest: event for event in events if isinstance(event, UpdateAccepted)}

    def assert_sound(self) -> None:
        report = Audit(self.federation.bus, self.federation.topics).report()
        assert [str(finding) for finding in report.findings if finding.is_broken] == []


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def made(**plan: Any) -> World:
        worlds.append(World(tmp_path, **plan))
        return worlds[-1]

    yield made
    for world in worlds:
        world.federation.close()


def until(client: ForeignClient, holds: Callable[[], bool], what: str) -> None:
    """Let a client follow `rounds` until something holds."""

    def followed() -> bool:
        client.log.follow(0.05)
        return holds()

    eventually(followed, timeout_s=30.0, what=what)


def opened(client: ForeignClient) -> None:
    """Bring a client to where it has the model of round 0."""
    until(client, lambda: client.log.opened is not None, "the opening")
    client.open()
    until(client, lambda: client.model() is not None, "the first snapshot")
    client.beat("waiting")


def trained(model: dict[str, Any], by: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return a model as training leaves it, moved `by` so much on average."""
    moved = {
        name: array + (by + rng.normal(0, 0.01, array.size)).astype("f4") for name, array in model.items() if name != "steps"
    }
    return moved | {"steps": model["steps"] + 2}


def trains_along(federation: Federation, folder: Path, rng: np.random.Generator) -> None:
    """Answer every task as one of Refold's own clients."""
    with federation.client("ann", key=folder / "ann.pem", open_timeout_s=20.0) as client:
        for task in client.tasks():
            state = {name: array.reshape(-1) for name, array in task.numpy().items()}
            moved = trained(state, 0.1, rng)
            task.submit({name: moved[name].reshape(INITIAL[name].shape) for name in moved}, num_examples=100)


def test_it_trains_every_round_beside_refolds_own_client_each_time_with_another_codec(
    make: Callable[..., World], rng: np.random.Generator
) -> None:
    world = make(minimum=2)
    key = SigningKey.load_or_create(world.folder / "ann.pem")
    world.federation.enroll("ann", key.public)
    with refold.connect(world.url) as there, world.federation.serve():
        own = threading.Thread(target=trains_along, args=(there, world.folder, rng.spawn(1)[0]), daemon=True)
        own.start()
        client = world.foreign()
        opened(client)
        digests = []
        for round_, codec in enumerate(("float32", "grid", "exact"), 1):
            assert client.is_selected
            base = client.model()
            digests.append(client.train(trained(base, 0.3, rng), codec, 300))
            until(client, lambda: digests[-1] in client.log.receipts, "the receipt")
            assert client.log.receipts[digests[-1]] == "accepted"
            until(client, lambda wanted=round_: client.log.newest == wanted, "the round")
            change = client.model()["w"] - base["w"]
            # A step's cell is near a sixteenth of the change, and a change this even rounds all to one side.
            assert np.mean(change) == pytest.approx((0.3 * 300 + 0.1 * 100) / 400, abs=0.25 / 16)
            assert int(client.model()["steps"][0]) == 4 * round_
            client.beat()
        until(client, lambda: client.log.ended, "the end")
        own.join(20.0)
    accepted = world.accepted()
    assert [accepted[digest].codec for digest in digests] == ["float32", "grid", "exact"]
    assert len(accepted[digests[0]].payload.chunks) == 2
    assert client.waiting() == []
    same = world.federation.rebuild(3).numpy()
    assert {name: array.tobytes() for name, array in client.model().items()} == {n: a.tobytes() for n, a in same.items()}
    world.assert_sound()


def test_one_that_starts_late_gets_the_same_model_from_a_snapshot_and_the_steps_after_it(
    make: Callable[..., World], rng: np.random.Generator
) -> None:
    world = make()
    with world.federation.serve():
        client = world.foreign()
        opened(client)
        for round_ in (1, 2, 3):
            client.train(trained(client.model(), 0.1, rng), "grid", 10)
            until(client, lambda wanted=round_: client.log.newest == wanted, "the round")
        eventually(lambda: 2 in world.federation.history().snapshots, what="the snapshot of round 2")
    late = world.foreign()
    late.log.follow()
    assert {name: array.tobytes() for name, array in late.model().items()} == {
        name: array.tobytes() for name, array in client.model().items()
    }


def test_what_it_kept_before_it_died_is_sent_by_its_next_life_and_accepted_once(
    make: Callable[..., World], rng: np.random.Generator
) -> None:
    world = make(rounds=2)
    with world.federation.serve():
        first = world.foreign()
        opened(first)
        sent = first.train(trained(first.model(), 0.1, rng), "float32", 10)
        # Its receipt was never seen, so the next life sends the same bytes again, twice as it happens.
        second = world.foreign()
        second.open()
        second.send(sent)
        until(second, lambda: second.log.newest == 1, "round 1")
        assert second.log.receipts[sent] == "accepted"
        following = second.train(trained(second.model(), 0.1, rng), "grid", 10)
        until(second, lambda: following in second.log.receipts, "the receipt of the new session")
    assert world.accepted().keys() == {sent, following}
    assert second.waiting() == []
    world.assert_sound()


def test_it_evaluates_declines_and_is_told_the_class_of_a_refusal(make: Callable[..., World], rng: np.random.Generator) -> None:
    world = make(evaluate_every=1)
    with world.federation.serve():
        client = world.foreign()
        opened(client)
        assert client.log.plan["evaluate"]
        evaluated = client.evaluate({"loss": 0.5, "accuracy": 1.0}, 12)
        declined = client.decline("no data: 今日 none")
        until(client, lambda: {evaluated, declined} <= client.log.receipts.keys(), "both receipts")
        assert [client.log.receipts[digest] for digest in (evaluated, declined)] == ["accepted", "protocol"]
        client.open()  # A receipt of class protocol asks for a new session.
        broken = client.model()
        broken["b"][0] = 2.0**30
        refused = client.train(broken, "float32", 5)
        until(client, lambda: refused in client.log.receipts, "the refusal")
        assert client.log.receipts[refused] == "content"
        sound = client.train(trained(client.model(), 0.1, rng), "float32", 5)
        until(client, lambda: sound in client.log.receipts, "the last receipt")
        assert client.log.receipts[sound] == "accepted"
    assert world.accepted()[evaluated].metrics == (("accuracy", 1.0), ("loss", 0.5))


def test_where_the_plan_asks_for_sparse_updates_it_sends_its_largest_entries(
    make: Callable[..., World], rng: np.random.Generator
) -> None:
    world = make(codec="topk", density=0.01, rounds=1)
    with world.federation.serve():
        client = world.foreign()
        opened(client)
        base = client.model()
        whole = client.train(trained(base, 0.1, rng), "float32", 10)
        until(client, lambda: whole in client.log.receipts, "the refusal")
        assert client.log.receipts[whole] == "content"
        few = client.train(trained(base, 0.1, rng), "topk", 10)
        until(client, lambda: few in client.log.receipts, "the receipt")
        assert client.log.receipts[few] == "accepted"
        until(client, lambda: client.log.newest == 1, "round 1")
    assert 3000 < np.count_nonzero(client.model()["w"] != base["w"]) <= 3601
    world.assert_sound()


def test_one_with_a_key_that_nobody_enrolled_gets_no_receipt(make: Callable[..., World], rng: np.random.Generator) -> None:
    world = make(rounds=1)
    with world.federation.serve():
        stranger = world.foreign(Ed25519PrivateKey.generate())
        opened(stranger)
        unheard = stranger.train(trained(stranger.model(), 0.1, rng), "float32", 10)
        client = world.foreign()
        client.open()
        heard = client.train(trained(client.model(), 0.1, rng), "float32", 10)
        until(client, lambda: heard in client.log.receipts, "the receipt")
        until(client, lambda: client.log.ended, "the end")
        until(client, lambda: client.log.has_passed(*stranger.places[unheard]), "the sign that no receipt comes")
    assert unheard not in client.log.receipts
    assert (FOREIGN, "enrolled", client.key_id) in client.log.notices
    assert world.accepted().keys() == {heard}
