"""The benchmark of recovery, small: it measures what it says, and every state comes out equal."""

import argparse
from pathlib import Path

import pytest


@pytest.mark.torch
def test_the_benchmark_of_recovery_rebuilds_what_training_left(tmp_path: Path) -> None:
    import torch

    from benchmarks import recovery

    options = argparse.Namespace(parameters=10_000, rounds=32, repeats=1)
    found = recovery.recovery(torch, options, tmp_path)
    assert found["equal"]
    assert found["steps_on_the_way"]["16 rounds, aligned"] == 1
    assert found["kept"]["steps"] < found["kept"]["xor and zstd"] or not found["kept"]["xor and zstd"]
    assert recovery.judged(found).keys() == recovery.AIMS.keys()
