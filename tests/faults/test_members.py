"""Faults 8, 9, 10 and 29: a reader that hangs, no sign of life, members that come and go all the time, clocks that jump."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable

import pytest
from faultkit.clocks import jumping
from faultkit.processes import wait_until
from faultkit.world import GROUPS, Clients, World
from faultkit.zombies import head_of

import refold

CHURN_S = 0.5
ROUNDS, LEAST_MEMBERS = 12, 8


def test_f10_members_that_join_and_leave_all_the_time_lose_and_double_nothing(world: World, chance: random.Random):
    world.found(clients=3, deadline_s=3.0)
    for group in GROUPS:
        world.serve(group)
    joined = 0
    with Clients(world, world.clients):
        while head_of(world) < ROUNDS or joined < LEAST_MEMBERS:
            group = chance.choice(GROUPS)
            member = world.serve(group)
            joined += 1
            wait_until(_is_later(time.monotonic() + CHURN_S), "its leave", tend=world.tend)
            assert member.stop() in (0, -signal.SIGTERM)  # The latter where it had hardly begun.
            world.children.remove(member)
        world.fed.end("the test is over")
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    print(f"{joined} members joined and left in {findings.rounds} rounds, refused {dict(findings.reasons)}")
    assert set(findings.reasons) <= {"federation-ended"}


def _is_later(until_s: float) -> Callable[[], bool]:
    return lambda: time.monotonic() >= until_s


def test_f09_without_any_heartbeat_rounds_are_judged_and_made(world: World):
    world.found(clients=3, rounds=4, deadline_s=3.0)
    for group in GROUPS:
        world.serve(group)
    with Clients(world, world.clients, drop=lambda point, _value: point == "health/Heartbeat"):
        pass
    world.wait_until_settled()
    world.stop()
    assert world.assert_sound().accepted == 3 * 4


def test_f08_an_attached_consumer_that_hangs_holds_nobody_up_and_may_change_nothing(world: World):
    world.found(clients=3, rounds=4, deadline_s=3.0)
    hangs, let_go, seen = threading.Event(), threading.Event(), []

    def look_on() -> None:
        with refold.connect(world.place.url) as federation:

            @federation.consumer("hanging", topic="accepted")
            def hang(event: object, _context: object) -> None:
                with pytest.raises((AttributeError, TypeError)):
                    event.round = 7  # type: ignore[attr-defined]
                hangs.set()
                let_go.wait()
                seen.append(event)

            federation.run(follow=False)

    looker = threading.Thread(target=look_on, daemon=True)
    looker.start()
    assert hangs.wait(30.0)
    for group in GROUPS:
        world.serve(group)
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    assert not seen
    let_go.set()
    looker.join()
    world.stop()
    assert world.assert_sound().accepted == 3 * 4
    assert len(seen) == len(list(world.fed.log()))


def test_f29_clocks_that_jump_by_an_hour_or_ten_years_change_no_verdict(world: World, seed: int):
    world.found(clients=3, rounds=6, deadline_s=3.0)
    world.tell(patches=jumping(seed))
    for group in GROUPS:
        world.serve(group)
    clients = [world.train(name) for name in world.clients]
    wait_until(lambda: all(client.exit_code == 0 for client in clients), "the clients' end", tend=world.tend)
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert findings.accepted == 3 * 6
    assert not findings.reasons
    times_ms = [context.time_ms for _, context in world.fed.log()]
    assert max(times_ms) - min(times_ms) > 365 * 86_400_000, "no clock jumped"
