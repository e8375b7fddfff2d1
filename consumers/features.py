"""What detection judges by: facts of one delta that add up over its blocks, so that no whole model is ever held.

All values are in units of the parameters. Integer tensors take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import blake3
import numpy as np
import numpy.typing as npt

from refold.schemas.canonical import Uint, Within, decode, encode, record
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import Block
from refold.schemas.model import ModelSchema

SKETCH_WIDTH = 1024
SUBSET = 256
BINS = 64
LOWEST_BIN = -40
"""Bin b of the histogram counts magnitudes in [2^(b-40), 2^(b-39)); the first and last take what lies beyond."""

SUM, SQUARES, LEAST, MOST, ZEROS, POSITIVES = range(6)
FACTS = 6

FLOAT32_MAX = float(np.finfo(np.float32).max)

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@record(74)
@dataclass(frozen=True, slots=True)
class PackedFeatures:
    """Features as they travel: little-endian float64 facts (tensors × 6), int64 histogram, float32 sketch and subset."""

    count: Uint
    facts: bytes
    histogram: Annotated[bytes, Within(BINS * 8, BINS * 8)]
    sketch: Annotated[bytes, Within(0, SKETCH_WIDTH * 4)]
    subset: Annotated[bytes, Within(0, SUBSET * 4)]


def quantiles(histograms: npt.NDArray[np.int64], q: float) -> Floats:
    """Return each histogram's log2 of the magnitude below which a share `q` of the parameters lies, as `Features.quantile`."""
    cumulative = np.cumsum(histograms, axis=1)
    wanted = q * np.maximum(cumulative[:, -1], 1)
    index = np.minimum((cumulative < wanted[:, None]).sum(axis=1), BINS - 1)
    each = np.arange(len(histograms))
    below = np.where(index > 0, cumulative[each, index - 1], 0)
    inside = (wanted - below) / np.maximum(histograms[each, index], 1)
    return np.asarray(LOWEST_BIN + index + np.clip(inside, 0.0, 1.0), np.float64)


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one delta.

    Parameters
    ----------
    count
        Number of float parameters.
    facts
        (tensors, 6): sum, sum of squares, least, most, zeros, positives.
    histogram
        (64,) counts of log2 magnitudes.
    sketch
        (1024,) the delta folded with secret signs, which keeps norms and angles (or all of it, where it is no longer).
    subset
        Up to 256 values at secret coordinates.
    """

    count: int
    facts: Floats
    histogram: npt.NDArray[np.int64]
    sketch: npt.NDArray[np.float32]
    subset: npt.NDArray[np.float32]

    @property
    def norm(self) -> float:
        """Euclidean norm of the delta."""
        return float(np.sqrt(self.facts[:, SQUARES].sum()))

    @property
    def tensor_norms(self) -> Floats:
        """Euclidean norm of each tensor's delta."""
        return np.sqrt(self.facts[:, SQUARES])

    def quantile(self, q: float) -> float:
        """Magnitude below which a share `q` of the parameters lies, to within the bin (a factor of two), interpolated."""
        cumulative = np.cumsum(self.histogram)
        wanted = q * max(int(cumulative[-1]), 1)
        index = int(np.searchsorted(cumulative, wanted))
        index = min(index, BINS - 1)
        below = int(cumulative[index - 1]) if index else 0
        inside = (wanted - below) / max(int(self.histogram[index]), 1)
        return float(2.0 ** (LOWEST_BIN + index + min(max(inside, 0.0), 1.0)))

    def pack(self) -> bytes:
        """Return the canonical bytes."""
        return encode(
            PackedFeatures(
                self.count,
                self.facts.astype("<f8").tobytes(),
                self.histogram.astype("<i8").tobytes(),
                self.sketch.astype("<f4").tobytes(),
                self.subset.astype("<f4").tobytes(),
            )
        )

    @classmethod
    def unpack(cls, data: bytes) -> Features:
        """Read packed features; the arrays are read-only.

        Raises
        ------
        InvalidRecord
            The bytes are not packed features.
        """
        packed = decode(data, PackedFeatures)
        if len(packed.facts) % (8 * FACTS) or len(packed.sketch) % 4 or len(packed.subset) % 4:
            raise InvalidRecord("form", "features of odd lengths")
        return cls(
            packed.count,
            np.frombuffer(packed.facts, "<f8").reshape(-1, FACTS),
            np.frombuffer(packed.histogram, "<i8"),
            np.frombuffer(packed.sketch, "<f4"),
            np.frombuffer(packed.subset, "<f4"),
        )


