"""Faults 3, 4, 11 and 12: two writers of one log, frozen ones, lost acknowledgements, two servers by mistake."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from faultkit.buses import AFTER
from faultkit.faults import LOSE, Fault, freeze_request
from faultkit.processes import Child, wait_until
from faultkit.world import GROUPS, Clients, World

from refold.bus.ledger import read_all
from refold.schemas.commits import Chain
from refold.schemas.events import UpdateAccepted

SESSION_S = 2.0


STOOD_BACK = "another detection's commit was taken first"


def test_f03_a_frozen_detection_that_thaws_late_changes_nothing(world: World, long_run: bool, seed: int):
    freezes = 20 if long_run else 4
    detections = found_with_two_detections(world)
    with Clients(world, world.clients):
        for _ in range(freezes):
            freeze_and_thaw_late(world, detections)
        world.wait_for_round(head_of(world) + 2)
        world.fed.end("the test is over")
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    stood_back = world.logs().count(STOOD_BACK)
    print(f"seed {seed}: {freezes} freezes, {findings.stale} stale commits, {findings.rounds} rounds, {stood_back} stood back")
    assert findings.stale >= freezes
    assert stood_back >= freezes


def test_f12_with_the_previous_hash_unchecked_the_same_check_fails(world: World, monkeypatch: pytest.MonkeyPatch):
    detections = found_with_two_detections(world)
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


def found_with_two_detections(world: World) -> list[Child]:
    """Make a federation, start its groups with two members of detection, and return these."""
    world.found(clients=3, deadline_s=3.0)
    world.tell(session_timeout_s=SESSION_S)
    for group in ("consistency", "aggregation", "snapshots"):
        world.serve(group)
    return [world.serve("detection") for _ in range(2)]


def freeze_and_thaw_late(world: World, detections: list[Child]) -> None:
    """Stop whoever sends a commit right before it does, and let it go on when its successor has made two rounds.

    The bus's write lock is free at that moment, so that nobody ends the process for holding it.
    """
    world.wait_for_round(head_of(world) + 2)
    freeze_request(world.place.folder).touch()
    zombie = wait_for_the_frozen(world, detections)
    world.wait_for_round(head_of(world) + 2)
    stale = world.check().stale
    zombie.send(signal.SIGCONT)
    wait_until(lambda: world.check().stale > stale, "the late commit", tend=world.tend, pause_s=0.1)


def wait_for_the_frozen(world: World, detections: list[Child]) -> Child:
    """Return the one that stopped."""
    wait_until(lambda: any(is_frozen(child) for child in detections), "the freeze", tend=world.tend)
    return next(child for child in detections if is_frozen(child))


def accepted_twice(world: World) -> set[bytes]:
    """Return the updates that Refold's own reader sees accepted more than once."""
    seen: set[bytes] = set()
    again: set[bytes] = set()
    for entry in read_all(world.fed.bus, world.fed.topics.accepted):
        for event in entry.events:
            if isinstance(event, UpdateAccepted):
                (again if event.origin.digest in seen else seen).add(event.origin.digest)
    return again


def head_of(world: World) -> int:
    with world.following() as lineage:
        return int(lineage().head)


def is_frozen(child: Child) -> bool:
    return bool(psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)


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
