"""Attacks on the averages of federated learning, and faults that look like them: what the bad clients of a round send.

An attacker knows every honest update of the round. Colluders send the same, or, *jittered*, each with noise of its own, so that
they are no twins byte for byte. Each function returns the bad clients' updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from _federation import Course, Floats

JITTER = 0.5
"""Length of a colluder's own noise, relative to the spread of the honest updates."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A round as an attacker sees it: `own` is what the bad clients' own honest training made, `others` the honest updates."""

    round: int
    own: Floats
    others: Floats
    flipped: Floats
    backdoored: Floats
    stale: Floats
    last_step: Floats
    rng: np.random.Generator
    fixed: np.random.Generator

    @property
    def mean(self) -> Floats:
        """Mean of the honest updates."""
        return np.asarray(self.others.mean(axis=0))

    @property
    def spread(self) -> Floats:
        """Standard deviation of the honest updates, by coordinate."""
        return np.asarray(self.others.std(axis=0))

    def all_send(self, update: Floats) -> Floats:
        """Return one update for each colluder."""
        return np.repeat(update[None], len(self.own), axis=0)

    def noise(self, like: Floats) -> Floats:
        """Return Gaussian noise, each row as long as the same row of `like`."""
        noise = self.rng.normal(size=like.shape).astype(np.float32)
        return np.asarray(noise * (_length(like) / _length(noise)))


Attack = Callable[[Scene], Floats]


def _length(rows: Floats) -> Floats:
    return np.asarray(np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-12)


def alie(scene: Scene) -> Floats:
    """Source: Baruch, Baruch and Goldberg, A little is enough, 2019, with the z that they give for 20 workers and more."""
    return scene.all_send(scene.mean - np.float32(1.0) * scene.spread)


def inner_product(scene: Scene) -> Floats:
    """Source: Xie, Koyejo and Gupta, Fall of empires, 2019, ε = 1."""
    return scene.all_send(-scene.mean)


def inner_product_weak(scene: Scene) -> Floats:
    """The same with ε = 0.5."""
    return scene.all_send(np.float32(-0.5) * scene.mean)


def min_max(scene: Scene) -> Floats:
    """No further from any honest update than the two furthest honest ones. Source: Shejwalkar and Houmansadr, 2021."""
    furthest = max(float(np.linalg.norm(scene.others - row, axis=1).max()) for row in scene.others)
    return _furthest(scene, lambda update: np.linalg.norm(scene.others - update, axis=1).max() <= furthest)


def min_sum(scene: Scene) -> Floats:
    """Squared distances to the honest updates sum to no more than any honest one's. Source: Shejwalkar and Houmansadr, 2021."""
    most = max(float((np.linalg.norm(scene.others - row, axis=1) ** 2).sum()) for row in scene.others)
    return _furthest(scene, lambda update: (np.linalg.norm(scene.others - update, axis=1) ** 2).sum() <= most)


def _furthest(scene: Scene, passes: Callable[[Floats], np.bool_]) -> Floats:
    low, high = 0.0, 50.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = passes(scene.mean - np.float32(middle) * scene.spread)
        low, high = (middle, high) if fits else (low, middle)
    return scene.all_send(scene.mean - np.float32(low) * scene.spread)


def fang(scene: Scene) -> Floats:
    """Beyond the honest extreme, against the mean's sign. Source: Fang et al., Local model poisoning, 2020."""
    low, high = scene.others.min(axis=0), scene.others.max(axis=0)
    share = scene.rng.uniform(0, 1, scene.own.shape).astype(np.float32)
    above = np.where(high > 0, high * (1 + share), high / (1 + share))
    below = np.where(low > 0, low / (1 + share), low * (1 + share))
    return np.asarray(np.where(scene.mean > 0, below, above), np.float32)


def noise_alone(scene: Scene) -> Floats:
    """Gaussian noise as long as the own update."""
    return scene.noise(scene.own)


