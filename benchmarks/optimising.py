"""An attacker who knows the rules and optimises against them: what is lost although detection judges every round.

He controls 20 % of the clients, sees every honest update of the round before he sends, and holds a copy of the detector with
all that it remembers: he may ask it as often as he likes what it would say of any cohort, secret sketches included, and so
knows more than any real attacker. In each round he tries several directions, each at several strengths, asks for verdicts, and
refines the best by bisection: what counts is how far those of his updates that would be *accepted* push. He sends the best.

- ``accuracy``: directions against the honest mean, from his own updates or as one jittered update of all (as ALIE is), and
  towards what training on flipped labels gives; pushed is the way back along the honest mean.
- ``backdoor``: towards what training on triggered examples gives.

``lost`` is points of accuracy below the same federation without bad clients, ``refused`` the share of his updates that are
found all the same; ``plain`` is the share that is found of an attacker who sends the same kind at full strength without asking.

    python benchmarks/optimising.py [--quick] [--seeds N] [--first-seed N] [--bad 0.2] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from _own import Own
from _peers import Round
from detection import ALPHAS

import refold
from refold.consumers.features import Features
from refold.detection import _Extractor

from _federation import Floats, Hands, Setting, Trainer, culprits, mean_of, takers  # isort: skip

STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
REFINED = 4
JITTER = 0.5


@dataclass(frozen=True, slots=True)
class Known:
    """What the attacker sees of a round; rows of `own`, `flipped` and `backdoored` are his clients'."""

    own: Floats
    others: Floats
    flipped: Floats
    backdoored: Floats
    noise: Floats

    @property
    def mean(self) -> Floats:
        """Mean of the honest updates."""
        return np.asarray(self.others.mean(axis=0))


Family = Callable[[Known, float], Floats]
AGAINST: dict[str, Family] = {
    "own, against the mean": lambda k, s: k.own - np.float32(s) * k.mean,
    "jittered, beside the mean": lambda k, s: k.mean - np.float32(s) * k.others.std(axis=0) + k.noise,
    "own, turned round": lambda k, s: (1 - np.float32(2 * min(s, 1.0))) * k.own * np.float32(max(s, 1.0)),
    "flipped labels": lambda k, s: k.own + np.float32(s) * (k.flipped - k.own),
}
BACKDOOR: dict[str, Family] = {"backdoored": lambda k, s: k.own + np.float32(s) * (k.backdoored - k.own)}


class Copy:
    """The attacker's copy of the detector: asked without being told."""

    def __init__(self, own: Own, given: Round, bad: np.typing.NDArray[np.bool_]) -> None:
        self._detection, self._own, self._given, self._bad = own._detection, own, given, bad
        self._features = self._of(given)
        self.asked = 0

    def _of(self, given: Round) -> list[Features | str]:
        deltas = self._own._deltas(given)
        self._detection._extractor = self._detection._extractor or _Extractor.of(deltas[0], bytes(32))
        return [self._detection._extractor.features(delta) for delta in deltas]

    def accepted(self, rows: Floats) -> np.typing.NDArray[np.bool_]:
        """Return which of his updates would be accepted if he sent these."""
        self.asked += 1
        given = Round(**{name: getattr(self._given, name) for name in Round.__slots__} | {"deltas": rows})
        features = list(self._features)
        for at, found in zip(np.flatnonzero(self._bad), self._of(given), strict=True):
            features[at] = found
        sound = [at for at, found in enumerate(features) if isinstance(found, Features)]
        names = [f"client-{client:03d}" for client in self._given.clients]
        cohort = refold.Cohort(self._given.round, names, self._given.deltas, self._given.examples.tolist())
        judged = self._detection._ensemble.judge(self._detection._features_of(cohort, sound, features))
        taken = {at for at, opinion in zip(sound, judged, strict=True) if not opinion.reasons}
        return np.array([at in taken for at in np.flatnonzero(self._bad)])


def best(known: Known, families: dict[str, Family], copy: Copy | None, aim: Floats) -> Floats:
    """Return what pushes furthest along `aim` with those of his updates that would be accepted."""

    def push(family: Family, strength: float) -> tuple[float, Floats]:
        rows = np.asarray(family(known, strength), np.float32)
        kept = copy.accepted(rows) if copy else np.ones(len(rows), bool)
        return float(((rows - known.own) @ aim)[kept].sum()), rows

    top, sent = 0.0, known.own
    for family in families.values():
        found = [push(family, strength) for strength in STRENGTHS]
        at = int(np.argmax([value for value, _ in found]))
        value, rows = found[at]
        low, high = STRENGTHS[at], STRENGTHS[min(at + 1, len(STRENGTHS) - 1)]
        for _ in range(REFINED if high > low else 0):
            middle = (low + high) / 2
            tried, its_rows = push(family, middle)
            if tried > value:
                value, rows, low = tried, its_rows, middle
            else:
                high = middle
        if value > top:
            top, sent = value, rows
    return sent


