"""What a seed stands for: a federation, who takes part, and what goes wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from refold.state.delta import TOPK
from tests.simulation.faults import Fault

BATCH_FATES = (
    "crash-before",
    "crash-after",
    "crash-late",
    "lose-send",
    "lose-ack",
    "late-send",
    "freeze-before",
    "freeze-after",
)
SPLIT_FATES = ("crash-part", "hole", "hole-crash")
SINGLE_FATES = ("crash-before", "crash-after", "lose-send", "lose-ack", "freeze-before", "freeze-after")

SERVER_POINTS = {
    "accepted/Commit": (12, 10),
    "rounds/Commit": (8, 6),
    "checked/Checked": (8, 6),
    "checked/Attempted": (5, 6),
    "accepted/EventList": (2, 4),
    "rounds/EventList": (1, 3),
    "deltas/Chunk": (3, 3),
    "steps/Chunk": (3, 3),
    "quarantine/Quarantined": (2, 4),
    "quarantine/Chunk": (1, 2),
    "snapshot-chunks/Chunk": (2, 3),
    "snapshots/SnapshotTaken": (3, 3),
    "snapshots/tombstone": (2, 2),
    "snapshot-chunks/tombstone": (1, 2),
    "alerts/Alert": (1, 2),
}
"""Where servers write → (how often a fault is put there, the last passing that it may wait for)."""
CLIENT_POINTS = {"updates/ClientUpdate": (8, 10), "updates/Chunk": (4, 8), "health/Heartbeat": (1, 20)}
SINGLE_POINTS = {"updates/offsets": (2, 8), "updates/delete": (3, 4), "checked/delete": (3, 4)}
DISK_POINTS = {"outbox/put": (3, 8), "outbox/drop": (3, 8)}

TIMED = {
    "crash": 6,
    "freeze": 5,
    "stop": 2,
    "join": 4,
    "cut off": 3,
    "cut off all": 1,
    "lose disk": 2,
    "second session": 2,
    "gone": 2,
    "move offsets": 4,
    "gap": 4,
    "garbage": 3,
    "truncated": 2,
    "flipped": 3,
    "replay": 4,
    "forge": 3,
    "equivocate": 4,
    "claim": 5,
    "orphan chunks": 1,
    "swap": 3,
    "lie of life": 1,
    "noise in logs": 2,
    "compact": 2,
    "lose tail": 2,
}
DAMAGE = "damage snapshot"
DAMAGE_STEP = "damage step"
ROLL_BACK = "roll back"
LAST_S = 9.0
"""Timed faults begin before this."""


@dataclass(frozen=True)
class Scenario:
    """One run.

    Parameters
    ----------
    servers
        For each server process the groups that it runs.
    names_stay
        A process that starts again has its old member names.
    training_s
        For each client about how long it trains.
    is_chunked
        Payloads travel as chunks, however small.
    small_commits
        Commits' events travel apart, however few.
    switching
        How likely an actor is interrupted between two of its steps.
    counter
        What the model's counter begins with; near its end it may come to stay there.
    grows
        The model soon leaves its lattice, and goes on on a coarser one.
    keep_rounds
        Of so many rounds, the newest, payloads are kept; 0 keeps all.
    has_token
        The first client enrols its key by itself, with a one-time token.
    """

    seed: int
    servers: tuple[tuple[str, ...], ...]
    names_stay: bool
    training_s: tuple[float, ...]
    has_adversary: bool
    partitions: int
    rounds: int
    minimum: int
    deadline_s: float
    max_staleness: int
    buffer: int
    evaluate_every: int
    share: float
    codec: str
    optimizer: str
    defence: str
    snapshots: tuple[int, int]
    is_chunked: bool
    small_commits: bool
    switching: float
    session_s: float
    counter: int
    keep_rounds: int
    has_token: bool
    grows: bool
    faults: tuple[Fault, ...]

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the honest clients."""
        return tuple(f"c{number}" for number in range(len(self.training_s)))

    def only(self, kept: set[int]) -> Scenario:
        """Return the same run with some of its faults."""
        return replace(self, faults=tuple(fault for number, fault in enumerate(self.faults) if number in kept))


ALL = ("consistency", "detection", "aggregation", "snapshots")
LAYOUTS = (
    (ALL, ALL),
    (ALL, ALL, ("consistency",)),
    (ALL, ("consistency", "detection")),
    (("consistency",), ("consistency",), ("detection",), ("detection", "aggregation"), ("aggregation", "snapshots")),
    (ALL,),
)


