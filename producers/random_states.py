"""The states of the random generators that a training program draws from: Python's, NumPy's and torch's own."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np


def random_states() -> dict[str, Any]:
    """Return the states of every process-wide generator there is; torch's only where torch was imported."""
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}  # noqa: NPY002 -- theirs
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Bring every process-wide generator back to where it was.

    Raises
    ------
    ValueError, TypeError, KeyError
        A state is none that the generator knows.
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002 -- the program's own generator is brought back
    if "torch" in states:
        import torch

        torch.set_rng_state(states["torch"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
