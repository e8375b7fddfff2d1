"""`refold.Detection`: verdicts without a bus, on whole deltas."""

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

import refold
from refold.schemas.errors import UsageError

Floats = npt.NDArray[np.float32]


def honest(rng: np.random.Generator, count: int = 12, size: int = 3000) -> Floats:
    common = rng.normal(size=size)
    return (0.01 * (common + rng.normal(size=(count, size)))).astype(np.float32)


def cohort_of(deltas: object, round_: int = 1, **more: object) -> refold.Cohort:
    count = len(deltas)  # type: ignore[arg-type]
    return refold.Cohort(round_, [f"c{i}" for i in range(count)], deltas, [20] * count, **more)  # type: ignore[arg-type]


def refused(verdicts: list[refold.Verdict]) -> dict[int, tuple[str, ...]]:
    return {index: verdict.reasons for index, verdict in enumerate(verdicts) if not verdict.accepted}


def test_honest_deltas_are_accepted_and_a_blown_up_one_is_not(rng: np.random.Generator) -> None:
    deltas = honest(rng)
    deltas[3] *= 50
    verdicts = refold.Detection().judge(cohort_of(deltas))
    assert set(refused(verdicts)) == {3}
    assert "norm" in verdicts[3].reasons
    assert verdicts[3].score > 0.5 >= max(v.score for v in verdicts if v.accepted)
    assert all(0 <= v.score <= 1 for v in verdicts)


def test_deltas_may_be_mappings_of_arrays_and_integer_tensors_take_no_part(rng: np.random.Generator) -> None:
    rows = honest(rng)
    rows[2] *= -8
    deltas = [{"w": row[:2000].reshape(40, 50), "b": row[2000:], "steps": np.array(7)} for row in rows]
    assert set(refused(refold.Detection().judge(cohort_of(deltas)))) == {2}


def test_values_that_are_not_finite_and_updates_that_change_nothing_have_reasons_of_their_own(rng: np.random.Generator) -> None:
    deltas = honest(rng)
    deltas[0, 5], deltas[1, 9], deltas[2] = np.nan, np.inf, 0
    found = refused(refold.Detection().judge(cohort_of(deltas)))
    assert found == {0: ("not-finite",), 1: ("not-finite",), 2: ("zero-update",)}


def test_bases_are_checked_where_the_cohort_says_them(rng: np.random.Generator) -> None:
    bases, digests = [4] * 12, [b"right"] * 12
    bases[1], bases[2], digests[3] = 2, 5, b"wrong"
    found = refused(refold.Detection().judge(cohort_of(honest(rng), 5, base_rounds=bases, digests=digests)))
    assert found == {1: ("stale",), 2: ("future-base",), 3: ("wrong-base",)}
    lenient = refold.Detection(refold.DetectionConfig(max_staleness=2))
    assert set(refused(lenient.judge(cohort_of(honest(rng), 5, base_rounds=bases, digests=digests)))) == {2, 3}


def test_without_a_majority_no_digest_is_wrong(rng: np.random.Generator) -> None:
    digests = [str(index) for index in range(12)]
    assert refused(refold.Detection().judge(cohort_of(honest(rng), digests=digests))) == {}


def test_the_same_cohorts_get_the_same_verdicts(rng: np.random.Generator) -> None:
    rounds = [honest(rng) for _ in range(6)]
    for deltas in rounds:
        deltas[4] = -deltas[4]
    first, second = refold.Detection(), refold.Detection()
    for round_, deltas in enumerate(rounds, 1):
        assert first.judge(cohort_of(deltas, round_)) == second.judge(cohort_of(deltas, round_))


def test_cohorts_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    deltas = honest(rng)
    with pytest.raises(UsageError, match="twice"):
        refold.Cohort(1, ["a", "a"], deltas[:2], [1, 1])
    with pytest.raises(UsageError, match="num_examples"):
        refold.Cohort(1, ["a", "b"], deltas[:2], [1])
    detection = refold.Detection()
    detection.judge(cohort_of(deltas))
    with pytest.raises(UsageError, match="shape"):
        detection.judge(cohort_of(deltas[:, :-1], 2))


def test_an_empty_cohort_has_no_verdicts() -> None:
    assert refold.Detection().judge(refold.Cohort(1, [], np.zeros((0, 5), np.float32), [])) == []


def test_judging_loads_neither_torch_nor_scikit_learn() -> None:
    program = (
        "import sys, numpy as np, refold; d = np.ones((5, 50), np.float32) + np.eye(5, 50, dtype=np.float32);"
        "refold.Detection().judge(refold.Cohort(1, list('abcde'), d, [1] * 5));"
        "assert not {'torch', 'sklearn', 'kafka'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
