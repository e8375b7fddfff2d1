"""Federations in which what is let in moves the model: final accuracy, and how well a backdoor works in it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from _attacks import ATTACKS, scene_of
from _federation import Course, Floats, Hands, Setting, Trainer, culprits, mean_of, takers
from _peers import Judge, Round


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
        count = int(is_bad.sum()) if attack else 0
        given = Round(round_, who, deltas, examples, seen[:-1], root, trainer.shapes, count, setting.seed)
        kept = np.ones(len(who), bool) if judge is None else ~judge.judge(given)[0]
        if kept.any():
            flat = flat + mean_of(deltas[kept], examples[kept])
    return trainer.accuracy(flat), trainer.backdoor_success(flat)


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
