"""The benchmark of agreement, small: a beat costs one look-up, however many rounds lie between it and the one before."""

from benchmarks import agreement


def test_a_beat_is_compared_once_whatever_the_pace_of_rounds() -> None:
    found = agreement.measure(clients=10, beats=4, parameters=300_000)
    assert {cost["comparisons_per_beat"] for cost in found["paces"].values()} == {1.0}
    assert found["cost_at_1000_over_cost_at_1"] < 5 < found["every_version_at_1000_over_at_1"]
    assert found["divergence"]["tree_bytes"] < 1_000