def scenario(seed: int) -> Scenario:
    """Return what a seed stands for."""
    chance = random.Random(f"scenario {seed}")
    clients = chance.choice((1, 2, 2, 3, 3, 4))
    slow = chance.random() < 0.3
    training_s = tuple(chance.choice((0.0, 0.1, 0.5)) for _ in range(clients))
    if slow:
        training_s = (chance.uniform(2.0, 5.0), *training_s[1:])
    is_async = chance.random() < 0.25
    has_adversary = chance.random() < 0.6
    later = random.Random(f"later {seed}")  # Of its own, so that every other choice of a seed stays what it was.
    is_sparse, damages = later.random() < 0.15, later.random() < 0.15
    keep_rounds = later.choice((0, 0, 0, 1, 2))
    grows = random.Random(f"grows {seed}").random() < 0.1
    return Scenario(
        seed=seed,
        servers=chance.choice(LAYOUTS),
        names_stay=chance.random() < 0.4,
        training_s=training_s,
        has_adversary=has_adversary,
        partitions=chance.choice((1, 2, 2, 3)),
        rounds=chance.choice((2, 2, 3, 4)),
        minimum=1 if is_async else chance.randint(1, clients),
        deadline_s=chance.choice((1.0, 2.0, 4.0)),
        max_staleness=chance.choice((1, 2)) if is_async else 0,
        buffer=_buffer(seed, clients) if is_async else 0,
        evaluate_every=chance.choice((0, 0, 1, 2)),
        share=chance.choice((1.0, 1.0, 0.6)),
        codec=_codec(chance.choice(("grid", "grid", "exact", "float32")), is_sparse=is_sparse),
        optimizer=_optimizer(chance.choice(("fedavg", "fedavg", "fedavg", "fedadam", "fedavgm")), grows=grows),
        defence=chance.choice(("consistency", "consistency", "consistency", "all")),
        snapshots=(chance.choice((1, 1, 2)), chance.choice((1, 2))),
        is_chunked=chance.random() < 0.5,
        small_commits=chance.random() < 0.2,
        switching=chance.choice((0.0, 0.02, 0.1)),
        session_s=chance.choice((2.5, 4.0)),
        counter=chance.choice((0, 0, 0, 60, 120)),
        keep_rounds=keep_rounds,
        has_token=later.random() < 0.2,
        grows=grows,
        faults=tuple(_fault(chance, has_adversary) for _ in range(chance.choice((0, 2, 4, 6, 8, 10, 12))))
        + _rollbacks(seed)
        + (_damages(later) if damages else ())
        + (_damaged_steps(seed) if not keep_rounds else ()),
    )


def _codec(drawn: str, *, is_sparse: bool) -> str:
    return TOPK if is_sparse else drawn


def _optimizer(drawn: str, *, grows: bool) -> str:
    return "fedavg" if grows else drawn


def _damages(chance: random.Random) -> tuple[Fault, ...]:
    """Return when bits of snapshots are flipped."""
    return tuple(
        Fault(DAMAGE, "", 0, chance.uniform(1.0, LAST_S), 0.0, chance.randrange(1 << 16)) for _ in range(chance.choice((1, 3)))
    )


def _damaged_steps(seed: int) -> tuple[Fault, ...]:
    """Return when bits of steps are flipped: in a tenth of the runs."""
    chance = random.Random(f"steps {seed}")  # Of its own, so that every other choice of a seed stays what it was.
    count = chance.choice((1, 3)) if chance.random() < 0.1 else 0
    return tuple(Fault(DAMAGE_STEP, "", 0, chance.uniform(0.5, LAST_S), 0.0, chance.randrange(1 << 16)) for _ in range(count))


def _rollbacks(seed: int) -> tuple[Fault, ...]:
    """Return when an operator goes back to an earlier round: in a fifth of the runs, up to three times."""
    chance = random.Random(f"rollbacks {seed}")  # Of its own, so that every other choice of a seed stays what it was.
    count = chance.choice((1, 2, 3)) if chance.random() < 0.2 else 0
    times = sorted(chance.uniform(0.5, LAST_S / 2) for _ in range(count))
    return tuple(Fault(ROLL_BACK, "", 0, at_s, 0.0, chance.randrange(1 << 16)) for at_s in times)


def _buffer(seed: int, clients: int) -> int:
    """Return after how many updates a round closes; drawn apart, so that a seed's faults are what they were."""
    chance = random.Random(f"buffer {seed}")
    return chance.choice((0, 1, max(1, clients - 1)))


def _fault(chance: random.Random, has_adversary: bool) -> Fault:
    if chance.random() < 0.45:
        return _timed(chance, has_adversary)
    families = (
        (SERVER_POINTS, BATCH_FATES, 10),
        (SERVER_POINTS, SPLIT_FATES, 4),
        (CLIENT_POINTS, BATCH_FATES + SPLIT_FATES, 4),
        (SINGLE_POINTS, SINGLE_FATES, 2),
        (DISK_POINTS, ("crash-before", "crash-after", "disk-full", "freeze-before"), 2),
        ({"updates/Chunk": (1, 6)}, ("corrupt",), 1),
        ({"checked/Attempted": (1, 5)}, ("poison",), 1),
        (SERVER_POINTS | CLIENT_POINTS, ("repeat",), 2),
    )
    points, fates, _ = chance.choices(families, [weight for *_, weight in families])[0]
    point = chance.choices(list(points), [weight for weight, _ in points.values()])[0]
    nth = chance.randint(1, points[point][1])
    what = chance.choice(fates)
    if (what, point) == ("disk-full", "outbox/drop"):
        what = "crash-before"  # Nobody is refused room for forgetting.
    return Fault(what, point, nth, 0.0, _span_s(chance), chance.randrange(1 << 16))


def _timed(chance: random.Random, has_adversary: bool) -> Fault:
    kinds = [kind for kind in TIMED if has_adversary or kind not in ("equivocate", "claim")]
    what = chance.choices(kinds, [TIMED[kind] for kind in kinds])[0]
    return Fault(what, "", 0, chance.uniform(0.0, LAST_S), _span_s(chance), chance.randrange(1 << 16))


def _span_s(chance: random.Random) -> float:
    """Return how long something lasts: a moment, or longer than a session."""
    return chance.choice((chance.uniform(0.01, 0.3), chance.uniform(0.3, 2.0), chance.uniform(2.0, 6.0)))
