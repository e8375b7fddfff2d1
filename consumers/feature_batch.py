"""Features of many deltas at once, bit for bit those of `FeatureSum`: calls on short arrays would take most of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from refold.consumers.features import (
    BINS,
    FACTS,
    FLOAT32_MAX,
    LEAST,
    LOWEST_BIN,
    MOST,
    POSITIVES,
    SQUARES,
    SUM,
    ZEROS,
    FeatureExtractor,
    Features,
    Floats,
)
from refold.schemas.layout import Block

MOST_PARAMETERS = 1 << 16
"""Above it an update's own arrays are long enough, and those of many updates together would take memory."""


def features_of_all(
    extractor: FeatureExtractor, tensors: int, blocks: Sequence[Block], values_of: Callable[[Block], Floats]
) -> list[Features] | None:
    """Return features of deltas that are all finite, within float32 and not zero; None where one is not, or they are large.

    Parameters
    ----------
    values_of
        Gives a block's values of all deltas: float64, (deltas, block), C-contiguous.
    """
    if extractor.count > MOST_PARAMETERS or not blocks:
        return None
    batch = None
    for block in blocks:
        values = values_of(block)
        least, most = values.min(axis=1), values.max(axis=1)
        # What is not a number compares with nothing.
        if not bool(((least >= -FLOAT32_MAX) & (most <= FLOAT32_MAX)).all()):
            return None
        batch = batch or _Batch(extractor, tensors, len(values))
        batch.add(block, values, least, most)
    return batch.finish() if batch is not None else None


class _Batch:
    """Features of some deltas in the making."""

    def __init__(self, extractor: FeatureExtractor, tensors: int, count: int) -> None:
        self._extractor = extractor
        self._count = count
        self._facts = np.zeros((count, tensors, FACTS))
        self._facts[:, :, LEAST], self._facts[:, :, MOST] = np.inf, -np.inf
        self._exponents = np.zeros((count, 256), np.int64)
        self._sketch = np.zeros((count, extractor.width))
        self._subset = np.zeros((count, extractor.subset_size), np.float32)
        self._nonzero = np.zeros(count, np.int64)

    def add(self, block: Block, values: Floats, least: Floats, most: Floats) -> None:
        nonzero = np.count_nonzero(values, axis=1)
        self._nonzero += nonzero
        facts = self._facts[:, block.tensor]
        facts[:, SUM] += np.add.reduce(values, axis=1)
        facts[:, SQUARES] += [np.dot(row, row) for row in values]
        facts[:, ZEROS] += values.shape[1] - nonzero
        facts[:, POSITIVES] += np.count_nonzero(values > 0, axis=1)
        np.minimum(facts[:, LEAST], least, out=facts[:, LEAST])
        np.maximum(facts[:, MOST], most, out=facts[:, MOST])
        first = self._extractor.tensor_start(block.tensor) + block.start
        short = values.astype(np.float32)
        exponents = (short.view(np.uint32) >> np.uint32(23)).astype(np.uint8).astype(np.int64)
        exponents += 256 * np.arange(self._count)[:, None]
        self._exponents += np.bincount(exponents.ravel(), minlength=256 * self._count).reshape(-1, 256)
        where, places = self._extractor.coordinates(first, block.count)
        self._subset[:, where] = short[:, places]
        self._fold(first, short)

    def _fold(self, first: int, values: npt.NDArray[np.float32]) -> None:
        signed = values * self._extractor.signs(first, values.shape[1])
        width = self._extractor.width
        shift = first % width
        head = min(signed.shape[1], width - shift) if shift else 0
        self._sketch[:, shift : shift + head] += signed[:, :head]
        whole = head + (signed.shape[1] - head) // width * width
        if whole > head:
            self._sketch += signed[:, head:whole].reshape(self._count, -1, width).sum(axis=1, dtype=np.float64)
        self._sketch[:, : signed.shape[1] - whole] += signed[:, whole:]

    def finish(self) -> list[Features] | None:
        if not self._nonzero.all() or not np.isfinite(self._facts[:, :, SQUARES]).all():
            return None
        low = 127 + LOWEST_BIN
        histograms = self._exponents[:, low : low + BINS].copy()
        histograms[:, 0] += self._exponents[:, :low].sum(axis=1)
        histograms[:, -1] += self._exponents[:, low + BINS :].sum(axis=1)
        facts = np.where(np.isfinite(self._facts), self._facts, 0.0)
        sketches = np.clip(self._sketch, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
        for array in (facts, histograms, sketches, self._subset):
            array.flags.writeable = False
        rows = zip(facts, histograms, sketches, self._subset, strict=True)
        return [Features(self._extractor.count, *row) for row in rows]
