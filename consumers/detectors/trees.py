"""Boosted decision trees as plain arrays: scoring needs numpy alone, and the same bytes give the same score everywhere.

Source: Friedman, Greedy function approximation: a gradient boosting machine, 2001.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors.contract import Floats

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trees:
    """Trees of one ensemble, all arrays of shape (trees, nodes).

    Parameters
    ----------
    feature, limit
        A row goes to `left` where its feature is at most the limit, else to `right`; a leaf leads to itself.
    value
        What a leaf adds to the log-odds that the row is an attack.
    """

    feature: Integers
    limit: Floats
    left: Integers
    right: Integers
    value: Floats
    start: float
    depth: int

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read trees from an ``.npz``."""
        with np.load(path, allow_pickle=False) as file:
            whole = {name: file[name].astype(np.int64) for name in ("feature", "left", "right")}
            real = {name: file[name].astype(np.float64) for name in ("limit", "value")}
            return cls(**whole, **real, start=float(file["start"]), depth=int(file["depth"]))

    @classmethod
    def of(cls, fitted: Any) -> Self:
        """Return the trees of a fitted scikit-learn ``HistGradientBoostingClassifier`` of two classes."""
        trees = [predictors[0].nodes for predictors in fitted._predictors]
        shape = (len(trees), max(map(len, trees)))
        found: dict[str, Any] = {name: np.zeros(shape, np.int64) for name in ("feature", "left", "right")}
        found |= {name: np.zeros(shape) for name in ("limit", "value")}
        for row, nodes in enumerate(trees):
            for at, node in enumerate(nodes):
                leaf = bool(node["is_leaf"])
                found["feature"][row, at] = 0 if leaf else node["feature_idx"]
                found["limit"][row, at] = 0.0 if leaf else np.float32(node["num_threshold"])
                found["left"][row, at] = at if leaf else node["left"]
                found["right"][row, at] = at if leaf else node["right"]
                found["value"][row, at] = np.float32(node["value"]) if leaf else 0.0
        depth = max(int(nodes["depth"].max()) for nodes in trees)
        return cls(**found, start=float(np.ravel(fitted._baseline_prediction)[0]), depth=depth)

    def save(self, path: Path, **more: Any) -> None:
        """Write the trees, small, and other arrays beside them."""
        np.savez_compressed(
            path,
            **more,
            feature=self.feature.astype(np.uint8),
            left=self.left.astype(np.uint8),
            right=self.right.astype(np.uint8),
            limit=self.limit.astype(np.float32),
            value=self.value.astype(np.float32),
            start=np.float64(self.start),
            depth=np.int64(self.depth),
        )

    def log_odds(self, rows: Floats) -> Floats:
        """Return what the trees say of each row."""
        trees = np.arange(len(self.feature))
        at = np.zeros((len(rows), len(self.feature)), np.int64)
        each = np.arange(len(rows))[:, None]
        for _ in range(self.depth):
            goes_left = rows[each, self.feature[trees, at]] <= self.limit[trees, at]
            at = np.where(goes_left, self.left[trees, at], self.right[trees, at])
        return np.asarray(self.start + self.value[trees, at].sum(axis=1))
