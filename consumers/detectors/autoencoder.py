"""Autoencoder: an update whose traits cannot be made again from the few numbers that suffice for those of others.

Source: Hawkins, He, Williams and Baxter, Outlier detection using replicator neural networks, 2002; leaving the worst rows out
of each step as in Rousseeuw, Least median of squares regression, 1984, since bad ones may be among what was accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refold.consumers.detectors.contract import Floats
from refold.consumers.detectors.learned import Learned
from refold.consumers.detectors.networks import Dense, errors_of, require_torch, seeded, tensor_of

HIDDEN, CODE = 20, 6
STEPS, RATE, KEPT = 200, 0.01, 0.8
LEAST_ERROR = 0.05
WORST = 10.0


@dataclass(frozen=True, slots=True)
class _Fitted:
    encoder: Dense
    decoder: Dense
    usual: Floats
    """What each trait is usually missed by."""


class Autoencoder(Learned):
    """How badly a bottleneck of six numbers gives an update's traits back. Needs torch.

    Raises
    ------
    ConfigurationError
        torch is not installed.
    """

    name, version, reason = "autoencoder", 2, "outlier"
    threshold = 0.85

    def __init__(self, threshold: float | None = None) -> None:
        require_torch(self.name)
        super().__init__(threshold)

    def _fit(self, rows: Floats) -> _Fitted:
        import torch

        with seeded(0) as generator:
            given, wide = tensor_of(rows), rows.shape[1]
            encoder, decoder = Dense((wide, HIDDEN, CODE), generator), Dense((CODE, HIDDEN, wide), generator)
            optimizer = torch.optim.Adam([*encoder.weights, *decoder.weights], lr=RATE)
            for _ in range(STEPS):
                losses = ((decoder(encoder(given)) - given) ** 2).mean(1)
                kept = losses[losses <= torch.quantile(losses.detach(), KEPT)]
                optimizer.zero_grad()
                kept.mean().backward()
                optimizer.step()
            errors = errors_of(decoder(encoder(given)), given)
        return _Fitted(encoder, decoder, np.median(errors, axis=0) + LEAST_ERROR)

    def _score(self, rows: Floats) -> Floats:
        fitted: _Fitted = self._model
        with seeded(0):
            given = tensor_of(rows)
            errors = errors_of(fitted.decoder(fitted.encoder(given)), given)
        return np.asarray(np.minimum(errors / fitted.usual, WORST).mean(axis=1))
