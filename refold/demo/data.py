"""The digits, dealt out to clients once by the parent; a client reads its own hand and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

TEST_SHARE = 0.25
LEAST_EXAMPLES = 24
"""A client with fewer could not fill two batches; the deal is drawn again until nobody has fewer."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Images as rows of 64 values in 0 … 1, and their digits."""

    images: Floats
    digits: Labels

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.digits)


def load_digits() -> Examples:
    """Return scikit-learn's 1,797 handwritten digits. Source: Alpaydin and Kaynak, UCI repository, 1998."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    return Examples((bunch.data / 16.0).astype(np.float32), bunch.target.astype(np.int64))


def deal(examples: Examples, clients: int, *, alpha: float | None, seed: int) -> tuple[list[Examples], Examples]:
    """Return each client's training examples, and the test examples that no client sees.

    Parameters
    ----------
    alpha
        Concentration of the Dirichlet distribution that spreads each digit over clients; None deals evenly.
        Source: Hsu, Qi and Brown, Measuring the effects of non-identical data distribution, 2019.
    """
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(examples))
    held_out = round(TEST_SHARE * len(examples))
    test, train = _take(examples, order[:held_out]), _take(examples, order[held_out:])
    owners = _owners(train.digits, clients, alpha, rng)
    return [_take(train, np.flatnonzero(owners == client)) for client in range(clients)], test


def _owners(digits: Labels, clients: int, alpha: float | None, rng: np.random.Generator) -> Labels:
    """Return the client of each example, drawn until everyone has enough."""
    least = min(LEAST_EXAMPLES, len(digits) // (2 * clients))
    while True:
        owners = np.empty(len(digits), np.int64)
        for digit in np.unique(digits):
            where = np.flatnonzero(digits == digit)
            shares = np.full(clients, 1 / clients) if alpha is None else rng.dirichlet(np.full(clients, alpha))
            owners[where] = rng.choice(clients, size=len(where), p=shares)
        if np.bincount(owners, minlength=clients).min() >= least:
            return owners


def _take(examples: Examples, where: npt.NDArray[np.int64]) -> Examples:
    return Examples(examples.images[where], examples.digits[where])


def save(path: Path, hands: list[Examples]) -> None:
    """Write every client's examples into one ``.npz``."""
    arrays: dict[str, Any] = {}
    for client, hand in enumerate(hands):
        arrays[f"images_{client}"], arrays[f"digits_{client}"] = hand.images, hand.digits
    np.savez(path, **arrays)


def load(path: Path, client: int) -> Examples:
    """Read one client's examples."""
    with np.load(path, allow_pickle=False) as file:
        return Examples(file[f"images_{client}"], file[f"digits_{client}"])
