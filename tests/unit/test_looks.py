"""What a client did lately: its past adds up, nobody's order matters, and a rate of false alarms can be set and is kept."""

import importlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import refold
from refold.consumers.detectors import Cohort, Ensemble, Pattern, Recent, Said, Scores
from refold.consumers.detectors.choice import FALSE_ALARM_PPM, chosen
from refold.consumers.detectors.ensemble import BLATANT
from refold.consumers.detectors.looks import NAMES, Look, look_back
from refold.consumers.detectors.said import CLIENTS, VALUES
from refold.consumers.features import Features
from refold.detection import _Extractor
from refold.schemas.errors import UsageError
from refold.schemas.events import Score

SIZE = 1500
Floats = npt.NDArray[np.float32]
CLIENT_NAMES = tuple(f"c{index:02d}" for index in range(16))


def features_of(deltas: Floats) -> tuple[Features, ...]:
    extractor = _Extractor.of(deltas[0], bytes(32))
    found = tuple(extractor.features(delta) for delta in deltas)
    return tuple(features for features in found if isinstance(features, Features))


def looks(rng: np.random.Generator, rounds: int) -> list[Look]:
    """Return rounds, newest first, in which client 3 pushes a little the same way, hidden in as much noise as all have."""
    push = rng.normal(size=SIZE)
    found = []
    for _ in range(rounds):
        deltas = 1.0 + rng.normal(size=(16, SIZE))
        deltas[3] += 0.5 * push
        found.append(Look.of(CLIENT_NAMES, features_of(deltas.astype(np.float32))))
    return found


