"""Federations in which what is let in moves the model: final accuracy, and how well a backdoor works in it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from _attacks import ATTACKS, scene_of
from _federation import Course, Floats, Hands, Setting, Trainer, culprits, takers
from _peers import Judge, Round

from refold.consumers.selection import bounded, trusted


@lru_cache(maxsize=64)
def _without_anyone(setting: Setting) -> tuple[float, float]:
    return _train(setting, "", None)


def final_of(setting: Setting, attack: str, judge: Judge | None) -> tuple[float, float]:
    """Return accuracy and backdoor success after the last round; without a judge everyone is let in."""
    return _without_anyone(setting) if not attack and judge is None else _train(setting, attack, judge)


def _train(setting: Setting, attack: str, judge: Judge | None) -> tuple[float, float]:
    hands = Hands(setting)
    trainer = Trainer(setting, hands)
    flat, bad = trainer.initial(), culprits(setting)
    taken: list[np.typing.NDArray[np.int64]] = []
    honest: list[Floats] = []
    for round_ in range(1, setting.rounds + 1):
        who = takers(setting, round_)
        trained, seen = trainer.deltas(flat, np.append(who, setting.clients), round_)
        deltas, root = trained[:-1], trained[-1]
        taken.append(who)
        honest.append(deltas.copy())
        is_bad = bad[who]
        if attack and is_bad.any():
            poisoned = {poison: deltas.copy() for poison in ("flip", "backdoor")}
            for poison, rows in poisoned.items():
                rows[is_bad] = trainer.deltas(flat, who[is_bad], round_, poison)[0]
            past = _Past(setting, taken, honest, poisoned["flip"], poisoned["backdoor"], bad)
            deltas[is_bad] = ATTACKS[attack](scene_of(past.course(), round_ - 1, setting.seed))
        examples = np.array([len(hands.of[c]) for c in who])
        poisoned_now = is_bad if attack else np.zeros(len(who), bool)
        given = Round(round_, who, deltas, examples, seen[:-1], root, trainer.shapes, poisoned_now, setting.seed)
        refused, scores = (np.zeros(len(who), bool), np.zeros(len(who))) if judge is None else judge.judge(given)
        kept = ~refused
        if kept.any():
            flat = flat + _mean(deltas[kept], examples[kept], scores[kept], getattr(judge, "selection", ""))
    return trainer.accuracy(flat), trainer.backdoor_success(flat)


def _mean(deltas: Floats, examples: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], selection: str) -> Floats:
    """Return the mean as a federation with this rule of selection makes it."""
    weights = np.minimum(examples, 8 * np.sort(examples)[len(examples) // 2]).astype(np.float64)
    if selection:
        weights *= bounded(np.linalg.norm(deltas, axis=1).astype(np.float64))
    if selection == "doubt":
        weights *= trusted(scores.tolist())
    return np.asarray((weights / weights.sum()).astype(np.float32) @ deltas, np.float32)


class _Past:
    """The rounds so far, as `scene_of` reads a course."""

    def __init__(
        self,
        setting: Setting,
        taken: list[np.typing.NDArray[np.int64]],
        honest: list[Floats],
        flipped: Floats,
        backdoored: Floats,
        bad: np.typing.NDArray[np.bool_],
    ) -> None:
        empty = np.zeros(0, np.float32)
        rounds = len(taken)
        # Only the round of now has poisoned updates; the others are not looked at.
        self._course = Course(
            setting,
            np.array(taken),
            np.array(honest),
            np.repeat(flipped[None], rounds, axis=0),
            np.repeat(backdoored[None], rounds, axis=0),
            empty,
            empty,
            bad,
            empty,
            empty,
            (),
        )

    def course(self) -> Course:
        """Return it as a course."""
        return self._course
