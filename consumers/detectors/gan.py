"""GAN: an update whose traits a generator that learned to imitate others does not make, and a discriminator finds odd.

Source: Zenati, Foo, Lecouat, Manek and Chandrasekhar, Efficient GAN-based anomaly detection, 2018 (a bidirectional GAN; score
from reconstruction and from the discriminator's features), after Schlegl et al., AnoGAN, 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refold.consumers.detectors.contract import Floats
from refold.consumers.detectors.learned import Learned
from refold.consumers.detectors.networks import Dense, errors_of, require_torch, seeded, tensor_of

if TYPE_CHECKING:
    import torch

HIDDEN, CODE = 24, 8
STEPS, RATE, BETAS = 150, 0.005, (0.5, 0.9)
LEAST_ERROR = 0.05
WORST = 10.0
OF_FEATURES = 0.3
"""Share of the score that the discriminator's features have; the rest is what the generator gives back."""


@dataclass(slots=True)
class _Trio:
    """Encoder, generator, and the discriminator of (row, code) pairs; and what is usual for them."""

    encoder: Dense
    generator: Dense
    discriminator: Dense
    usual: tuple[Floats, Floats] = (np.ones(1), np.ones(1))

    def odds(self, rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        import torch

        return self.discriminator(torch.cat([rows, codes], 1))

    def errors(self, rows: torch.Tensor) -> tuple[Floats, Floats]:
        """Return by how much rows differ from what the generator gives back: themselves, and as the discriminator sees them."""
        import torch

        codes = self.encoder(rows)
        back = self.generator(codes)
        seen = [self.discriminator.layers(torch.cat([those, codes], 1))[0].tanh() for those in (back, rows)]
        return errors_of(back, rows), errors_of(*seen)


class Gan(Learned):
    """How unlike what the generator makes of its code an update is, itself and to the discriminator. Needs torch.

    Raises
    ------
    ConfigurationError
        torch is not installed.
    """

    name, version, reason = "gan", 2, "outlier"
    threshold = 2.2

    def __init__(self, threshold: float | None = None) -> None:
        require_torch(self.name)
        super().__init__(threshold)

    def _fit(self, rows: Floats) -> _Trio:
        with seeded(0) as draw:
            given, wide = tensor_of(rows), rows.shape[1]
            trio = _Trio(
                Dense((wide, HIDDEN, CODE), draw), Dense((CODE, HIDDEN, wide), draw), Dense((wide + CODE, HIDDEN, 1), draw)
            )
            _play(trio, given, draw)
            errors = trio.errors(given)
        of_rows, of_features = (np.median(found, axis=0) + LEAST_ERROR for found in errors)
        trio.usual = (of_rows, of_features)
        return trio

    def _score(self, rows: Floats) -> Floats:
        trio: _Trio = self._model
        with seeded(0):
            pairs = zip(trio.errors(tensor_of(rows)), trio.usual, strict=True)
            of_rows, of_features = (np.minimum(errors / usual, WORST).mean(axis=1) for errors, usual in pairs)
        return np.asarray((1 - OF_FEATURES) * of_rows + OF_FEATURES * of_features)


def _play(trio: _Trio, given: torch.Tensor, draw: torch.Generator) -> None:
    """Train the three against each other: real rows with their codes against drawn codes with the rows made of them."""
    import torch

    softplus = torch.nn.functional.softplus
    makers = torch.optim.Adam([*trio.encoder.weights, *trio.generator.weights], lr=RATE, betas=BETAS)
    judge = torch.optim.Adam(trio.discriminator.weights, lr=RATE, betas=BETAS)
    for step in range(2 * STEPS):
        drawn = torch.randn(len(given), CODE, generator=draw)
        codes, made = trio.encoder(given), trio.generator(drawn)
        if step % 2:
            # A cycle keeps the encoder true to the row: without it bidirectional GANs of few rows give anything back.
            cycle = (trio.generator(codes) - given).abs().mean()
            loss = softplus(trio.odds(given, codes)).mean() + softplus(-trio.odds(made, drawn)).mean() + cycle
            optimizer = makers
        else:
            odds, made_odds = trio.odds(given, codes.detach()), trio.odds(made.detach(), drawn)
            loss, optimizer = softplus(-odds).mean() + softplus(made_odds).mean(), judge
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
