"""A small network in numpy: 64 inputs, one hidden layer of 32, ten digits."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from refold.demo.data import Examples, Floats
from refold.schemas.plans import Schedule

Weights = dict[str, Floats]

HIDDEN = 32
EPOCHS, BATCH = 5, 16
LONGEST_GRADIENT = 5.0
"""Longer gradients are cut: a model that attackers ruined may not make an honest client send what the lattice cannot hold.
Source: Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013."""

RATE = Schedule(0.5, factor=0.85)
"""The rate falls, so that the last rounds settle the model whoever takes part in them."""


def initial_weights(seed: int) -> Weights:
    """Return round 0. Source: He et al., Delving deep into rectifiers, 2015."""
    rng = np.random.default_rng([seed, 2])
    return {
        "hidden.weight": rng.normal(0, (2 / 64) ** 0.5, (64, HIDDEN)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": rng.normal(0, (1 / HIDDEN) ** 0.5, (HIDDEN, 10)).astype(np.float32),
        "output.bias": np.zeros(10, np.float32),
    }


def train(weights: Weights, examples: Examples, *, epochs: int, rate: float, batch: int, rng: np.random.Generator) -> Weights:
    """Return what stochastic gradient descent makes of the weights; the ones given are left as they are."""
    trained = {name: value.copy() for name, value in weights.items()}
    for _ in range(epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            _descend(trained, examples.images[chosen], examples.digits[chosen], np.float32(rate))
    return trained


def _descend(weights: Weights, images: Floats, digits: npt.NDArray[np.int64], rate: np.float32) -> None:
    hidden = np.maximum(images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    error = _softmax(hidden @ weights["output.weight"] + weights["output.bias"])
    error[np.arange(len(digits)), digits] -= 1
    error /= np.float32(len(digits))
    back = (error @ weights["output.weight"].T) * (hidden > 0)
    gradients = {
        "hidden.weight": images.T @ back,
        "hidden.bias": back.sum(axis=0),
        "output.weight": hidden.T @ error,
        "output.bias": error.sum(axis=0),
    }
    norm = math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in gradients.values()))
    step = rate * np.float32(min(1.0, LONGEST_GRADIENT / (norm + 1e-12)))
    for name, gradient in gradients.items():
        weights[name] -= step * gradient


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def accuracy(weights: Weights, examples: Examples) -> float:
    """Return the share of digits recognised; weights that are not finite recognise none but by chance."""
    with np.errstate(all="ignore"):
        hidden = np.maximum(examples.images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
        logits = hidden @ weights["output.weight"] + weights["output.bias"]
    return float((logits.argmax(axis=1) == examples.digits).mean())
