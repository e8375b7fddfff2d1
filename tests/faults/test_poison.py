"""Fault 7: an update whose decoding ends the process ends as `poison`, without blame, and holds up nobody."""

from __future__ import annotations

from typing import Any

import pytest
from faultkit.buses import AFTER, BEFORE
from faultkit.faults import LOSE, Fault
from faultkit.poison import CLIENT, OUT_OF_MEMORY, PATCHES
from faultkit.world import GROUPS, Clients, World

from refold.bus.ledger import read_all
from refold.consumers.attempts import MAX_ATTEMPTS
from refold.schemas.errors import TryAgainError
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.reasons import blames


@pytest.mark.parametrize("together", [False, True], ids=["each group in a process", "all groups in one process"])
@pytest.mark.parametrize("deadline_s", [0.4, 5.0])
def test_f07_an_update_that_kills_who_decodes_it_is_judged_undecoded(world: World, together: bool, deadline_s: float):
    world.found(clients=3, minimum=2, rounds=4, deadline_s=deadline_s)
    world.tell(patches=PATCHES)
    servers = [world.serve(*GROUPS)] if together else [world.serve(group) for group in GROUPS]
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert findings.rounds == 4
    poisoned = [event for event in verdicts(world, UpdateRejected) if "poison" in event.reasons]
    assert poisoned
    assert {(event.origin.client, event.origin.base_round) for event in poisoned} == {(CLIENT, 0)}
    assert not any(blames(reason) for event in poisoned for reason in event.reasons)
    assert {event.origin.base_round for event in verdicts(world, UpdateAccepted) if event.origin.client == CLIENT} == {1, 2, 3}
    deaths = sum(server.deaths for server in servers)
    print(f"{deaths} deaths for {len(poisoned)} poisoned updates")
    assert MAX_ATTEMPTS <= deaths <= 8 * MAX_ATTEMPTS * len(poisoned)


def test_f07_an_update_over_which_memory_runs_out_is_judged_undecoded_and_the_others_go_on(world: World):
    world.found(clients=3, minimum=2, rounds=4, deadline_s=2.0)
    world.tell(patches=OUT_OF_MEMORY)
    servers = [world.serve(group) for group in GROUPS]
    for server in servers:
        server.begins_again_after |= {TryAgainError.exit_code}
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert findings.rounds == 4
    assert "memory ran out" in (world.place.folder / "server.log").read_text()
    poisoned = {event.origin.digest for event in verdicts(world, UpdateRejected) if "poison" in event.reasons}
    assert len(poisoned) == findings.reasons["poison"] == 1
    assert sum(server.failures for server in servers) >= MAX_ATTEMPTS


@pytest.mark.parametrize("side", [BEFORE, AFTER])
def test_f24_a_bus_that_fails_again_and_again_poisons_nothing(world: World, side: str):
    # What a round brings may be written in one go, and each failure takes one.
    world.found(clients=3, rounds=MAX_ATTEMPTS + 3, deadline_s=5.0)
    failures = [Fault("checked/Checked", side, 1, LOSE)] * (MAX_ATTEMPTS + 1)
    for group in GROUPS:
        world.serve(group, queue=failures if group == "consistency" else [])
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert world.faults().total() == len(failures)
    assert not findings.reasons, findings.reasons


def verdicts(world: World, kind: type[Any]) -> list[Any]:
    """Return all verdicts of a kind."""
    entries = read_all(world.fed.bus, world.fed.topics.accepted)
    return [event for entry in entries for event in entry.events if isinstance(event, kind)]
