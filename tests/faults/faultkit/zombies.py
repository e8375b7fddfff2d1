"""Detections that freeze right before a commit and go on when a successor has made rounds of its own."""

from __future__ import annotations

import signal

import psutil

from faultkit.faults import freeze_request
from faultkit.processes import Child, wait_until
from faultkit.world import Clients, World

STOOD_BACK = "another detection's commit was taken first"


def found_with_two_detections(world: World, session_s: float) -> list[Child]:
    """Make a federation, start its groups with two members of detection, and return these."""
    world.found(clients=3, deadline_s=3.0)
    world.tell(session_timeout_s=session_s)
    for group in ("consistency", "aggregation", "snapshots"):
        world.serve(group)
    return [world.serve("detection") for _ in range(2)]


def assert_zombies_change_nothing(world: World, session_s: float, freezes: int, seed: int) -> None:
    """Freeze and thaw so many times while clients train; then every invariant holds, and each zombie stood back."""
    detections = found_with_two_detections(world, session_s)
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


def head_of(world: World) -> int:
    """Return the newest round."""
    with world.following() as lineage:
        return int(lineage().head)


def is_frozen(child: Child) -> bool:
    """Whether a process is stopped."""
    return bool(psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
