"""A server optimizer with slots goes on with the very same bits, wherever the server died."""

import random
from pathlib import Path

import numpy as np

import refold
from refold.bus.memory import MemoryBus
from refold.federation import Federation
from refold.schemas.errors import BusError, PlaceTakenError
from refold.schemas.keys import SigningKey
from refold.testing import LOST, UNSAID, FlakyBus, SteppedServer, craft_update, random_delta, send_update

ROUNDS = 40
TOPICS = ("checked", "deltas", "accepted", "steps", "rounds", "snapshot-chunks", "snapshots")
CLIENTS = ("a", "b", "c")


class Deaths:
    """Lets a server's write fail at ten places, one a life: the writes' own fates in turn, at a round of its own each."""

    def __init__(self, federation_name: str, count: int) -> None:
        chance = random.Random(4)
        rounds = sorted(chance.sample(range(2, ROUNDS), count))
        self.left = [(round_, TOPICS[n % len(TOPICS)], (LOST, UNSAID)[n % 2]) for n, round_ in enumerate(rounds)]
        self.name = federation_name
        self.round = 0
        self.deaths = 0

    def __call__(self, topic: str, value: bytes | None) -> str | None:
        if not self.left or self.round < self.left[0][0] or topic != f"{self.name}.{self.left[0][1]}":
            return None
        self.deaths += 1
        return self.left.pop(0)[2]


def trained(folder: Path, deaths: int) -> tuple[list[bytes], int]:
    """Return every round's state digest, and how often the server died on the way."""
    trouble = Deaths("fed", deaths)
    bus = FlakyBus(MemoryBus(), trouble)
    initial = {"w": np.linspace(-1, 1, 30_000, dtype="f4").reshape(150, 200), "n": np.array(0, np.int64)}
    plan = refold.Plan(minimum=len(CLIENTS), rounds=ROUNDS, deadline_s=1000.0)
    federation = refold.create(
        "memory:fed",
        initial,
        bus=bus,  # type: ignore[arg-type]
        plan=plan,
        optimizer=refold.FedAdam(lr=0.01),
        snapshots=refold.SnapshotPolicy(3, 2),
        defence="none",
        keys=folder / "keys",
    )
    keys = {name: SigningKey.load_or_create(folder / f"{name}.pem") for name in CLIENTS}
    for name, key in keys.items():
        federation.enroll(name, key.public)
    server = SteppedServer(federation, member="life0")
    for round_ in range(1, ROUNDS + 1):
        trouble.round = round_
        server = settled(federation, server, trouble)
        for number, name in enumerate(CLIENTS):
            chunks = random_delta(federation.genesis.schema, 100 * round_ + number, spread=2e5)
            update = craft_update(federation, name, keys[name], chunks=chunks, inline=False)
            send_update(federation, update, name)
        server = settled(federation, server, trouble)
    server.close()
    history = federation.history()
    digests = [history.lineage.state_digest(round_) or b"" for round_ in range(ROUNDS + 1)]
    assert all(history.rebuild(round_).digest == digests[round_] for round_ in (1, 17, ROUNDS))
    history.close()
    federation.close()
    return digests, trouble.deaths


def settled(federation: Federation, server: SteppedServer, trouble: Deaths) -> SteppedServer:
    """Let the server come to rest; where it dies, its successor, who knows nothing, goes on."""
    while True:
        before = trouble.deaths
        try:
            server.settle()
        except (BusError, PlaceTakenError):
            server.close()
            server = SteppedServer(federation, member=f"life{before + 1}")
            continue
        return server


def test_a_server_that_dies_at_ten_places_makes_the_rounds_of_one_that_lived(tmp_path: Path) -> None:
    lived, _ = trained(tmp_path / "one", 0)
    died, deaths = trained(tmp_path / "two", 10)
    assert deaths == 10
    assert lived == died
    assert len(set(lived)) == ROUNDS + 1
