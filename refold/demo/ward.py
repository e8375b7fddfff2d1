"""What the clients of ``docker/compose.yaml`` train: ``refold client NAME --train refold.demo.ward:train``.

The demonstration's digits and network, without its faults. ``WARD`` says which of ``WARDS`` hands of examples is this client's.
``python -m refold.demo.ward FILE.npz`` writes round 0.
"""

from __future__ import annotations

import os
import sys
from functools import cache

import numpy as np

from refold.demo import network
from refold.demo.data import Examples, deal, load_digits
from refold.demo.network import BATCH, EPOCHS, RATE, Weights, accuracy, initial_weights
from refold.producers.task import Task
from refold.schemas.errors import ConfigurationError

SEED = 1
ALPHA = 0.5


def train(task: Task) -> tuple[Weights, int, dict[str, float]]:
    """Return the weights after this ward's examples, how many there are, and the accuracy on examples that nobody trains on."""
    ward, mine, test = hand()
    rng = np.random.default_rng([SEED, 3, ward, task.round])
    trained = network.train(task.numpy(), mine, epochs=EPOCHS, rate=RATE.at(task.round), batch=BATCH, rng=rng)
    return trained, len(mine), {"accuracy": accuracy(trained, test)}


@cache
def hand() -> tuple[int, Examples, Examples]:
    """Return this ward's number, its examples and the test examples: the same in every process.

    Raises
    ------
    ConfigurationError
        ``WARD`` is not a number from 1 to ``WARDS``.
    """
    try:
        ward, wards = int(os.environ["WARD"]), int(os.environ["WARDS"])
    except (KeyError, ValueError) as error:
        raise ConfigurationError("WARD and WARDS are not both numbers", hint="set WARD=1 WARDS=3") from error
    if not 1 <= ward <= wards:
        raise ConfigurationError(f"there is no ward {ward} of {wards}", hint="set WARD to a number from 1 to WARDS")
    hands, test = deal(load_digits(), wards, alpha=ALPHA, seed=SEED)
    return ward, hands[ward - 1], test


if __name__ == "__main__":
    np.savez(sys.argv[1], **initial_weights(SEED))  # type: ignore[arg-type]