def added_noise(scene: Scene) -> Floats:
    """The own update with as much noise as itself."""
    return scene.own + scene.noise(scene.own)


def copied(scene: Scene) -> Floats:
    """A free-rider: somebody else's update, hardly changed. Source: Fraboni, Vidal and Lorenzi, Free-rider attacks, 2021."""
    taken = scene.others[scene.rng.integers(len(scene.others), size=len(scene.own))]
    return taken + np.float32(0.05) * scene.noise(taken)


def disguised(scene: Scene) -> Floats:
    """A free-rider: the last step of the model, with noise. Source: as `copied`."""
    rows = scene.all_send(scene.last_step)
    return rows + np.float32(0.3) * scene.noise(rows)


def colluding(scene: Scene) -> Floats:
    """One random direction for all, each as long as the own update."""
    direction = scene.fixed.normal(size=scene.own.shape[1]).astype(np.float32)
    return np.asarray(direction / np.linalg.norm(direction) * _length(scene.own))


def drifting(scene: Scene) -> Floats:
    """The own update, pushed a little further in one direction in every round."""
    direction = scene.fixed.normal(size=scene.own.shape[1]).astype(np.float32)
    push = np.float32(min(0.1 * scene.round, 1.5)) * _length(scene.own) / np.linalg.norm(direction)
    return np.asarray(scene.own + push * direction)


def jittered(attack: Attack) -> Attack:
    """Return the attack with noise of each colluder's own, as long as `JITTER` times the honest spread."""

    def send(scene: Scene) -> Floats:
        rows = attack(scene)
        return np.asarray(rows + np.float32(JITTER) * scene.noise(scene.all_send(scene.spread)))

    return send


ATTACKS: dict[str, Attack] = {
    "sign-flip": lambda scene: -scene.own,
    "sign-flip-x5": lambda scene: np.float32(-5) * scene.own,
    "scale-x10": lambda scene: np.float32(10) * scene.own,
    "noise": noise_alone,
    "added-noise": added_noise,
    "label-flip": lambda scene: scene.flipped,
    "alie": alie,
    "alie-jittered": jittered(alie),
    "ipm": inner_product,
    "ipm-jittered": jittered(inner_product),
    "ipm-weak-jittered": jittered(inner_product_weak),
    "min-max": min_max,
    "min-max-jittered": jittered(min_max),
    "min-sum-jittered": jittered(min_sum),
    "fang": fang,
    "backdoor": lambda scene: scene.backdoored,
    "backdoor-x5": lambda scene: np.float32(5) * scene.backdoored,
    "copied": copied,
    "disguised": disguised,
    "colluding": colluding,
    "colluding-jittered": jittered(colluding),
    "drift": drifting,
    "stale": lambda scene: scene.stale,
}
HELD_OUT = ("fang", "disguised", "min-sum-jittered")
"""Attacks that took no part in any choice."""


def scene_of(course: Course, at: int, seed: int) -> Scene:
    """Return what attackers see of round `at`, from 0, of a course."""
    who = course.taking[at]
    bad = course.bad[who]
    before = max(at - 1, 0)
    good_before = course.honest[before][~course.bad[course.taking[before]]]
    return Scene(
        at + 1,
        course.honest[at][bad],
        course.honest[at][~bad],
        course.flipped[at][bad],
        course.backdoored[at][bad],
        np.array([_older(course, at, int(client), row) for client, row in zip(who[bad], course.honest[at][bad], strict=True)]),
        good_before.mean(axis=0),
        np.random.default_rng([seed, 7, at]),
        np.random.default_rng([seed, 8]),
    )


def _older(course: Course, at: int, client: int, now: Floats) -> Floats:
    """Return what a client sent for a round at least two before, or the oldest there is: it lies about its base."""
    for earlier in range(max(at - 2, 0), -1, -1):
        found: npt.NDArray[np.intp] = np.flatnonzero(course.taking[earlier] == client)
        if len(found):
            return course.honest[earlier][found[0]]
    return now
