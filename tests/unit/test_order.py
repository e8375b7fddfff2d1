"""Median and trimmed mean: exact in integers, in any order, on slices."""

import errno
import resource
import tempfile

import numpy as np
import numpy.typing as npt
import pytest

from refold.schemas.errors import InvalidRecord, StorageFullError, UsageError
from refold.schemas.layout import BLOCK, Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.state import order
from refold.state.aggregation import Aggregate
from refold.state.order import OrderStatistic, trim_of

SIZE = BLOCK + 77
SCHEMA = ModelSchema((TensorSchema("w", "float32", (SIZE,), 20, "mean"), TensorSchema("n", "int64", (2,), 0, "max")))
Rows = npt.NDArray[np.int32]


def found(rule: str, rows: Rows, exponents: list[int], places: list[int] | None = None) -> Aggregate:
    least = (min(exponents), 0)
    with OrderStatistic(SCHEMA, least, rule) as statistic:
        for index in places or range(len(rows)):
            arrays = [rows[index], np.array([index, -index])]
            blocks = ((block, arrays[block.tensor][block.elements]) for block in Layout.of(SCHEMA))
            statistic.add(blocks, (exponents[index], 0), index=index)
        return statistic.result()


def floats_of(aggregate: Aggregate) -> npt.NDArray[np.int64]:
    parts = [aggregate.take(block) for block in Layout.of(SCHEMA) if block.tensor == 0]
    return np.concatenate(parts)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_the_median_is_numpys_rounded_to_even(rng: np.random.Generator, count: int) -> None:
    rows = rng.integers(-1000, 1000, (count, SIZE)).astype(np.int32)
    exponents = [int(k) for k in rng.integers(0, 4, count)]
    least = min(exponents)
    shifted = np.array([row.astype(np.int64) << (k - least) for row, k in zip(rows, exponents, strict=True)])
    aggregate = found("median", rows, exponents)
    assert aggregate.weight == 1
    np.testing.assert_array_equal(floats_of(aggregate), np.rint(np.median(shifted, axis=0)))


@pytest.mark.parametrize(("count", "trim"), [(3, 1), (5, 2), (8, 2), (4, 0)])
def test_the_trimmed_mean_is_the_sum_of_the_middle_and_their_number(rng: np.random.Generator, count: int, trim: int) -> None:
    rows = rng.integers(-(2**20), 2**20, (count, SIZE)).astype(np.int32)
    aggregate = found(f"trimmed_mean:{trim}", rows, [2] * count)
    assert aggregate.weight == count - 2 * trim
    np.testing.assert_array_equal(floats_of(aggregate), np.sort(rows, axis=0)[trim : count - trim].sum(axis=0))


def test_neither_the_order_of_updates_nor_the_slice_matters(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rng.integers(-1000, 1000, (6, SIZE)).astype(np.int32)
    first = floats_of(found("median", rows, [0] * 6))
    monkeypatch.setattr(order, "SLICE_BYTES", 5000)
    second = floats_of(found("median", rows, [0] * 6, [3, 1, 5, 0, 2, 4]))
    np.testing.assert_array_equal(first, second)


def test_one_liar_moves_the_median_no_further_than_the_next_honest_value(rng: np.random.Generator) -> None:
    rows = rng.integers(-100, 100, (5, SIZE)).astype(np.int32)
    rows[0] = 2**27
    middle = floats_of(found("median", rows, [0] * 5))
    assert (middle <= rows[1:].max(axis=0)).all()


def test_counters_follow_their_own_rules() -> None:
    aggregate = found("median", np.zeros((3, SIZE), np.int32), [0] * 3)
    last = [block for block in Layout.of(SCHEMA) if block.tensor == 1]
    assert aggregate.take(last[0]).tolist() == [2, 0]


def test_what_is_out_of_range_or_leaves_nobody_is_refused() -> None:
    with pytest.raises(InvalidRecord, match="lattice steps"):
        found("median", np.full((1, SIZE), 2**26, np.int32), [8])
    with pytest.raises(UsageError, match="too few"):
        found("trimmed_mean:1", np.zeros((2, SIZE), np.int32), [0, 0])


@pytest.mark.parametrize("rule", ["mode", "trimmed_mean", "trimmed_mean:", "trimmed_mean:-1", "trimmed_mean:x", ""])
def test_an_unknown_rule_is_refused(rule: str) -> None:
    with pytest.raises(InvalidRecord):
        trim_of(rule)


def test_a_disk_that_takes_a_part_of_the_last_block_is_an_error_and_never_a_median(rng: np.random.Generator) -> None:
    rows = rng.integers(-1000, 1000, (3, SIZE)).astype(np.int32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rows.nbytes - 100, before[1]))
    try:
        with pytest.raises(StorageFullError, match="File too large"):
            found("median", rows, [0, 0, 0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("members", [1, 3])
def test_a_disk_without_room_for_the_scratch_file_is_full_and_its_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, members: int
) -> None:
    rows = np.ones((members, SIZE), np.int32)
    folder = tempfile.gettempdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: open("/dev/full", "w+b"))  # noqa: SIM115
    with pytest.raises(StorageFullError, match=rf"No space left on device \(path {folder}\): make room"):
        found("median", rows, [0] * members)
    monkeypatch.undo()
    assert found("median", rows, [0] * members).weight == 1


def test_a_disk_on_which_no_scratch_file_can_even_be_made_is_full_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageFullError, match="No space left"):
        found("median", np.ones((3, SIZE), np.int32), [0] * 3)
