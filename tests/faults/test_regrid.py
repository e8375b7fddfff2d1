"""A model outgrows its lattice while its servers are killed at every durable write on the way to a coarser one."""

from __future__ import annotations

from typing import Any

import numpy as np
from faultkit.buses import AFTER, BEFORE
from faultkit.faults import Fault
from faultkit.processes import wait_until
from faultkit.world import World

from refold.producers.lineage import Lineage

STEP = np.float32(48.0)
"""The model begins at 1, and its lattice ends at 512. A step's cell divides this: the checker knows no void round's cell."""

LIVED_THROUGH = 9
"""Commits before the first death: rounds of which the last ones are near the lattice's end."""


def outgrown(state: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return what training makes of a state: one tensor grows and grows."""
    return {name: array + (STEP if name == "w" else 1) for name, array in state.items()}


def deaths(point: str, first: int, count: int) -> list[Fault]:
    """Return deaths before and after a write in turns, from its `first` time on: each successor dies at its own first one."""
    return [Fault(point, (BEFORE, AFTER)[number % 2], 1 if number else first) for number in range(count)]


def test_f02_servers_that_die_at_every_write_go_over_to_a_coarser_lattice_once(world: World):
    model = {"w": np.ones(40, "f4"), "n": np.array(0)}
    world.found(clients=2, model=model, deadline_s=2.0, rounds=12)
    world.tell(patches=(("faultkit.processes", "moved", outgrown),))
    queues = {
        "detection": deaths("accepted/Commit", LIVED_THROUGH, 40),
        "aggregation": deaths("rounds/Commit", LIVED_THROUGH, 40),
        "snapshots": deaths("snapshots/SnapshotTaken", 2, 40),
    }
    world.serve("consistency")
    victims = [world.serve(group, queue=queue) for group, queue in queues.items()]
    clients = [world.train(name) for name in world.clients]
    wait_until(lambda: all(client.exit_code == 0 for client in clients), "the clients' end", timeout_s=120.0, tend=world.tend)
    world.wait_until_settled()
    with world.following() as lineage:
        made: Lineage = lineage()
    world.stop()
    findings = world.assert_sound()
    assert [event.outcome for event in made.rounds.values()].count("regrid") == len(made.regrids) == findings.voids == 1
    (begun,) = made.regrids
    hits = world.faults()
    print(f"{dict(hits)}, epoch from round {begun} of {findings.rounds}")
    assert all(child.queue for child in victims), "each commit to the end was died at, before and after it"
    assert begun > LIVED_THROUGH
