"""Rules that choose or clip: who counts, and for how much."""

import numpy as np
import numpy.typing as npt
import pytest

from refold.consumers.features import FeatureExtractor, Features
from refold.consumers.selection import RULES, selected
from refold.consumers.verdicts import weighing
from refold.schemas.errors import UsageError
from refold.schemas.events import Defence
from refold.schemas.layout import Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.plans import settings
from refold.state.aggregation import MAX_TOTAL_WEIGHT

SCHEMA = ModelSchema((TensorSchema("w", "float32", (3000,), 20, "mean"),))
EXTRACTOR = FeatureExtractor(SCHEMA, bytes(32))


def features_of(rows: npt.NDArray[np.float64]) -> list[Features]:
    found = []
    for row in rows:
        features = EXTRACTOR.start()
        for block in Layout.of(SCHEMA):
            features.add(block, row[block.elements], 1.0)
        found.append(features.finish())
    return found


@pytest.fixture
def crowd(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Ten that agree and, last, two that do not."""
    rows = rng.normal(size=3000) + 0.3 * rng.normal(size=(12, 3000))
    rows[10:] = -3 * rows[10:]
    return np.asarray(rows)


def test_krum_chooses_one_multi_krum_and_bulyan_choose_many_and_none_a_liar(crowd: npt.NDArray[np.float64]) -> None:
    counts = {}
    for rule in RULES:
        weights = selected(rule, features_of(crowd), [5] * 12, 200_000)
        assert weights[10:] == [0, 0], rule
        assert set(weights) == {0, 5}
        counts[rule] = sum(weight > 0 for weight in weights)
    assert counts == {"krum": 1, "multi-krum": 8, "bulyan": 8}


def test_a_norm_bound_lets_nobody_pull_further_than_the_bound(crowd: npt.NDArray[np.float64]) -> None:
    features = features_of(crowd)
    weights = selected("norm-bound", features, [7] * 12, 0)
    norms = np.array([found.norm for found in features])
    pulls = np.array(weights) * norms
    assert (pulls <= 1.001 * 7 * 1024 * 1.5 * np.median(norms)).all()
    assert len(set(weights[:10])) == 1
    assert all(0 < weight < weights[0] / 1.8 for weight in weights[10:])


def test_doubt_leaves_the_more_of_a_weight_the_further_a_score_is_from_being_refused(crowd: npt.NDArray[np.float64]) -> None:
    scores = [0.0, 0.001, 0.07, 0.3, 0.49, 1.0] + [0.0] * 6
    weights = selected("doubt", features_of(crowd), [160] * 12, 0, scores)
    assert weights[:6] == sorted(weights[:6], reverse=True)
    assert weights[5] == 160 * 1024 // 16, "who is only unlike the others is still heard"
    assert weights[2] == pytest.approx(weights[0] / 2, rel=0.1)
    assert weights[11] < weights[0] / 1.8, "long ones are bounded too"
    doubting = Defence("all", settings({"selection": "doubt"}))
    assert weighing(doubting, features_of(crowd), [160] * 12, scores)[0] == tuple(weights)
    assert weighing(doubting, features_of(crowd), [160] * 12)[0][0] == weighing(doubting, features_of(crowd), [160] * 12)[0][5]


def test_nothing_is_chosen_where_no_rule_is_or_too_few_are_there(crowd: npt.NDArray[np.float64]) -> None:
    assert selected("", features_of(crowd[:4]), [1, 2, 3, 4], 200_000) == [1, 2, 3, 4]
    assert selected("krum", features_of(crowd[:2]), [1, 2], 200_000) == [1, 2]
    with pytest.raises(UsageError, match="no-such"):
        selected("no-such", features_of(crowd[:4]), [1] * 4, 0)


def test_the_log_names_the_rule_with_how_many_are_trimmed(crowd: npt.NDArray[np.float64]) -> None:
    features = features_of(crowd)
    plain = Defence("all", ())
    assert weighing(plain, features, [3] * 12) == ((3,) * 12, "weighted_mean")
    trimmed = Defence("all", settings({"rule": "trimmed_mean", "bad_ppm": 250_000}))
    assert weighing(trimmed, features, [3] * 12)[1] == "trimmed_mean:3"
    assert weighing(trimmed, features[:1], [3])[1] == "trimmed_mean:0"
    both = Defence("all", settings({"rule": "trimmed_mean", "selection": "bulyan"}))
    weights, rule = weighing(both, features, [3] * 12)
    assert (sum(weight > 0 for weight in weights), rule) == (8, "trimmed_mean:1")


def test_clipped_weights_still_fit_the_lattice(crowd: npt.NDArray[np.float64]) -> None:
    clipping = Defence("all", settings({"selection": "norm-bound"}))
    assert sum(weighing(clipping, features_of(crowd), [2**20] * 12)[0]) <= MAX_TOTAL_WEIGHT
