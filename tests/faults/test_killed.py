"""Faults 1, 5 and 6: processes killed at any instruction, again and again."""

from __future__ import annotations

import random
import signal
import time

from faultkit.processes import Child, pick_victim, wait_until
from faultkit.world import GROUPS, World


def test_f01_groups_and_clients_killed_at_random_lose_and_double_nothing(
    world: World, chance: random.Random, long_run: bool, seed
):
    kills = 625 if long_run else 63  # Four in five hit a group's member: 500, or 51; the others a client.
    world.found(clients=4, deadline_s=3.0)
    servers = [world.serve(group) for group in GROUPS]
    clients = [world.train(name) for name in world.clients]
    recoveries = kill_at_random(world, servers, clients, kills, chance)
    world.fed.end("the test is over")
    wait_until(lambda: all(client.exit_code == 0 for client in clients), "the clients' end", tend=world.tend)
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    tasks = world.assert_not_asked_again(findings)
    assert findings.rounds >= kills // 3
    print(
        f"seed {seed}: {sum(child.deaths for child in servers)} group members and {sum(child.deaths for child in clients)} "
        f"clients killed; {findings.rounds} rounds, {findings.updates} updates, {tasks} tasks, {findings.accepted} accepted, "
        f"refused {dict(findings.reasons)}, {findings.stale} stale commits; from a kill to the next round "
        f"{sorted(recoveries)[len(recoveries) // 2]:.2f} s in the median, {max(recoveries):.2f} s at most"
    )


def kill_at_random(world: World, servers: list[Child], clients: list[Child], kills: int, chance: random.Random) -> list[float]:
    """Kill so many processes, one at a time, and return how long the next round took each time, in seconds."""
    recoveries = []
    world.wait_for_round(1)
    with world.following() as lineage:
        for number in range(kills):
            victim = pick_victim(clients if number % 5 == 4 else servers, chance)
            until_s = time.monotonic() + chance.uniform(0.0, 0.3)
            wait_until(lambda until_s=until_s: time.monotonic() >= until_s, "the moment", tend=world.tend, pause_s=0.001)
            head = lineage().head
            began_s = time.monotonic()
            victim.send(signal.SIGKILL)
            wait_until(lambda head=head: lineage().head > head, "the next round", tend=world.tend)
            recoveries.append(time.monotonic() - began_s)
    return recoveries
