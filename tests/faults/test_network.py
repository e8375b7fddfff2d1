"""Faults 21 and 22 on three real brokers: bad networks between them and everyone else. Slower, then finished."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from faultkit.brokers import FLIPPING, NETWORKS, ProxiedCluster
from faultkit.processes import wait_until
from faultkit.world import GROUPS, Clients, World
from faultkit.zombies import head_of

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WELL_S = 120.0
MOST_GROWTH_BYTES = 64 << 20
"""What a process may take more than before while its network is bad: bytes in flight are bounded."""


SLOW = ("50 to 500 ms of latency", "1 Mbit/s")
"""What everyone's network can be, and rounds are still made; any other is one broker's and lasts so long:"""
LASTS_S = 6.0


@pytest.fixture
def world(tmp_path: Path, proxied: ProxiedCluster) -> Iterator[World]:
    """Yield a folder for one federation behind the proxies."""
    with proxied.new_world(tmp_path) as world:
        yield world


def test_f21_every_kind_of_bad_network_slows_training_down_and_nothing_else(
    world: World, proxied: ProxiedCluster, chance: random.Random
):
    world.found(clients=3, deadline_s=3.0)
    servers = [world.serve(group) for group in GROUPS]
    took: dict[str, float] = {}
    with Clients(world, world.clients):
        usual_s = world.wait_for_round(4) / 4
        with Memory(server.pid for server in servers) as memory:
            for name in NETWORKS:
                took[name] = suffer(world, proxied, name, chance)
            for proxy in proxied.proxies.values():
                proxy.flap(chance.uniform(0.5, 1.0), chance.uniform(0.3, 1.0))
            took["flapping"] = world.wait_for_round(head_of(world) + 2, timeout_s=WELL_S)
            proxied.heal()
        world.fed.end("the test is over")
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    print(
        f"{findings.rounds} rounds, {findings.updates} updates, {usual_s:.2f} s each at first; memory +{memory.grown >> 20} MiB"
    )
    print("; ".join(f"{name}: {seconds:.1f} s to the next round" for name, seconds in took.items()))
    assert findings.accepted == 3 * findings.rounds
    assert set(findings.reasons) <= {"duplicate", "federation-ended"}
    assert memory.grown < MOST_GROWTH_BYTES


def suffer(world: World, proxied: ProxiedCluster, name: str, chance: random.Random) -> float:
    """Have a bad network until a round was made in it, or for a while; return how long the next round took."""
    nodes = list(proxied.ids) if name in SLOW else [chance.choice(proxied.ids)]
    head, began_s = head_of(world), time.monotonic()
    proxied.have(NETWORKS[name], nodes)
    if not NETWORKS[name].accepts or NETWORKS[name].silent:
        for node in nodes:
            proxied.proxies[node].reset()
    if name not in SLOW:
        wait_until(lambda: time.monotonic() >= began_s + LASTS_S, "the end of it", tend=world.tend, pause_s=0.1)
        proxied.heal()
    world.wait_for_round(head + 1, timeout_s=WELL_S)
    proxied.heal()
    return time.monotonic() - began_s


class Memory:
    """How much more resident memory any of these processes takes at some time than at first."""

    def __init__(self, pids: Iterator[int]) -> None:
        self._first = {process: process.memory_info().rss for process in map(psutil.Process, pids)}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.grown = 0

    def __enter__(self):
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self.grown = max([self.grown, *(process.memory_info().rss - first for process, first in self._first.items())])

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


MODEL = {"w": np.zeros((350, 350), "f4"), "n": np.array(0)}
"""Large enough that its deltas, steps and snapshots travel in chunks, of which most bytes are."""


def test_f22_bytes_changed_on_the_way_are_found_by_checksum_and_sent_again(world: World, proxied: ProxiedCluster):
    world.found(clients=3, model=MODEL, deadline_s=3.0)
    for group in GROUPS:
        world.serve(group)
    with Clients(world, world.clients):
        world.wait_for_round(1)
        before = proxied.flips
        proxied.have(FLIPPING)
        wait_until(lambda: proxied.flips >= before + 20, "20 flipped bits", tend=world.tend, timeout_s=WELL_S, pause_s=0.1)
        proxied.heal()
        world.wait_for_round(head_of(world) + 2, timeout_s=WELL_S)
        world.fed.end("the test is over")
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    print(f"{proxied.flips} flipped bits in {findings.rounds} rounds, refused {dict(findings.reasons)}")
    assert findings.accepted == 3 * findings.rounds
    assert set(findings.reasons) <= {"duplicate", "federation-ended"}
