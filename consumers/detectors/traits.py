"""Traits: what of an update can be compared across models, sizes and stages of training. No raw parameter, no detector's score.

Each is measured against the cohort (a difference from its median, a cosine, a share of a rank), so that the same number means
the same at the first round and at the last, for a network of a thousand parameters and of a hundred million.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import blake3
import numpy as np

from refold.consumers.detectors.contract import TINY, Cohort, Floats, median
from refold.consumers.features import LEAST, MOST, POSITIVES, SQUARES, SUM, ZEROS

LEAST_COHORT = 8
"""Among fewer, medians and ranks say little."""

MOST_COHORT = 24
"""More are looked at in groups: a nearest neighbour means something else among two hundred than among twenty."""

NAMES = (
    "length",
    "part-longest",
    "part-shortest",
    "cosine-centre",
    "cosine-centre-z",
    "cosine-pairs",
    "cosine-pairs-relative",
    "twin",
    "second-twin",
    "twin-relative",
    "neighbours",
    "neighbours-relative",
    "positives",
    "positives-size",
    "positives-parts",
    "asymmetry-agrees",
    "asymmetry-distance",
    "tail-99",
    "tail-75",
    "peak",
    "rank-mean",
    "rank-mean-size",
    "rank-spread",
    "rank-distance",
    "rank-distance-spread",
    "value-distance",
    "value-distance-spread",
    "krum",
    "spectral",
    "spectral-side",
    "agreement",
    "length-spread",
    "log-cohort",
)


_KEPT = 4
"""So many tables are kept by the bytes that they follow from: a round is judged, and then looked back at."""


def table(cohort: Cohort) -> Floats:
    """Return the traits of a cohort, read-only: (clients, `NAMES`); a large one's by groups, so that the cost grows as it."""
    order = sorted(range(len(cohort)), key=cohort.clients.__getitem__)
    digest = blake3.blake3(str(len(cohort)).encode())
    for index in order:
        features = cohort.features[index]
        digest.update(blake3.blake3(cohort.clients[index].encode()).digest())
        for array in (features.facts, features.histogram, features.sketch, features.subset):
            digest.update(array.tobytes())
    key = digest.digest()
    with _lock:
        rows = _kept.pop(key, None)
        if rows is None:
            names = tuple(cohort.clients[index] for index in order)
            rows = _of_groups(Cohort(0, names, tuple(cohort.features[index] for index in order)))
        _kept[key] = rows
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    found = np.empty_like(rows)
    found[order] = rows
    found.flags.writeable = False
    return found


_lock = threading.Lock()
_kept: OrderedDict[bytes, Floats] = OrderedDict()


