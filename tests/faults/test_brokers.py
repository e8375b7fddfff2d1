"""Faults 16 to 19 on three real brokers: lost, frozen, restarted in turn, and all at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faultkit.brokers import ProxiedCluster
from faultkit.processes import wait_until
from faultkit.world import GROUPS, Clients, World
from faultkit.zombies import head_of

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WELL_S = 120.0
FROZEN_S = 20.0
STATE = ("was acknowledged within", "found no answer within", "no broker answers", "cannot be reached")
"""How a server says that it cannot write: one of these, with who does not answer and what to do."""


@pytest.fixture
def world(tmp_path: Path, proxied: ProxiedCluster) -> Iterator[World]:
    """Yield a folder for one federation on the brokers, with a server for each group."""
    with proxied.new_world(tmp_path) as world:
        world.found(clients=3, deadline_s=3.0)
        for group in GROUPS:
            world.serve(group)
        yield world


@contextmanager
def under_load(world: World) -> Iterator[float]:
    """Keep clients at work while this lasts, and see that nothing came of what happened; yield what a round takes."""
    with Clients(world, world.clients):
        yield world.wait_for_round(2) / 2
        world.fed.end("the test is over")
    finish(world)


def finish(world: World) -> None:
    """End the federation's processes and assert that nothing was lost or doubled, and that nobody was asked twice."""
    world.wait_until_settled(timeout_s=WELL_S)
    world.stop()
    findings = world.assert_sound()
    world.assert_not_asked_again(findings)
    assert not world.lost(), "updates that clients kept have no verdict"
    assert set(findings.reasons) <= {"duplicate", "federation-ended"}, findings.reasons
    assert findings.accepted == 3 * findings.rounds


def test_f16_one_broker_of_three_lost_costs_time_and_nothing_else(world: World, proxied: ProxiedCluster):
    stood_still = {}
    with under_load(world) as usual_s:
        for what in ("accepted", "updates"):
            node = proxied.leader_of(getattr(world.fed.topics, what))
            proxied.cluster.kill(node)
            stood_still[what] = world.wait_for_round(head_of(world) + 1, timeout_s=WELL_S)
            proxied.cluster.start(node)
        world.wait_for_round(head_of(world) + 2, timeout_s=WELL_S)
    said = ", ".join(f"{seconds:.1f} s after the loss of the leader of {what}" for what, seconds in stood_still.items())
    print(f"a round usually takes {usual_s:.1f} s; {said}")


def test_f17_two_brokers_of_three_lost_stop_the_writing_and_lose_nothing(world: World, proxied: ProxiedCluster):
    with under_load(world):
        lost = proxied.ids[:2]
        for node in lost:
            proxied.cluster.kill(node)
        wait_until(lambda: says_why(world), "a server's word for it", timeout_s=WELL_S, tend=world.tend, pause_s=0.2)
        head = head_of_nothing_new(world)
        on_disk = [sum(file.stat().st_size for file in outbox(world, name).glob("*.update")) for name in world.clients]
        for node in lost:
            threading.Thread(target=proxied.cluster.start, args=(node,)).start()
        back_s = wait_until(lambda: has_rounds_after(world, head), "rounds after", timeout_s=WELL_S, tend=world.tend)
    print(f"{on_disk} bytes waited on the clients' disks; a new round {back_s:.1f} s after the brokers were started")
    # No round without a quorum of brokers: a client is owed at most its answer to the open one and to the one before.
    assert all(size < 2 * 64 << 10 for size in on_disk)


def says_why(world: World) -> bool:
    """Whether a server has said that the brokers do not answer, and what to do."""
    log = (world.place.folder / "server.log").read_text()
    return any(words in log for words in STATE) and "see whether the brokers run" in log


def outbox(world: World, client: str) -> Path:
    """Return a client's outbox."""
    return world.place.key(client).with_suffix(".outbox")


def head_of_nothing_new(world: World) -> int:
    """Return the newest round that clients were asked for: the log itself may not be readable now."""
    return max(int(line.split()[2]) for line in world.place.tasks.read_text().splitlines())


def has_rounds_after(world: World, round_: int) -> bool:
    """Whether clients were asked for rounds behind this one's successor."""
    return head_of_nothing_new(world) > round_ + 1


def test_f18_a_leader_frozen_for_twenty_seconds_thaws_and_changes_nothing(world: World, proxied: ProxiedCluster):
    with under_load(world):
        node = proxied.leader_of(world.fed.topics.accepted)
        proxied.cluster.freeze(node)
        until_s = time.monotonic() + FROZEN_S
        wait_until(lambda: time.monotonic() >= until_s, "the thaw", tend=world.tend, pause_s=0.1)
        proxied.cluster.thaw(node)
        world.wait_for_round(head_of(world) + 2, timeout_s=WELL_S)


def test_f18_a_rolling_restart_under_load_reaches_no_clients_training_loop(world: World, proxied: ProxiedCluster):
    with under_load(world):
        for node in proxied.ids:
            proxied.cluster.stop(node)
            proxied.cluster.start(node)
            world.wait_for_round(head_of(world) + 1, timeout_s=WELL_S)


def test_f19_all_brokers_killed_and_started_again_go_on(world: World, proxied: ProxiedCluster):
    with under_load(world):
        head = head_of_nothing_new(world)
        for node in proxied.ids:
            proxied.cluster.kill(node)
        proxied.cluster.restore()
        wait_until(lambda: has_rounds_after(world, head), "rounds after", timeout_s=WELL_S, tend=world.tend)
