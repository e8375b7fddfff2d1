"""Faults 1, 3 and 12 on a real broker: server processes killed at any instruction, and frozen past their session."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

from faultkit.processes import pick_victim, wait_until
from faultkit.world import GROUPS, Clients, World
from faultkit.zombies import assert_zombies_change_nothing

from refold.testing.kafka import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

KILLS, ZOMBIES = 30, 10
SESSION_S = 2.0


@pytest.fixture
def chance(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Return random choices of this test's own, repeated by ``--seed``."""
    return random.Random(seed ^ zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def world(tmp_path: Path, kafka: Cluster) -> Iterator[World]:
    """Yield a folder for one federation on the broker; every process that it started is ended with the test."""
    with World(tmp_path, f"{kafka.url}/killed-{os.urandom(3).hex()}") as world:
        world.tell(session_timeout_s=SESSION_S)
        yield world


def test_f01_thirty_kills_of_server_processes_lose_and_double_nothing(world: World, chance: random.Random, seed: int):
    world.found(clients=4, deadline_s=3.0)
    servers = [world.serve(group, member=group) for group in GROUPS]
    recoveries = []
    with Clients(world, world.clients):
        world.wait_for_round(1)
        with world.following() as lineage:
            for _ in range(KILLS):
                head = lineage().head
                until_s = time.monotonic() + chance.uniform(0.0, 0.5)
                wait_until(lambda until_s=until_s: time.monotonic() >= until_s, "the moment", pause_s=0.001)
                victim = pick_victim(servers, chance)
                deaths = victim.deaths
                victim.send(signal.SIGKILL)
                recoveries.append(wait_until(lambda head=head: lineage().head > head, "the next round", tend=world.tend))
                # On a busy machine another group's round may come first: who is dying could be picked once more.
                wait_until(lambda v=victim, n=deaths: v.deaths > n, "its death to be noticed", tend=world.tend)
        world.fed.end("the test is over")
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert sum(child.deaths for child in servers) == KILLS
    print(
        f"seed {seed}: {KILLS} group members killed; {findings.rounds} rounds, {findings.updates} updates, "
        f"{findings.accepted} accepted, refused {dict(findings.reasons)}, {findings.stale} stale commits; from a kill to the "
        f"next round {sorted(recoveries)[KILLS // 2]:.2f} s in the median, {max(recoveries):.2f} s at most"
    )


def test_f03_ten_zombies_that_thaw_under_a_successor_change_nothing(world: World, seed: int):
    """Ten times, whoever sends a commit is stopped right before it does, and goes on when its successor made two rounds."""
    assert_zombies_change_nothing(world, SESSION_S, ZOMBIES, seed)