def column(rows: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    return np.asarray(rows[:, NAMES.index(name)])


def test_a_push_that_one_round_hides_stands_out_of_eight(rng: np.random.Generator) -> None:
    now, *before = looks(rng, 9)
    late = look_back(CLIENT_NAMES, now, before)
    for name in ("insists", "like-itself", "odd-like-itself"):
        assert column(late, name).argmax() == 3, name
        others = np.delete(column(late, name), 3)
        assert column(late, name)[3] > others.max() + others.std(), name
    assert (column(late, "past") == 8).all()


def test_who_has_no_past_is_told_from_who_has_and_nothing_is_made_up(rng: np.random.Generator) -> None:
    now, *before = looks(rng, 4)
    names = ("new", *CLIENT_NAMES[1:])
    late = look_back(names, now, before)
    assert column(late, "past").tolist() == [0] + [3] * 15
    assert column(late, "like-itself")[0] == column(late, "like-its-last")[0] == 0
    assert np.isfinite(late).all()
    assert np.isfinite(look_back(names, now, [])).all()


def test_the_order_of_clients_does_not_matter_and_another_models_rounds_are_not_looked_at(rng: np.random.Generator) -> None:
    now, *before = looks(rng, 4)
    late = look_back(CLIENT_NAMES, now, before)
    back = list(range(15, -1, -1))
    names = [CLIENT_NAMES[index] for index in back]
    turned = look_back(names, now.among(names, back), before)
    np.testing.assert_allclose(turned[::-1], late, atol=1e-4)
    other = Look.of(CLIENT_NAMES, features_of(rng.normal(size=(16, 200)).astype(np.float32)))
    np.testing.assert_array_equal(look_back(CLIENT_NAMES, now, [other, *before]), late)


def test_what_was_said_is_bounded_and_comes_oldest_first() -> None:
    said = Said()
    for number in range(VALUES + 5):
        said.take("ann", (Score("norm", 1, float(number), 2.0, ""),))
    assert said.of(["ann", "bob"]) == {"ann": {"norm": [float(number) for number in range(5, VALUES + 5)]}}
    for number in range(CLIENTS):
        said.take(f"c{number}", ())
    assert len(said.clients) == CLIENTS
    assert said.of(["ann"]) == {}, "the one that was judged longest ago is forgotten"


class Knows:
    """Supports what is found of the first client."""

    name, version, reason = "knows", 1, "pattern"

    def score(self, cohort: Cohort) -> Scores:
        values = np.zeros(len(cohort))
        values[0] = 1.0
        return Scores(values, np.full(len(cohort), 3.0), ("",) * len(cohort), np.full(len(cohort), 0.5))


class Finds:
    name, version, reason = "finds", 1, "norm"

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def score(self, cohort: Cohort) -> Scores:
        return Scores(np.array(self.values), np.full(len(cohort), 2.0), ("",) * len(cohort))


def test_what_one_detector_finds_needs_support_or_must_be_blatant(rng: np.random.Generator) -> None:
    features = features_of(rng.normal(size=(8, SIZE)).astype(np.float32))
    cohort = Cohort(1, CLIENT_NAMES[:8], features)
    values = [2.1, 2.1, 2.0 * BLATANT + 0.1, 0, 0, 0, 0, 0]
    opinions = Ensemble([Finds(values), Knows()]).judge(cohort)
    assert [bool(opinion.reasons) for opinion in opinions] == [True, False, True, *[False] * 5]
    assert [opinion.score > 0.5 for opinion in opinions] == [True, False, True, *[False] * 5]
    alone = Ensemble([Finds(values)]).judge(cohort)
    assert [bool(opinion.reasons) for opinion in alone] == [True, True, True, *[False] * 5]


def test_the_rate_of_false_alarms_can_be_set_and_a_lower_one_asks_for_more() -> None:
    limits = [Pattern(rate=rate).limit for rate in (0.0001, 0.001, 0.003, 0.01, 0.05)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > limits[-1] + 1
    found = [detector for detector in chosen(("norm", "pattern"), false_alarm_rate=0.01) if isinstance(detector, Pattern)]
    assert [detector.limit for detector in found] == [limits[3]]
    for rate in (0.0, 0.2, float("nan")):
        with pytest.raises(UsageError, match="false-alarm rate"):
            refold.DetectionConfig(false_alarm_rate=rate)


def test_a_federation_records_its_rate_and_detection_judges_by_it() -> None:
    from refold.consumers.detection import _ensemble_of
    from refold.founding import _defence

    usual, strict = (_defence("all", "", "weighted_mean", 0.2, rate, "refuse") for rate in (0.003, 0.01))
    assert dict(usual.settings) == {}
    assert dict(strict.settings) == {FALSE_ALARM_PPM: 10_000}
    limits = [
        next(one for one in _ensemble_of(defence).detectors if isinstance(one, Pattern)).limit for defence in (usual, strict)
    ]
    assert limits == [Pattern(rate=0.003).limit, Pattern(rate=0.01).limit]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("data", ["drawn-90001", "drawn-90002"])
def test_a_rate_is_kept_on_data_that_the_trees_never_saw(bench: Path, data: str) -> None:
    federation = importlib.import_module("_federation")
    course = federation.train_course(federation.Setting(data, "mlp", 16, 1.0, 0.3, 0.0, 90_001, 12))
    refused, excess = {0.001: 0, 0.05: 0}, {}
    for rate in refused:
        detection, scores = refold.Detection(refold.DetectionConfig(false_alarm_rate=rate)), []
        for round_, deltas in enumerate(course.honest, 1):
            verdicts = detection.judge(refold.Cohort(round_, CLIENT_NAMES, deltas, course.examples.tolist()))
            refused[rate] += sum(not verdict.accepted for verdict in verdicts)
            scores += [verdict.score for verdict in verdicts]
        excess[rate] = np.mean(scores)
    of = course.honest.shape[0] * course.honest.shape[1]
    print(f"{data}: {refused} of {of}")
    assert refused[0.001] <= 0.01 * of
    assert refused[0.001] <= refused[0.05] <= 0.1 * of
    assert excess[0.001] < excess[0.05]


def test_past_rounds_are_looked_at_alike_by_whoever_folds_them(rng: np.random.Generator) -> None:
    features = features_of((1 + rng.normal(size=(16, SIZE))).astype(np.float32))
    first, second = Recent(), Recent()
    for index in range(16):
        first.take(1, CLIENT_NAMES[index], features[index], accepted=True)
        second.take(1, CLIENT_NAMES[15 - index], features[15 - index].pack(), accepted=True)
    (ours,), (theirs,) = first.view(2).looks(), second.view(2).looks()
    assert ours.place == theirs.place
    np.testing.assert_array_equal(ours.odds, theirs.odds)
    np.testing.assert_array_equal(ours.steps, theirs.steps)
