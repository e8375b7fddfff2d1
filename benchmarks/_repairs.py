"""Ways to undo what culprits did to a model: Refold's, and those that it is compared with.

Each takes what the log holds, the clients that are kept, and returns a model with the work that it asked of clients: training
passes over their data, relative to training from scratch without the culprits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from _healing import BATCH, RATE, SHAPES, Floats, Poisoned, shares, train

from refold.consumers.branches import Branches
from refold.plan import Plan
from refold.recovering import calibration_for
from refold.schemas.events import Member, RoundClosed


@dataclass(frozen=True, slots=True)
class Repaired:
    """A model, and what it cost: `work` in passes over the clients' data, 1 being all of training from scratch."""

    model: Floats
    work: float


Method = Callable[[Poisoned, list[int]], Repaired]


def scratch(past: Poisoned, kept: list[int]) -> Repaired:
    """Train again without the culprits: as many rounds, the same settings."""
    return Repaired(_rounds(past, kept, past.states[0], len(past.deltas)), 1.0)


def none(past: Poisoned, kept: list[int]) -> Repaired:
    """Do nothing."""
    return Repaired(past.states[-1], 0.0)


def drop_deltas(past: Poisoned, kept: list[int]) -> Repaired:
    """Add up what the others sent. A diagnosis, no unlearning: they trained from models that the culprits had changed."""
    hands = [past.hands[client] for client in kept]
    return Repaired(past.states[0] + (shares(hands) @ past.deltas[:, kept]).sum(axis=0), 0.0)


def few_rounds(past: Poisoned, kept: list[int]) -> Repaired:
    """Roll back and train three rounds as usual: the same work as the calibration, without its settings."""
    return Repaired(_rounds(past, kept, past.states[0], 3), 3 / len(past.deltas))


def keep_and_tune(past: Poisoned, kept: list[int]) -> Repaired:
    """Roll nothing back, and train three rounds without the culprits: what takes out no backdoor."""
    return Repaired(_rounds(past, kept, past.states[-1], 3), 3 / len(past.deltas))


def _rounds(past: Poisoned, kept: list[int], model: Floats, rounds: int) -> Floats:
    hands, rng = [past.hands[client] for client in kept], np.random.default_rng([past.seed, 4])
    for _ in range(rounds):
        model = model + shares(hands) @ train(model, hands, rng, rate=RATE, batch=BATCH)
    return model


WORK = 0.05
SETTINGS = {"rate": (0.2, 0.003), "batch": 2}
"""What the calibration asks of clients: tiny batches, and a rate that falls in a line. Chosen on seeds that no row shows."""


def calibrate(past: Poisoned, kept: list[int]) -> Repaired:
    """Refold's: roll back to before the culprits came, then a calibration, one client at a time, as its own plans say."""
    rounds = len(past.deltas)
    names = {f"c{client:02}": client for client in kept}
    calibration = calibration_for(rounds * len(kept), work=WORK, settings=SETTINGS)
    policy = Plan(seed=past.seed.to_bytes(16, "little")).policy()
    tree = _grown(policy, rounds)
    event = tree.rolled_back(policy, 0, "", calibration=calibration, clients=tuple(names))
    tree.roll_back(event)
    plan, model, visits = event.next_plan, past.states[0], 0
    rng = np.random.default_rng([past.seed, 5])
    for _ in range(calibration.rounds):
        asked = [name for name in names if plan.selects(name)]
        config = dict(plan.config)
        hands = [past.hands[names[name]] for name in asked]
        model = model + shares(hands) @ train(model, hands, rng, rate=float(config["rate"]), batch=int(config["batch"]))
        visits += len(asked)
        plan = _closed(tree, policy, asked, tuple(names))
    return Repaired(model, visits / (rounds * len(kept)))


def _grown(policy: object, rounds: int) -> Branches:
    from refold.consumers.planning import plan_round

    tree = Branches.of(plan_round(policy, 1, (0,), ()))  # type: ignore[arg-type]
    for _ in range(rounds):
        _closed(tree, policy, [], ())
    return tree


def _closed(tree: Branches, policy: object, members: list[str], living: tuple[str, ...]):  # type: ignore[no-untyped-def]
    plan = tree.plan_after(policy, (0,), living, members)  # type: ignore[arg-type]
    cohort = tuple(Member(bytes(32), name, 1) for name in members)
    tree.close(RoundClosed(tree.head + 1, tree.head, cohort, "weighted_mean", "fedavg", (), "complete", plan))
    return plan