class FeatureExtractor:
    """Draws the secret signs and coordinates of one federation, and folds deltas with them.

    Parameters
    ----------
    secret
        The server's seed, 32 bytes: who does not know it cannot aim at the sketch.
    """

    def __init__(self, schema: ModelSchema, secret: bytes) -> None:
        self._schema = schema
        self._secret = secret
        self.count = sum(tensor.size for tensor in schema.tensors if tensor.is_float)
        starts, start = [], 0
        for tensor in schema.tensors:
            starts.append(start)
            start += tensor.size if tensor.is_float else 0
        self._starts = starts
        self.width = min(SKETCH_WIDTH, self.count)
        self._coordinates = self._draw_coordinates()
        self._signs = lru_cache(maxsize=256)(self._draw_signs)
        self._places = lru_cache(maxsize=4096)(self._find_places)

    def start(self) -> FeatureSum:
        """Begin the features of one delta."""
        return FeatureSum(self)

    def tensor_start(self, tensor: int) -> int:
        """Index of a tensor's first parameter among all float parameters."""
        return self._starts[tensor]

    def signs(self, first: int, count: int) -> npt.NDArray[np.int8]:
        """Return ±1 for `count` parameters from `first` on."""
        return self._signs(first, count)

    def coordinates(self, first: int, count: int) -> tuple[slice, npt.NDArray[np.int64]]:
        """Return which of the secret coordinates lie in a run of parameters: their slice, and their places within the run."""
        return self._places(first, count)

    @property
    def subset_size(self) -> int:
        """How many secret coordinates there are."""
        return len(self._coordinates)

    def _find_places(self, first: int, count: int) -> tuple[slice, npt.NDArray[np.int64]]:
        low, high = np.searchsorted(self._coordinates, (first, first + count))
        return slice(int(low), int(high)), self._coordinates[low:high] - first

    def _draw_signs(self, first: int, count: int) -> npt.NDArray[np.int8]:
        if self.width == self.count:
            return np.ones(count, np.int8)
        bits = np.unpackbits(np.frombuffer(self._random(b"signs", first, -(-count // 8)), np.uint8), count=count)
        return (bits.astype(np.int8) << 1) - 1

    def _draw_coordinates(self) -> npt.NDArray[np.int64]:
        if self.count <= SUBSET:
            return np.arange(self.count, dtype=np.int64)
        words = np.frombuffer(self._random(b"coordinates", 0, SUBSET * 8 * 2), "<u8")
        return np.unique(words % np.uint64(self.count))[:SUBSET].astype(np.int64)

    def _random(self, purpose: bytes, first: int, size: int) -> bytes:
        """Bytes from BLAKE3 keyed with the secret, as an extendable-output function."""
        return blake3.blake3(purpose + first.to_bytes(8, "little"), key=self._secret).digest(length=size)


def _positives(values: Floats) -> int:
    return int(np.count_nonzero(values > 0))


class FeatureSum:
    """Features of one delta in the making: add each block once, in any order."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor = extractor
        self._facts = np.zeros((len(extractor._schema.tensors), FACTS))
        self._facts[:, LEAST], self._facts[:, MOST] = np.inf, -np.inf
        self._exponents = np.zeros(256, np.int64)
        self._sketch = np.zeros(extractor.width)
        self._subset = np.zeros(extractor.subset_size, np.float32)
        self.is_zero = True

    def add(self, block: Block, integers: Array, scale: float) -> None:
        """Add a block of a float tensor: `integers` · `scale` are its values."""
        exact = integers if scale == 1.0 and integers.dtype == np.float64 else integers * scale
        # The ufuncs themselves: of a few hundred values the methods' wrappers take longer than the work.
        least, most = float(np.minimum.reduce(exact)), float(np.maximum.reduce(exact))
        inside = least >= -FLOAT32_MAX and most <= FLOAT32_MAX
        values = (exact if inside else np.clip(exact, -FLOAT32_MAX, FLOAT32_MAX)).astype(np.float32)
        self._add_facts(block.tensor, exact, least, most)
        self._add_histogram(values)
        first = self._extractor.tensor_start(block.tensor) + block.start
        where, places = self._extractor.coordinates(first, block.count)
        self._subset[where] = values[places]
        self._add_sketch(first, values)

    def finish(self) -> Features:
        """Return the features of what was added."""
        facts = np.where(np.isfinite(self._facts), self._facts, 0.0)
        sketch = np.clip(self._sketch, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
        found = Features(self._extractor.count, facts, self._histogram(), sketch, self._subset.copy())
        for array in (found.facts, found.histogram, found.sketch, found.subset):
            array.flags.writeable = False
        return found

    @property
    def is_finite(self) -> bool:
        """Whether every value that was added is finite."""
        return bool(np.isfinite(self._facts[:, SQUARES]).all())

    def _add_facts(self, tensor: int, values: Floats, least: float, most: float) -> None:
        facts = self._facts[tensor]
        nonzero = int(np.count_nonzero(values))
        self.is_zero = self.is_zero and nonzero == 0
        more = (
            float(np.add.reduce(values)),
            float(np.dot(values, values)),
            0.0,
            0.0,
            len(values) - nonzero,
            _positives(values),
        )
        facts += more
        facts[LEAST], facts[MOST] = min(facts[LEAST], least), max(facts[MOST], most)

    def _add_histogram(self, values: npt.NDArray[np.float32]) -> None:
        """Count by the float's own exponent field, without a logarithm. Zeros fall into the first bin."""
        exponents = (values.view(np.uint32) >> np.uint32(23)).astype(np.uint8)
        self._exponents += np.bincount(exponents, minlength=256)

    def _histogram(self) -> npt.NDArray[np.int64]:
        low = 127 + LOWEST_BIN
        counts = self._exponents[low : low + BINS].copy()
        counts[0] += self._exponents[:low].sum()
        counts[-1] += self._exponents[low + BINS :].sum()
        return counts

    def _add_sketch(self, first: int, values: npt.NDArray[np.float32]) -> None:
        """Add parameter i, with its secret sign, to bucket i modulo the width."""
        signed = values * self._extractor.signs(first, len(values))
        width = self._extractor.width
        shift = first % width
        head = min(len(signed), width - shift) if shift else 0
        self._sketch[shift : shift + head] += signed[:head]
        whole = head + (len(signed) - head) // width * width
        if whole > head:
            self._sketch += signed[head:whole].reshape(-1, width).sum(axis=0, dtype=np.float64)
        self._sketch[: len(signed) - whole] += signed[whole:]
