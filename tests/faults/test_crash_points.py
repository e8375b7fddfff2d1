"""Fault 2: death before and after every durable write, the first to the third time it is passed (to the 20th in a long run).

Each process gets one fault at a time: it dies by it, its successor gets the next, so that one federation sees them all.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from faultkit.buses import AFTER, BEFORE
from faultkit.faults import Fault
from faultkit.points import PATCHES, POINTS, busy_model, deaths_of
from faultkit.processes import FORKS, Child, Place, wait_until
from faultkit.world import World

import refold
from refold.schemas.errors import PlaceTakenError

MODEL = busy_model(420)


@pytest.fixture
def busy(world: World) -> World:
    """Return a federation in which every durable write happens in every round or two."""
    world.found(clients=3, model=MODEL, deadline_s=2.0, snapshots=refold.SnapshotPolicy(1, 1))
    return world


def test_f02_death_at_every_durable_write_loses_and_doubles_nothing(busy: World, long_run: bool):
    times = 20 if long_run else 3
    wanted = {group: deaths_of(group, times) for group in POINTS}
    busy.tell(patches=PATCHES)
    victims = [busy.serve(group, queue=wanted[group]) for group in POINTS if group != "client"]
    victims.append(busy.train("c0", queue=wanted["client"]))
    others = [busy.train(name) for name in busy.clients[1:]]
    with nonsense(busy) as send_nonsense:
        run_until_all_died(busy, victims, send_nonsense)
    busy.fed.end("every point was passed")
    wait_until(lambda: all(child.exit_code == 0 for child in [victims[-1], *others]), "the clients' end", tend=busy.tend)
    busy.wait_until_settled()
    busy.stop()
    findings = busy.assert_sound()
    busy.assert_not_asked_again(findings)
    hits = busy.faults()
    missed = [str(fault) for faults in wanted.values() for fault in faults if not hits[str(fault)]]
    report(wanted, hits)
    print(f"{hits.total()} deaths, {findings.rounds} rounds, {findings.updates} updates, refused {dict(findings.reasons)}")
    assert not missed, f"never passed: {missed}"


CREATE = [Fault(point, side) for point in ("topics/create", "deltas/Chunk", "accepted/Commit") for side in (BEFORE, AFTER)]


@pytest.mark.parametrize("fault", CREATE, ids=str)
def test_f02_a_federation_that_died_being_made_is_made_or_can_be(world: World, fault: Fault):
    process = FORKS.Process(target=make_federation, args=(world.place, fault))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if fault == CREATE[-1]:
        with pytest.raises(PlaceTakenError):
            make_federation(world.place)
    else:
        make_federation(world.place)
    world.federation = refold.connect(world.place.url)
    world.serve("aggregation")
    with world.following() as lineage:
        wait_until(lambda: lineage().opened is not None, "the opening", tend=world.tend)
    assert world.federation.rebuild(0, start=0).round == 0


def make_federation(place: Place, *faults: Fault) -> None:
    """Make a federation, dying where asked to."""
    refold.create(place.url, MODEL, bus=place.open(faults)).close()


def run_until_all_died(world: World, victims: list[Child], send_nonsense: Iterator[None]) -> None:
    """Wait until every victim died by each of its faults; if none does for long, say which they wait for."""
    left = -1
    while left:
        before = left
        left = sum(len(child.queue) for child in victims)
        if left == 0:
            return
        waits = {child.name: str(child.queue[0]) for child in victims if child.queue}
        if left != before:
            next(send_nonsense)
        wait_until(
            lambda left=left: sum(len(child.queue) for child in victims) < left,
            f"the next death; waiting for {waits}\n{world.logs()}",
            timeout_s=30.0,
            tend=world.tend,
        )


@contextmanager
def nonsense(world: World) -> Iterator[Iterator[None]]:
    """Yield an iterator that sends, each time, a record that is no update and too large to quarantine in one event."""
    topic = world.fed.topics.updates

    def send() -> Iterator[None]:
        with world.fed.bus.producer() as producer:
            for number in range(1_000_000):
                producer.send(topic, number.to_bytes(4, "big") * 20_000, key=b"nobody", partition=number % 2)
                producer.flush()
                yield

    sending = send()
    try:
        yield sending
    finally:
        sending.close()


def report(wanted: dict[str, list[Fault]], hits: Counter[str]) -> None:
    """Print how often each point was died at, before and after."""
    for group, faults in wanted.items():
        counts: Counter[str] = Counter()
        for fault in faults:
            counts[fault.point] += hits[str(fault)]
        print(f"{group:12} " + ", ".join(f"{point} {count}" for point, count in counts.items()))
