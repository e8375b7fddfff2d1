"""Normal random numbers that nobody can predict: a stream of BLAKE3 keyed from the operating system, by Box and Muller.

The numbers are float64: uniform ones have 53 bits, so no normal one is beyond 8.6 deviations, and between two that can come
lie others that cannot. What is sent is rounded to the lattice, whose steps are millions of times coarser than those gaps, so
that they do not show in it (Mironov, On significance of the least significant bits for differential privacy, 2012). That is a
defence and no proof: a proof needs noise that is drawn on the lattice itself.

Source: Box and Muller, A note on the generation of random normal deviates, 1958.
"""

from __future__ import annotations

import os

import blake3
import numpy as np
import numpy.typing as npt


class NormalStream:
    """Standard normal numbers. Belongs to one thread.

    Parameters
    ----------
    seed
        32 bytes; of the operating system's own if None. A test's seed gives the same numbers again.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        key = os.urandom(32) if seed is None else seed
        self._bytes = blake3.blake3(key, derive_key_context="refold 2026 client noise")
        self._at = 0

    def __call__(self, count: int) -> npt.NDArray[np.float64]:
        """Return so many numbers, none of which come again."""
        pairs = -(-count // 2)
        # In (0, 1]: the logarithm of zero is none.
        radius = np.sqrt(-2.0 * np.log(1.0 - self._uniform(pairs)))
        angle = 2.0 * np.pi * self._uniform(pairs)
        both: npt.NDArray[np.float64] = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
        return both[:count]

    def _uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return numbers in [0, 1) of 53 bits."""
        data = self._bytes.digest(length=8 * count, seek=self._at)
        self._at += 8 * count
        uniform: npt.NDArray[np.float64] = np.multiply(np.frombuffer(data, "<u8") >> np.uint64(11), 2.0**-53, dtype=np.float64)
        return uniform
