"""Faults 3, 4, 11 and 12: two writers of one log, frozen ones, lost acknowledgements, two servers by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from faultkit.buses import AFTER
from faultkit.faults import LOSE, Fault
from faultkit.processes import wait_until
from faultkit.world import GROUPS, Clients, World
from faultkit.zombies import assert_zombies_change_nothing, found_with_two_detections, freeze_and_thaw_late, head_of

from refold.bus.ledger import read_all
from refold.schemas.commits import Chain
from refold.schemas.events import UpdateAccepted

SESSION_S = 2.0


def test_f03_a_frozen_detection_that_thaws_late_changes_nothing(world: World, long_run: bool, seed: int):
    assert_zombies_change_nothing(world, SESSION_S, 20 if long_run else 4, seed)


def test_f12_with_the_previous_hash_unchecked_the_same_check_fails(world: World, monkeypatch: pytest.MonkeyPatch):
    detections = found_with_two_detections(world, SESSION_S)
    with Clients(world, world.clients):
        freeze_and_thaw_late(world, detections)
        world.fed.end("the test is over")
    world.wait_until_settled()
    world.stop()
    world.assert_sound()
    # The planted bug, in the checker and in the reader: now the zombie's verdicts count, and both see updates judged twice.
    assert any("verdicts on the update" in violation for violation in world.check(check_previous=False).violations)
    assert not accepted_twice(world)
    monkeypatch.setattr(Chain, "_extends", lambda self, commit: True)
    assert accepted_twice(world)


def accepted_twice(world: World) -> set[bytes]:
    """Return the updates that Refold's own reader sees accepted more than once."""
    seen: set[bytes] = set()
    again: set[bytes] = set()
    for entry in read_all(world.fed.bus, world.fed.topics.accepted):
        for event in entry.events:
            if isinstance(event, UpdateAccepted):
                (again if event.origin.digest in seen else seen).add(event.origin.digest)
    return again


@pytest.mark.parametrize("topic", ["accepted", "rounds"])
def test_f11_a_commit_whose_acknowledgement_is_lost_counts_once(world: World, topic: str):
    world.found(clients=3, rounds=8, deadline_s=3.0)
    lost = [Fault(f"{topic}/Commit", AFTER, nth, LOSE) for nth in (1, 2, 2)]
    with_faults = {"accepted": "detection", "rounds": "aggregation"}[topic]
    for group in GROUPS:
        world.serve(group, queue=lost if group == with_faults else [])
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert findings.rounds == 8
    assert world.faults().total() == len(lost)
    assert findings.stale == 0


def test_f04_two_whole_servers_by_mistake_make_one_log(world: World):
    world.found(clients=3, rounds=12, deadline_s=3.0)
    for _ in range(2):
        world.serve(*GROUPS)
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert findings.rounds == 12


def test_f04_of_two_servers_with_one_identity_the_older_ends_and_names_the_other(world: World):
    world.found(clients=3, deadline_s=3.0)
    older = world.serve(*GROUPS, member="main")
    with Clients(world, world.clients):
        world.wait_for_round(2)
        newer = world.serve(*GROUPS, member="main")
        wait_until(lambda: older.exit_code is not None, "the older one's end")
        assert older.exit_code == 5
        world.children.remove(older)
        world.wait_for_round(head_of(world) + 3)
        world.fed.end("the test is over")
    world.wait_until_settled()
    world.stop()
    world.assert_sound()
    assert str(newer.pid) in Path(world.place.folder / "server.log").read_text()
