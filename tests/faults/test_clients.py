"""Faults 5 and 6: a client killed between sending and its receipt, and one that lost its disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faultkit.buses import AFTER, BEFORE
from faultkit.faults import Fault
from faultkit.processes import Child, wait_until
from faultkit.world import GROUPS, World

from refold.bus.ledger import read_all
from refold.schemas.events import UpdateAccepted

SENT = [Fault("updates/ClientUpdate", AFTER, 1), Fault("updates/ClientUpdate", AFTER, 2)]


def test_f05_an_update_sent_before_the_kill_is_sent_again_and_counted_once(world: World):
    world.found(clients=3, rounds=6)
    world.serve(*GROUPS)
    first = world.train("c0", queue=SENT)
    wait_until(lambda: first.deaths == 1, "the first death", tend=world.tend)
    # The round waits for three, so that the receipt cannot come before the update was sent again.
    wait_until(lambda: world.check().reasons["duplicate"] == 1, "the duplicate", tend=world.tend, pause_s=0.1)
    clients = [first, *(world.train(name) for name in world.clients[1:])]
    wait_until(lambda: all(client.exit_code == 0 for client in clients), "the clients' end", tend=world.tend)
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    world.assert_not_asked_again(findings)
    assert world.faults().total() == len(SENT)
    assert set(findings.reasons) == {"duplicate"}
    assert findings.accepted == 3 * 6


@pytest.mark.parametrize("side", [BEFORE, AFTER], ids=["with an update unsent", "with an update sent"])
def test_f06_a_client_that_lost_its_disk_goes_on_in_a_new_session(world: World, side: str):
    world.found(clients=3, rounds=6, deadline_s=1.0)
    world.serve(*GROUPS)
    others = [world.train(name) for name in world.clients[1:]]
    client = world.train("c0", queue=[Fault("updates/ClientUpdate", side, 3)])
    wait_until(lambda: client.exit_code is not None, "the client's death")
    lose_the_disk(client, world.place.key("c0"))
    wait_until(lambda: all(child.exit_code == 0 for child in [client, *others]), "the clients' end", tend=world.tend)
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    rounds = {event.origin.base_round + 1 for event in accepted_of(world, "c0")}
    print(f"c0 was accepted in rounds {sorted(rounds)}; refused {dict(findings.reasons)}")
    assert {1, 2, 4, 5, 6} <= rounds


def lose_the_disk(client: Child, key: Path) -> None:
    """Remove what a client kept, but for its key."""
    assert client.deaths == 0
    shutil.rmtree(key.with_suffix(".outbox"))


def accepted_of(world: World, client: str) -> list[UpdateAccepted]:
    """Return a client's accepted updates."""
    entries = read_all(world.fed.bus, world.fed.topics.accepted)
    events = [event for entry in entries for event in entry.events if isinstance(event, UpdateAccepted)]
    return [event for event in events if event.origin.client == client]
