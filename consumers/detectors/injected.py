"""Faults injected into what is remembered of past cohorts: what the features of an attack would have been.

A whole update is not there any more, and need not be: a flip, a scaling, noise or a mean of others can be made of features.
What cannot be told from features exactly (a tensor's size, how noise spreads magnitudes) is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors.contract import TINY, Floats
from refold.consumers.features import LEAST, MOST, POSITIVES, SQUARES, ZEROS, Features

Victims = Sequence[int]
Inject = Callable[[tuple[Features, ...], Victims, np.random.Generator], list[Features]]


def scaled(features: Features, factor: float, sizes: Floats) -> Features:
    """Return the features of an update so many times as long, or of its opposite where the factor is negative.

    Parameters
    ----------
    sizes
        How many parameters each tensor has, about.
    """
    facts = features.facts * factor
    facts[:, SQUARES] = features.facts[:, SQUARES] * factor**2
    facts[:, [ZEROS, POSITIVES]] = features.facts[:, [ZEROS, POSITIVES]]
    if factor < 0:
        facts[:, [LEAST, MOST]] = facts[:, [MOST, LEAST]]
        facts[:, POSITIVES] = np.maximum(sizes - facts[:, ZEROS] - facts[:, POSITIVES], 0)
    return replace(
        features,
        facts=facts,
        histogram=_shifted(features.histogram, float(np.log2(abs(factor) + TINY))),
        sketch=(features.sketch * factor).astype(np.float32),
        subset=(features.subset * factor).astype(np.float32),
    )


def _shifted(histogram: npt.NDArray[np.int64], bins: float) -> npt.NDArray[np.int64]:
    """Return counts of magnitudes that are so many powers of two larger."""
    whole = int(np.clip(np.floor(bins), -8, 8))
    share = min(max(bins - whole, 0.0), 1.0)
    low, high = np.roll(histogram, whole), np.roll(histogram, whole + 1)
    return np.asarray(np.rint((1 - share) * low + share * high), np.int64)


def _noisy(features: Features, strength: float, rng: np.random.Generator) -> Features:
    """Return the features of an update with noise, so many times as long as itself, added."""
    facts = features.facts.copy()
    facts[:, SQUARES] *= 1 + strength**2
    longer = float(np.sqrt(1 + strength**2))
    facts[:, [LEAST, MOST]] *= longer
    length = float(np.linalg.norm(features.sketch)) / np.sqrt(max(len(features.sketch), 1))
    each = features.norm / np.sqrt(max(features.count, 1))
    return replace(
        features,
        facts=facts,
        histogram=_shifted(features.histogram, float(np.log2(longer))),
        sketch=(features.sketch + rng.normal(0, strength * length, len(features.sketch))).astype(np.float32),
        subset=(features.subset + rng.normal(0, strength * each, len(features.subset))).astype(np.float32),
    )


def sizes_of(cohort: Sequence[Features]) -> Floats:
    """Return about how many parameters each tensor has: honest changes are up as often as down."""
    facts = np.median([features.facts for features in cohort], axis=0)
    about = 2 * facts[:, POSITIVES] + facts[:, ZEROS]
    return np.asarray(about * cohort[0].count / max(float(about.sum()), 1.0))


def _away(cohort: tuple[Features, ...], deviations: float) -> Features:
    """Return the features of the mean of all less so many deviations, coordinate by coordinate."""
    moved: dict[str, Any] = {}
    for name in ("sketch", "subset"):
        rows = np.array([getattr(features, name) for features in cohort], dtype=np.float64)
        moved[name] = (rows.mean(axis=0) - deviations * rows.std(axis=0)).astype(np.float32)
    like = cohort[len(cohort) // 2]
    factor = float(np.linalg.norm(moved["sketch"]) / (np.linalg.norm(like.sketch) + TINY))
    return replace(scaled(like, max(factor, 1e-6), sizes_of(cohort)), **moved)


def _flip(cohort: tuple[Features, ...], victims: Victims, rng: np.random.Generator) -> list[Features]:
    return [scaled(cohort[at], -1.0, sizes_of(cohort)) for at in victims]


def _long(cohort: tuple[Features, ...], victims: Victims, rng: np.random.Generator) -> list[Features]:
    return [scaled(cohort[at], float(rng.uniform(3, 12)), sizes_of(cohort)) for at in victims]


def _noise(cohort: tuple[Features, ...], victims: Victims, rng: np.random.Generator) -> list[Features]:
    return [_noisy(cohort[at], float(rng.uniform(0.7, 1.5)), rng) for at in victims]


def _copied(cohort: tuple[Features, ...], victims: Victims, rng: np.random.Generator) -> list[Features]:
    others = [at for at in range(len(cohort)) if at not in set(victims)]
    return [_noisy(cohort[int(rng.choice(others))], 0.05, rng) for _ in victims]


def _opposite(cohort: tuple[Features, ...], victims: Victims, rng: np.random.Generator) -> list[Features]:
    against = scaled(_away(cohort, 0.0), -float(rng.uniform(0.5, 1.5)), sizes_of(cohort))
    return [_noisy(against, 0.5, rng) for _ in victims]


def _beside(cohort: tuple[Features, ...], victims: Victims, rng: np.random.Generator) -> list[Features]:
    away = _away(cohort, float(rng.uniform(0.8, 2.0)))
    return [_noisy(away, 0.4, rng) for _ in victims]


KINDS: dict[str, Inject] = {
    "flip": _flip,
    "long": _long,
    "noise": _noise,
    "copied": _copied,
    "opposite": _opposite,
    "beside": _beside,
}
"""Sign flips; too long; noise added; another's copied; the others' mean turned round; the others' mean less their spread."""