def fed_eraser(past: Poisoned, kept: list[int], *, every: int = 2, share: float = 0.5) -> Repaired:
    """Replay every second round: the length of what a client sent then, in the direction of half an epoch of training now.

    Source: Liu et al., FedEraser: enabling efficient client-level data removal from federated learning models, 2021.
    """
    hands, rng = [past.hands[client] for client in kept], np.random.default_rng([past.seed, 6])
    model, visits = past.states[0].copy(), 0.0
    for round_ in range(0, len(past.deltas), every):
        fresh = train(model, hands, rng, rate=RATE, batch=BATCH, share=share)
        # The rounds between are replayed with the round that is kept.
        scaled = [_rescaled(new, old) for new, old in zip(fresh, past.deltas[round_, kept], strict=True)]
        model = model + every * (shares(hands) @ np.array(scaled))
        visits += share * len(kept)
    return Repaired(np.asarray(model, np.float32), visits / (len(past.deltas) * len(kept)))


def _rescaled(direction: Floats, length: Floats) -> Floats:
    """Return the direction with the length, tensor by tensor."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES])[:-1]
    pairs = zip(np.split(direction, ends), np.split(length, ends), strict=True)
    return np.concatenate([new * (np.linalg.norm(old) / (np.linalg.norm(new) + 1e-12)) for new, old in pairs])


class _Curvature:
    """A client's estimate of how its update changes with the model: limited-memory BFGS over two pairs.

    Source: Byrd, Nocedal and Schnabel, Representations of quasi-Newton matrices, 1994.
    """

    def __init__(self) -> None:
        self._moves: list[Floats] = []
        self._changes: list[Floats] = []

    def learn(self, move: Floats, change: Floats) -> None:
        """Take in a pair: models that far apart have gradients that far apart."""
        if float(move @ change) > 1e-10:
            self._moves, self._changes = [*self._moves[-1:], move], [*self._changes[-1:], change]

    def times(self, vector: Floats) -> Floats:
        """Return the curvature times a vector."""
        if not self._moves:
            return np.zeros_like(vector)
        moves, changes = np.array(self._moves, np.float64).T, np.array(self._changes, np.float64).T
        scale = float(changes[:, -1] @ moves[:, -1]) / float(moves[:, -1] @ moves[:, -1])
        inner = moves.T @ changes
        low, middle = np.tril(inner, -1), np.diag(np.diag(inner))
        block = np.block([[-middle, low.T], [low, scale * moves.T @ moves]])
        right = np.concatenate([changes.T @ vector, scale * (moves.T @ vector)])
        try:
            solved = np.linalg.solve(block, right)
        except np.linalg.LinAlgError:
            return np.zeros_like(vector)
        return np.asarray(scale * vector - np.hstack([changes, scale * moves]) @ solved, np.float32)


ODD = 4


def fed_recover(past: Poisoned, kept: list[int], *, warm: int = 4, every: int = 6, last: int = 3) -> Repaired:
    """Estimate what the others would have sent by their curvature; ask them exactly at first, every so often, and at the end.

    Source: Cao, Jia, Zhang and Gong, FedRecover: recovering from poisoning attacks in federated learning using historical
    information, 2023. An estimate `ODD` times as long as what was sent is asked for exactly, as its *abnormality fixing* does.
    """
    hands, rng = [past.hands[client] for client in kept], np.random.default_rng([past.seed, 7])
    curvature = [_Curvature() for _ in kept]
    weight, model, visits = shares(hands), past.states[0].copy(), 0
    rounds = len(past.deltas)
    for round_ in range(rounds):
        moved, sent = model - past.states[round_], past.deltas[round_, kept]
        exact = round_ < warm or round_ >= rounds - last or (round_ - warm) % every == 0
        # Updates are steps against the gradient: minus an update stands for it.
        guess = np.array([old - own.times(moved) for old, own in zip(sent, curvature, strict=True)])
        odd = np.linalg.norm(guess, axis=1) > ODD * np.linalg.norm(sent, axis=1)
        asked = np.arange(len(kept)) if exact else np.flatnonzero(odd)
        if len(asked):
            guess[asked] = train(model, [hands[at] for at in asked], rng, rate=RATE, batch=BATCH)
            visits += len(asked)
        if exact and round_:
            for own, new, old in zip(curvature, guess, sent, strict=True):
                own.learn(moved, old - new)
        model = np.asarray(model + weight @ guess, np.float32)
    return Repaired(model, visits / (rounds * len(kept)))


METHODS: dict[str, Method] = {
    "poisoned": none,
    "from scratch": scratch,
    "rollback and calibration": calibrate,
    "rollback and 3 rounds": few_rounds,
    "3 rounds, no rollback": keep_and_tune,
    "deltas dropped": drop_deltas,
    "FedEraser": fed_eraser,
    "FedRecover": fed_recover,
}