def groups(cohort: Cohort) -> list[list[int]]:
    """Return who is looked at together: all, or of a large cohort groups of much the same size.

    Who is in whose group follows from the secret sketches: nobody can see to it that his like are together.
    """
    if len(cohort) <= MOST_COHORT:
        return [list(range(len(cohort)))]
    keys = [
        blake3.blake3(c.encode() + f.sketch.tobytes()).digest() for c, f in zip(cohort.clients, cohort.features, strict=True)
    ]
    order = sorted(range(len(cohort)), key=keys.__getitem__)
    return [sorted(group.tolist()) for group in np.array_split(np.array(order), -(-len(cohort) // MOST_COHORT))]


def _of_groups(cohort: Cohort) -> Floats:
    rows = np.zeros((len(cohort), len(NAMES)))
    for members in groups(cohort):
        few = Cohort(0, tuple(cohort.clients[i] for i in members), tuple(cohort.features[i] for i in members))
        rows[members] = _table(few)
    return rows


def _table(cohort: Cohort) -> Floats:
    facts = np.array([features.facts for features in cohort.features])
    sketches = np.array([features.sketch for features in cohort.features], dtype=np.float64)
    subset = np.array([features.subset for features in cohort.features], dtype=np.float64)
    norms = np.sqrt(facts[:, :, SQUARES].sum(axis=1))
    units = sketches / (np.linalg.norm(sketches, axis=1, keepdims=True) + TINY)
    length = _centred(np.log(norms + TINY))
    columns = [
        length,
        *_parts(facts, norms),
        *_directions(units),
        *_signs(facts),
        *_shape(cohort, norms, facts),
        *_ranks(subset),
    ]
    columns += [*_distances(units, length), *_context(units, length)]
    return np.column_stack(columns)


def _centred(values: Floats) -> Floats:
    return np.asarray(values - median(values, axis=0))


def _scale(values: Floats, least: float) -> Floats:
    """Return 1.4826 · MAD by column, not below `least`."""
    return np.maximum(1.4826 * median(np.abs(values - median(values, axis=0)), axis=0), least)


def _parts(facts: Floats, norms: Floats) -> list[Floats]:
    """Return by how much a tensor's share of the norm exceeds the cohort's, and falls short of it, at most."""
    shares = np.log(np.sqrt(facts[:, :, SQUARES]) / (norms[:, None] + TINY) + 1e-4)
    apart = _centred(shares)
    return [apart.max(axis=1), apart.min(axis=1)]


def _directions(units: Floats) -> list[Floats]:
    """Return cosines to the median of all, to each other, and to the nearest."""
    count = len(units)
    centre = median(units, axis=0)
    to_centre = units @ centre / (np.linalg.norm(centre) + TINY)
    pairs = units @ units.T
    np.fill_diagonal(pairs, 0.0)
    mean = pairs.sum(axis=1) / (count - 1)
    np.fill_diagonal(pairs, -1.0)
    ordered = -np.sort(-pairs, axis=1)
    near = ordered[:, : max(1, count // 4)].mean(axis=1)
    return [
        to_centre,
        _centred(to_centre) / _scale(to_centre, 0.05),
        mean,
        _centred(mean) / _scale(mean, 0.03),
        ordered[:, 0],
        ordered[:, 1],
        _centred(ordered[:, 0]) / _scale(ordered[:, 0], 0.05),
        near,
        _centred(near) / _scale(near, 0.05),
    ]


def _signs(facts: Floats) -> list[Floats]:
    """Return how the signs are shared out, and how lopsided each tensor is. Source: Xu et al., SignGuard, 2022."""
    positives = facts[:, :, POSITIVES]
    all_positive = positives.sum(axis=1)
    total = median(all_positive)
    share = _centred(all_positive / max(float(total), 1.0))
    parts = np.log1p(positives) - np.log1p(median(positives, axis=0))
    reach = facts[:, :, MOST] - facts[:, :, LEAST]
    lopsided = (facts[:, :, MOST] + facts[:, :, LEAST]) / (reach + TINY)
    leaning = facts[:, :, SUM] / (np.sqrt(facts[:, :, SQUARES]) + TINY) / np.sqrt(np.maximum(positives.max(axis=0), 1))
    both = np.concatenate([lopsided, leaning], axis=1)
    usual = median(both, axis=0)
    agrees = both @ usual / (np.linalg.norm(both, axis=1) * np.linalg.norm(usual) + TINY)
    apart = np.abs((both - usual) / _scale(both, 0.1)).mean(axis=1)
    return [share, np.abs(share), np.abs(parts).mean(axis=1), agrees, apart]


def _shape(cohort: Cohort, norms: Floats, facts: Floats) -> list[Floats]:
    """Return how the magnitudes of what changed are spread: tails and the largest against the norm."""
    counts = np.array([features.histogram for features in cohort.features], dtype=np.float64)
    counts[:, 0] = np.maximum(counts[:, 0] - facts[:, :, ZEROS].sum(axis=1), 0)
    cumulative = np.cumsum(counts, axis=1)
    each = np.arange(len(counts))
    levels = []
    for level in (0.5, 0.75, 0.99):
        wanted = level * np.maximum(cumulative[:, -1], 1)
        at = np.minimum((cumulative < wanted[:, None]).sum(axis=1), counts.shape[1] - 1)
        below = np.where(at > 0, cumulative[each, at - 1], 0.0)
        levels.append(at + (wanted - below) / np.maximum(counts[each, at], 1))
    largest = np.maximum(facts[:, :, MOST].max(axis=1), -facts[:, :, LEAST].min(axis=1))
    peak = np.log2(largest / (norms + TINY) + TINY)
    return list(_centred(np.column_stack([levels[2] - levels[0], levels[1] - levels[0], peak])).T)


def _ranks(subset: Floats) -> list[Floats]:
    """Return where a client ranks among the others at the secret coordinates. Source: Zhu et al., MANDERA, 2023."""
    moved = subset[:, (subset != 0).mean(axis=0) >= 0.5]
    if not moved.shape[1]:
        return [np.zeros(len(subset))] * 7
    count = len(moved)
    places = np.empty(moved.shape, np.int64)
    np.put_along_axis(places, moved.argsort(axis=0, kind="stable"), np.arange(count)[:, None], axis=0)
    ranks = places / (count - 1) - 0.5
    far = np.abs(ranks)
    apart = np.abs(moved - median(moved, axis=0))
    values = np.minimum(apart / (1.4826 * median(apart, axis=0) + TINY), 20)
    mean = ranks.mean(axis=1) * np.sqrt(moved.shape[1])
    return [
        _centred(mean),
        np.abs(_centred(mean)),
        _centred(ranks.std(axis=1)),
        _centred(far.mean(axis=1)),
        _centred(far.std(axis=1)),
        np.log(values.mean(axis=1) + 0.01),
        np.log((values.std(axis=1) + 0.01) / (values.mean(axis=1) + 0.01)),
    ]


def _distances(units: Floats, length: Floats) -> list[Floats]:
    """Return how far the nearest half is, and where the direction of largest variance puts each.

    Source: Blanchard et al., Krum, 2017; Shejwalkar and Houmansadr, Manipulating the Byzantine (DnC), 2021.
    """
    count = len(units)
    scaled = units * np.exp(np.clip(length, -3, 3))[:, None]
    gram = scaled @ scaled.T
    square = np.diag(gram)
    distances = np.maximum(square[:, None] + square - 2 * gram, 0)
    krum = np.sort(distances, axis=1)[:, 1 : max(2, count // 2)].mean(axis=1)
    pairs = units @ units.T
    middle = pairs - pairs.mean(axis=0) - pairs.mean(axis=1)[:, None] + pairs.mean()
    strengths, vectors = np.linalg.eigh(middle)
    top = vectors[:, -1] * np.sqrt(max(strengths[-1], 0))
    top = top * np.where(median(top) > 0, -1, 1)
    return [_centred(np.log(krum + 1e-6)), np.abs(_centred(top)), _centred(top)]


def _context(units: Floats, length: Floats) -> list[Floats]:
    """Return what is the same for all of a cohort: how much they agree, how unlike their lengths are, how many there are."""
    count = len(units)
    pairs = (units @ units.T)[np.triu_indices(count, 1)]
    return [
        np.full(count, median(pairs)),
        np.full(count, float(_scale(length, 0.0))),
        np.full(count, np.log(count)),
    ]
