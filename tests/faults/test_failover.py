"""The benchmark of failover, small: deaths are timed and counted where they were asked for, and nothing is asked for again."""

import random

from faultkit.world import World

from benchmarks import failover


def test_deaths_at_durable_steps_are_followed_by_the_next_round_and_no_work_is_repeated(world: World):
    points = {"aggregation": ("rounds/Commit",), "detection": ("accepted/Commit",)}
    found = failover.failover(world, 3, random.Random(1), points)
    assert found["sound"], found
    assert found["kills"] == 3
    assert set(found["died_at"]) == {"rounds/Commit", "accepted/Commit"}
    assert found["tasks"] > 0
