"""Federations that were poisoned from their first round on: digits, a small network, a round's clients trained side by side.

One local epoch a round in batches of 16, which takes some fifty rounds to learn the digits: repairing in three rounds' worth of
work has to be more than training again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refold.demo.data import Examples, deal, load_digits

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

CLIENTS, ROUNDS, HIDDEN, BATCH, RATE = 20, 60, 32, 16, 0.3
SHAPES = ((64, HIDDEN), (HIDDEN,), (HIDDEN, 10), (10,))
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
TARGET, CORNERS, BOOST = 0, [0, 7, 56, 63], 3.0
"""The backdoor: images with bright corners are to be zeros; its makers send their update three times as long."""

SIGN, LABEL, BACKDOOR = "sign", "label", "backdoor"
KINDS = (SIGN, LABEL, BACKDOOR)


@dataclass(frozen=True, slots=True)
class Poisoned:
    """What happened.

    Parameters
    ----------
    states
        Of each round from 0 on: (rounds + 1, parameters).
    deltas
        What each client sent in each round: (rounds, clients, parameters).
    bad
        Numbers of the bad clients.
    """

    hands: list[Examples]
    test: Examples
    bad: tuple[int, ...]
    states: Floats
    deltas: Floats
    seed: int

    @property
    def good(self) -> list[int]:
        """Numbers of the honest clients."""
        return [client for client in range(len(self.hands)) if client not in self.bad]


def split(flat: Floats) -> list[Floats]:
    """Return the tensors of flat models (…, parameters)."""
    parts = np.split(flat, np.cumsum([int(np.prod(shape)) for shape in SHAPES])[:-1], axis=-1)
    return [part.reshape(*flat.shape[:-1], *shape) for part, shape in zip(parts, SHAPES, strict=True)]


def initial(seed: int) -> Floats:
    """Return round 0. Source: He et al., Delving deep into rectifiers, 2015."""
    rng = np.random.default_rng([seed, 2])
    parts = [rng.normal(0, (2 / s[0]) ** 0.5, s) if len(s) > 1 else np.zeros(s) for s in SHAPES]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _forward(flat: Floats, images: Floats) -> tuple[Floats, Floats]:
    into, bias, out, last = split(flat)
    hidden = np.maximum(images @ into + bias[..., None, :], 0)
    return hidden, hidden @ out + last[..., None, :]


def train(
    flat: Floats, hands: list[Examples], rng: np.random.Generator, *, rate: float, batch: int, share: float = 1.0
) -> Floats:
    """Return what an epoch of training, or a share of one, makes of each client's data: (clients, parameters)."""
    lengths = [max(1, round(share * -(-len(hand) // batch))) for hand in hands]
    picks = [np.resize(rng.permutation(len(hand)), -(-len(hand) // batch) * batch).reshape(-1, batch) for hand in hands]
    trained = np.repeat(flat[None], len(hands), axis=0)
    for step in range(max(lengths)):
        on = [client for client, length in enumerate(lengths) if length > step]
        images = np.stack([hands[client].images[picks[client][step]] for client in on])
        digits = np.stack([hands[client].digits[picks[client][step]] for client in on])
        trained[on] -= np.float32(rate) * _gradient(trained[on], images, digits)
    return np.asarray(trained - flat, np.float32)


def _gradient(flat: Floats, images: Floats, digits: Labels) -> Floats:
    hidden, logits = _forward(flat, images)
    error = np.exp(logits - logits.max(-1, keepdims=True))
    error /= error.sum(-1, keepdims=True)
    np.put_along_axis(error, digits[..., None], np.take_along_axis(error, digits[..., None], -1) - 1, -1)
    error /= images.shape[1]
    below = (error @ np.swapaxes(split(flat)[2], 1, 2)) * (hidden > 0)
    parts = [np.swapaxes(images, 1, 2) @ below, below.sum(1), np.swapaxes(hidden, 1, 2) @ error, error.sum(1)]
    return np.concatenate([part.reshape(len(flat), -1) for part in parts], axis=1)


def predict(flat: Floats, images: Floats) -> Floats:
    """Return the logits of images, the largest of each being 0."""
    logits = _forward(flat, images)[1]
    return np.asarray(logits - logits.max(-1, keepdims=True), np.float32)


def accuracy(flat: Floats, test: Examples) -> float:
    """Return the share of test images that are recognised."""
    return float((_forward(flat, test.images)[1].argmax(-1) == test.digits).mean())


def backdoor_success(flat: Floats, test: Examples) -> float:
    """Return the share of other digits that bright corners turn into the target."""
    others = test.images[test.digits != TARGET]
    return float((_forward(flat, triggered(others))[1].argmax(-1) == TARGET).mean())


def triggered(images: Floats) -> Floats:
    """Return images with bright corners."""
    images = images.copy()
    images[:, CORNERS] = 1.0
    return images


def shares(hands: list[Examples]) -> Floats:
    """Return each client's weight, by its examples."""
    sizes = np.array([len(hand) for hand in hands], np.float32)
    return np.asarray(sizes / sizes.sum())


def poison(kind: str, bad_share: float, seed: int, alpha: float | None, rounds: int = ROUNDS) -> Poisoned:
    """Train a federation whose bad clients attack in every round and whom nobody stops."""
    hands, test = deal(load_digits(), CLIENTS, alpha=alpha, seed=seed)
    rng = np.random.default_rng([seed, 3])
    bad = tuple(int(client) for client in np.sort(rng.permutation(CLIENTS)[: round(CLIENTS * bad_share)]))
    own = [_poisoned(hand, kind) if client in bad else hand for client, hand in enumerate(hands)]
    states, sent = [initial(seed)], []
    for _ in range(rounds):
        deltas = train(states[-1], own, rng, rate=RATE, batch=BATCH)
        deltas[list(bad)] *= {SIGN: -1.0, LABEL: 1.0, BACKDOOR: BOOST}[kind]
        states.append(states[-1] + shares(hands) @ deltas)
        sent.append(deltas)
    return Poisoned(hands, test, bad, np.array(states), np.array(sent), seed)


def _poisoned(hand: Examples, kind: str) -> Examples:
    if kind == LABEL:
        return Examples(hand.images, 9 - hand.digits)
    if kind == BACKDOOR:
        half = len(hand) // 2
        images, digits = hand.images.copy(), hand.digits.copy()
        images[:half], digits[:half] = triggered(images[:half]), TARGET
        return Examples(images, digits)
    return hand
