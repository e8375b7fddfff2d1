"""Faults 13, 14 and 15: a record that never came, a log without its tail, group offsets that somebody moved."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from faultkit.processes import wait_until
from faultkit.world import GROUPS, Clients, World

import refold
from refold.bus.contract import Place
from refold.bus.ledger import read_all
from refold.schemas.canonical import decode
from refold.schemas.checks import Checked


class LoseFirst:
    """Loses the first record of each kind, as a producer does whose delivery timed out while later ones went through."""

    def __init__(self, *points: str) -> None:
        self.left = set(points)
        self.lost: list[bytes] = []

    def __call__(self, point: str, value: bytes | None) -> bool:
        if point not in self.left:
            return False
        self.left.remove(point)
        self.lost.append(value or b"")
        return True


@pytest.mark.parametrize("kinds", [("checked/Checked",), ("checked/Attempted", "checked/Checked")], ids=len)
def test_f13_a_hole_in_checked_is_found_by_its_back_reference_and_filled(world: World, kinds: tuple[str, ...]):
    world.found(clients=3, rounds=4, deadline_s=None, partitions=1)
    losing = LoseFirst(*kinds)
    for group in GROUPS[1:]:
        world.serve(group)
    bus = world.place.open(drop=losing)
    with (
        refold.connect(world.place.url, bus=bus) as federation,
        federation.serve(["consistency"]),
        Clients(world, world.clients),
    ):
        pass
    world.wait_until_settled()
    world.stop()
    findings = world.assert_sound()
    assert not losing.left
    # No deadline asked for a look at the topic's end: only the hole can have told of the update.
    assert findings.accepted == 3 * 4
    assert decode(losing.lost[-1], Checked).offset in set(offsets_of_accepted(world))


def offsets_of_accepted(world: World) -> list[int]:
    """Return the offsets of all accepted updates."""
    entries = read_all(world.fed.bus, world.fed.topics.accepted)
    return [event.origin.offset for entry in entries for event in entry.events if type(event).__name__ == "UpdateAccepted"]


@pytest.mark.parametrize("groups", [GROUPS, ("detection",), ("aggregation",)], ids="+".join)
def test_f14_an_accepted_log_that_lost_its_tail_is_refused_at_start_with_the_index(world: World, groups: tuple[str, ...]):
    run(world, rounds=4)
    entries = read_all(world.fed.bus, world.fed.topics.accepted)
    covered = world.fed.history().lineage.position.accepted_index
    cut_tail(world, world.fed.topics.accepted, entries[-2].offset)
    ends = {topic: world.fed.bus.end_offset(Place(topic, 0)) for topic in (world.fed.topics.accepted, world.fed.topics.rounds)}
    server = world.serve(*groups)
    wait_until(lambda: server.exit_code is not None, "the refusal")
    assert server.exit_code == 3
    assert f"up to event {covered}" in world.logs()
    for topic, end in ends.items():
        assert world.fed.bus.end_offset(Place(topic, 0)) == end


def cut_tail(world: World, topic: str, from_offset: int) -> None:
    """Remove a log's records from an offset on, as a disk does that lost its last writes."""
    with closing(sqlite3.connect(world.place.file)) as connection, connection:
        sql = "SELECT place_id FROM partitions JOIN topics USING (topic_id) WHERE name = ?"
        [(place_id,)] = connection.execute(sql, (topic,)).fetchall()
        first = place_id << 40
        connection.execute("DELETE FROM records WHERE id >= ? AND id < ?", (first + from_offset, (place_id + 1) << 40))
        connection.execute("UPDATE partitions SET next_offset = ? WHERE place_id = ?", (from_offset, place_id))


MOVES = {
    "deleted": "DELETE FROM group_offsets",
    "reset": "UPDATE group_offsets SET next_offset = 0",
    "moved to the end": "UPDATE group_offsets SET next_offset = 1000000",
    "made up": "INSERT OR REPLACE INTO group_offsets"
    " SELECT DISTINCT substr(t.name, 1, instr(t.name, '.')) || g.column1, place_id, p.next_offset, ''"
    " FROM partitions p JOIN topics t USING (topic_id),"
    " (VALUES ('consistency'), ('detection'), ('aggregation'), ('snapshots')) g",
}


@pytest.mark.parametrize("how", MOVES)
def test_f15_group_offsets_that_somebody_moved_are_ignored(world: World, how: str):
    world.found(clients=3, rounds=6)
    servers = [world.serve(group) for group in GROUPS]
    with Clients(world, world.clients):
        world.wait_for_round(2)
        for server in servers:
            server.end()
            world.children.remove(server)
        with closing(sqlite3.connect(world.place.file, timeout=30)) as connection, connection:
            connection.execute(MOVES[how])
        for group in GROUPS:
            world.serve(group)
    world.wait_until_settled()
    world.stop()
    assert world.assert_sound().rounds == 6


def run(world: World, rounds: int) -> None:
    """Make a federation of so many rounds and stop its server."""
    world.found(clients=3, rounds=rounds)
    world.serve(*GROUPS)
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    world.stop()
    world.assert_sound()
    world.children.clear()
