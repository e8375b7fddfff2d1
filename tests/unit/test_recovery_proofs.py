"""The proofs of recovery in benchmarks/, small: every way gives the same bits, every flipped bit is found."""

import random

import pytest

from benchmarks import flipped_bits, rebuilds
from benchmarks._written import WrittenLog
from refold.state.optimizers import FedAdam, FedAvg


@pytest.mark.parametrize("optimizer", [FedAvg(), FedAdam()], ids=["fedavg", "fedadam"])
def test_every_way_to_a_round_gives_the_bits_that_it_was_made_with(
    optimizer: FedAvg | FedAdam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks._written.ROLLBACK_EVERY", 23)
    monkeypatch.setattr("benchmarks._written.VOID_EVERY", 7)
    log = WrittenLog(48, optimizer, side=6, every=16, kept=3, seed=5)
    found = rebuilds.compare(log, list(range(49)), random.Random(5))
    assert all(counts["equal"] == counts["rebuilt"] == 49 for counts in found.values()), found
    assert len(log.history().merged) > 20
    log.federation.close()


def test_flipped_bits_are_found_and_no_wrong_state_comes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.flipped_bits.ROUNDS", 16)
    log = WrittenLog(16, FedAdam(), side=flipped_bits.SIDE, every=8, kept=2, seed=3)
    counts = flipped_bits.flip(log, 60, random.Random(3))
    for kind in ("snapshot", "step", "merged step"):
        assert (counts[kind]["found"], counts[kind]["right"]) == (20, 20), counts
    assert counts["manifest"]["wrong"] == 0
    log.federation.close()
