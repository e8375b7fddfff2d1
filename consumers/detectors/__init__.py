"""Anomaly detectors: one small class a file, each usable alone and in the ensemble."""

from refold.consumers.detectors.contract import Cohort, Detector, Scores
from refold.consumers.detectors.direction import Direction
from refold.consumers.detectors.ensemble import Ensemble, Opinion
from refold.consumers.detectors.norm import Norm, TensorNorm
from refold.consumers.detectors.quantile import Quantile

__all__ = ["Cohort", "Detector", "Direction", "Ensemble", "Norm", "Opinion", "Quantile", "Scores", "TensorNorm"]