@dataclass(slots=True)
class End:
    """What a federation came to."""

    accuracy: float
    backdoor: float
    refused: float
    false: float


def play(setting: Setting, goal: str, *, judged: bool, asks: bool = True) -> End:
    """Train to the end with what is let in; `goal` is "" where nobody attacks."""
    hands = Hands(setting)
    trainer = Trainer(setting, hands)
    flat, bad, own = trainer.initial(), culprits(setting), Own()
    caught, false = [], []
    for round_ in range(1, setting.rounds + 1):
        who = takers(setting, round_)
        is_bad = bad[who]
        deltas, seen = trainer.deltas(flat, who, round_)
        examples = np.array([len(hands.of[c]) for c in who])
        given = Round(round_, who, deltas, examples, seen, deltas[0], trainer.shapes, np.zeros(len(who), bool), setting.seed)
        if goal and is_bad.any():
            copy = Copy(own, given, is_bad) if judged and asks else None
            deltas[is_bad] = _sent(trainer, flat, given, is_bad, goal, copy)
        refused = own.judge(given)[0] if judged else np.zeros(len(who), bool)
        caught += refused[is_bad].tolist()
        false += refused[~is_bad].tolist()
        if not refused.all():
            flat = flat + mean_of(deltas[~refused], examples[~refused])
    return End(trainer.accuracy(flat), trainer.backdoor_success(flat), float(np.mean(caught or [0])), float(np.mean(false)))


def _sent(trainer: Trainer, flat: Floats, given: Round, bad: Any, goal: str, copy: Copy | None) -> Floats:
    poisoned = [trainer.deltas(flat, given.clients[bad], given.round, poison)[0] for poison in ("flip", "backdoor")]
    rng = np.random.default_rng([given.seed, 9, given.round])
    own, others = given.deltas[bad].copy(), given.deltas[~bad]
    noise = rng.normal(size=own.shape).astype(np.float32)
    noise *= JITTER * np.linalg.norm(others.std(axis=0)) / np.linalg.norm(noise, axis=1, keepdims=True)
    known = Known(own, others, *poisoned, noise)
    aim = -known.mean if goal == "accuracy" else (known.backdoored - known.own).mean(axis=0)
    families = AGAINST if goal == "accuracy" else BACKDOOR
    return best(known, families, copy, aim / (np.linalg.norm(aim) + 1e-12))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a goal and way of dealing, the mean of the seeds."""
    rows = []
    for goal in ("accuracy", "backdoor"):
        for alpha in ALPHAS:
            found = []
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                setting = Setting(
                    alpha=alpha, bad=options.bad, seed=seed, rounds=options.rounds or (8 if options.quick else 20)
                )
                clean = play(setting, "", judged=False)
                open_, plain = play(setting, goal, judged=False), play(setting, goal, judged=True, asks=False)
                end = play(setting, goal, judged=True)
                lost = [100 * (clean.accuracy - other.accuracy) for other in (open_, plain, end)]
                found.append([*lost, open_.backdoor, end.backdoor, plain.refused, end.refused, end.false])
            names = ("lost_open", "lost_plain", "lost", "backdoor_open", "backdoor", "plain_refused", "refused", "false")
            rows.append({"goal": goal, "alpha": alpha, **dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 rounds")
    parser.add_argument("--rounds", type=int, default=0, help="20, or 8 with --quick")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--bad", type=float, default=0.2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started_s = time.monotonic()
    rows = measure(options)
    if options.json:
        print(json.dumps({"seconds": time.monotonic() - started_s, "rows": rows}))
        return 0
    print("points lost: without a defence, at full strength without asking, and optimised; how often the backdoor works:")
    print(
        "without a defence and optimised; share of the attacker's updates refused: without asking and optimised; false alarms"
    )
    for row in rows:
        dealt = "evenly" if row["alpha"] is None else f"{row['alpha']:g}"
        losses = " ".join(f"{row[name]:>7.1f}" for name in ("lost_open", "lost_plain", "lost"))
        shares = " ".join(f"{row[name]:>7.1%}" for name in ("backdoor_open", "backdoor", "plain_refused", "refused", "false"))
        print(f"{row['goal']:<9} {dealt:>7} {losses}  {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
