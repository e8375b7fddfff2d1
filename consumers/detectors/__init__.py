"""Anomaly detectors: one small class a file, each usable alone and in the ensemble."""

from refold.consumers.detectors.autoencoder import Autoencoder
from refold.consumers.detectors.contract import Cohort, Detector, Scores
from refold.consumers.detectors.deviation import Deviation
from refold.consumers.detectors.direction import Direction
from refold.consumers.detectors.ensemble import Ensemble, Opinion
from refold.consumers.detectors.forest import Forest
from refold.consumers.detectors.gan import Gan
from refold.consumers.detectors.neighbours import LocalOutlier, Neighbours
from refold.consumers.detectors.norm import Norm, TensorNorm
from refold.consumers.detectors.one_class import OneClass
from refold.consumers.detectors.pattern import Pattern
from refold.consumers.detectors.prediction import Prediction
from refold.consumers.detectors.quantile import Quantile
from refold.consumers.detectors.ranks import Ranks
from refold.consumers.detectors.recent import Past, Recent
from refold.consumers.detectors.reported import Reported
from refold.consumers.detectors.root import Root
from refold.consumers.detectors.said import Said
from refold.consumers.detectors.signs import Signs
from refold.consumers.detectors.tree import Tree
from refold.consumers.detectors.twins import Twins

__all__ = [
    "Autoencoder",
    "Cohort",
    "Detector",
    "Deviation",
    "Direction",
    "Ensemble",
    "Forest",
    "Gan",
    "LocalOutlier",
    "Neighbours",
    "Norm",
    "OneClass",
    "Opinion",
    "Past",
    "Pattern",
    "Prediction",
    "Quantile",
    "Ranks",
    "Recent",
    "Reported",
    "Root",
    "Said",
    "Scores",
    "Signs",
    "TensorNorm",
    "Tree",
    "Twins",
]
