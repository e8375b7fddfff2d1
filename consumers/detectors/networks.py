"""Small dense networks for the deep detectors: drawn from a seed of their own, the same numbers for the same rows.

torch is loaded when a detector is made that needs it. Nothing global is left changed: no other generator is touched, and the
number of threads is put back. With one thread sums are added in one order, so that a successor's network is the same as the one
before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from refold.consumers.detectors.contract import Floats
from refold.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

FAR = 6.0
"""Rows are cut at so many deviations: how far beyond is no matter of learning, and must not outweigh all else."""


def require_torch(detector: str) -> None:
    """Refuse a detector that needs torch where there is none.

    Raises
    ------
    ConfigurationError
        torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        hint = "pip install 'refold[torch]', or leave it out: no other detector needs it"
        raise ConfigurationError(f"the detector {detector!r} needs torch, which is not installed", hint=hint) from error
    # The first step of an optimizer loads a thousand modules more: now, since a judgement may not take as long.
    weight = torch.zeros(1, requires_grad=True)
    weight.sum().backward()
    torch.optim.Adam([weight]).step()


class Dense:
    """A network of dense layers with tanh between them."""

    def __init__(self, sizes: tuple[int, ...], generator: torch.Generator) -> None:
        import torch

        self.weights = []
        for wide, narrow in pairwise(sizes):
            # Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
            drawn = torch.randn(wide, narrow, generator=generator) * (2 / (wide + narrow)) ** 0.5
            self.weights += [drawn.requires_grad_(), torch.zeros(narrow, requires_grad=True)]

    def layers(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return what each layer makes of the rows, the network's answer last."""
        found = [rows]
        for at in range(0, len(self.weights), 2):
            below = found[-1] if at == 0 else found[-1].tanh()
            found.append(below @ self.weights[at] + self.weights[at + 1])
        return found[1:]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the answer alone."""
        return self.layers(rows)[-1]


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Give a generator of one's own, and one thread while it is used."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)


def tensor_of(rows: Floats) -> torch.Tensor:
    """Return rows as a network sees them."""
    import torch

    return torch.from_numpy(np.clip(rows, -FAR, FAR).astype(np.float32))


def errors_of(made: torch.Tensor, rows: torch.Tensor) -> Floats:
    """Return by how much each column of each row differs from what was made of it."""
    return np.asarray((made - rows).abs().detach().numpy(), np.float64)
