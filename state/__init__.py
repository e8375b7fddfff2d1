"""The model as a fold: lattice, aggregation, server optimizers, steps, replay."""

from refold.state.aggregation import Aggregate, WeightedMean
from refold.state.delta import Delta, decode_update, delta_of
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Optimizer
from refold.state.paths import Path, RoundEntry, find_path
from refold.state.replay import Source, rebuild
from refold.state.step import Step, Void, compute_step

__all__ = [
    "Aggregate",
    "Delta",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "ModelState",
    "Optimizer",
    "Path",
    "RoundEntry",
    "Source",
    "Step",
    "Void",
    "WeightedMean",
    "compute_step",
    "decode_update",
    "delta_of",
    "find_path",
    "initial_state",
    "rebuild",
]
