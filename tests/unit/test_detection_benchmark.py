"""The benches of detection: rounds until somebody is stopped are counted from the first attack, and drawn samples are whole."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield
    for name in ("_stopping", "alone", "detection"):
        sys.modules.pop(name, None)


def test_rounds_until_a_client_is_stopped_count_from_its_first_attack() -> None:
    from _stopping import Client, Stops

    late, never, honest = Client(is_bad=True), Client(is_bad=True), Client(is_bad=False)
    for refused in (False, True, True, True):
        late.judged(refused=refused)
        never.judged(refused=False)
        honest.judged(refused=refused)
    stops = Stops()
    stops.take([late, never, honest])
    found = stops.row()
    assert (late.first_refused, late.called) == (2, 4)  # Accepted once, then three refusals: 1, .5, .25, .125.
    assert found["rounds_median"] is None or found["rounds_median"] == 2
    assert found["rounds_never"] == 0.5
    assert found["rounds_p95"] is None
    assert found["honest_called"] == 1.0


def test_a_sample_meets_every_attack_once_in_all_ways_of_dealing() -> None:
    from _attacks import ATTACKS
    from alone import KINDS, sample

    options = argparse.Namespace(attacks="", third=False, quick=False, first_seed=3)
    cells = list(sample(options, "cancer-mlp"))
    assert sorted(attack for _, attack in cells if attack) == sorted(ATTACKS)
    assert sum(not attack for _, attack in cells) == 6
    assert len({(setting.alpha, setting.clients) for setting, _ in cells}) == 6
    options.third = True
    thirds = [attack for kind in KINDS for _, attack in sample(options, kind) if attack]
    assert sorted(thirds) == sorted(ATTACKS)
