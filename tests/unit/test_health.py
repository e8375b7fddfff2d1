"""The health group on a bus: whom it believes, what it writes, and that a successor goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.bus import Place
from refold.bus.clock import ManualClock
from refold.bus.memory import MemoryBus
from refold.consumers.health import HealthSettings, Watcher
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.reported import follow_reports
from refold.consumers.standby import Seat
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Alert, BanClient, Command
from refold.schemas.condition import ERROR, Condition, LogDigest, LogTemplate
from refold.schemas.health import HealthReport
from refold.schemas.keys import HEALTH_TAG, HEARTBEAT_TAG, SigningKey, log_key
from refold.schemas.updates import Heartbeat, heartbeat_digest
from refold.testing import SteppedServer, craft_update, send_update

NAMES = tuple(f"ward-{number}" for number in range(6))
KEYS = {name: SigningKey.generate() for name in NAMES}
SESSION = (1, b"session!")


class World:
    """A federation whose clients beat by hand."""

    def __init__(self, bus: MemoryBus, keys: Path, clock: ManualClock) -> None:
        self.bus, self.clock = bus, clock
        plan = refold.Plan(minimum=2, heartbeat_s=1.0, deadline_s=600.0)
        self.federation = refold.create("memory:toy", {"w": np.zeros(4, "f4")}, plan=plan, keys=keys, partitions=2, bus=bus)
        for name in NAMES:
            self.federation.enroll(name, KEYS[name].public)
        with SteppedServer(self.federation) as server:
            server.settle()
        self.number = 0

    def watcher(self, member: str = "w1", **settings: Any) -> Watcher:
        secret = self.federation.keyring.secret(self.federation.genesis.secret_digest)
        told = HealthSettings(**settings)
        federation = self.federation
        seat = Seat(self.bus, federation.topics, federation.genesis, member, self.clock, log_key(secret))
        return Watcher(seat, told)

    def send(self, value: bytes, partition: int = 0) -> None:
        with self.bus.producer() as producer:
            producer.send(self.federation.topics.health, value, partition=partition)

    def beat(
        self, name: str, *, key: SigningKey | None = None, memory: float = 0.3, log: LogDigest | None = None, **changes: Any
    ) -> Heartbeat:
        condition = Condition((("memory_used_ratio", memory),), 0, None, log)
        wall_ms = self.clock.wall_ms()
        made = Heartbeat("toy", name, *SESSION, self.number, 1000, "training", 1, bytes(32), (), wall_ms, KEYS[name].key_id)
        made = replace(made, condition=condition, **changes)
        made = replace(made, signature=(key or KEYS[name]).sign(HEARTBEAT_TAG, heartbeat_digest(made)))
        self.send(encode(made), partition=int(name[-1]) % 2)
        return made

    def run(self, watcher: Watcher, beats: int, *, without: tuple[str, ...] = (), **ill: Any) -> None:
        for _ in range(beats):
            for name in NAMES:
                if name not in without:
                    self.beat(name, **(ill if name == NAMES[2] else {}))
            self.number += 1
            for _ in range(2):
                self.clock.advance(0.5)
                watcher.turn()

    def alerts(self) -> list[Alert]:
        return [alert for alert in self._read(self.federation.topics.alerts) if isinstance(alert, Alert)]

    def commands(self) -> list[Any]:
        found = [record for record in self._read(self.federation.topics.commands) if isinstance(record, Command)]
        return [decode(command.body) for command in found]

    def _read(self, topic: str) -> list[Any]:
        consumer = self.bus.consumer()
        consumer.assign([Place(topic, number) for number in range(self.bus.topics()[topic].partitions)])
        found = []
        while records := consumer.poll(0.0):
            found += [decode(record.value or b"") for record in records]
        return found

    def states(self) -> dict[str, str]:
        reader, consumer = follow_reports(self.bus, self.federation.topics, self.federation.genesis)
        consumer.close()
        return {node.client: node.state for node in reader.nodes()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = ManualClock(1_800_000_000.0)
    with MemoryBus(clock=clock.monotonic_s) as bus:
        yield World(bus, tmp_path, clock)


def test_a_node_that_dies_is_told_of_with_cause_evidence_and_advice(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12)
    assert world.alerts() == []
    world.run(watcher, 7, without=(NAMES[2],))
    told = {alert.state: alert for alert in world.alerts()}
    found = [(alert.subject, alert.kind, alert.cause) for alert in told.values()]
    assert found == [(NAMES[2], "silent", ""), (NAMES[2], "silent", "node")]
    assert told["dead"].severity == "error"
    assert "start it again" in told["dead"].advice
    assert dict(told["dead"].evidence)["silence_beats"] >= 4
    assert world.states() == {name: "dead" if name == NAMES[2] else "healthy" for name in NAMES}
    world.run(watcher, 6)
    assert world.alerts()[2].state == "rejoined"


def test_a_node_that_leaves_in_order_is_told_of_as_left_and_alarms_nobody(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12)
    for name in NAMES[1:3]:
        world.beat(name, activity="left")
    world.number += 1
    world.run(watcher, 8, without=NAMES[1:3])
    gone = {name: "left" if name in NAMES[1:3] else "healthy" for name in NAMES}
    assert world.states() == gone
    successor = world.watcher("w2")
    world.run(successor, 8, without=NAMES[1:3])
    assert world.states() == gone
    world.run(successor, 4, without=NAMES[1:2], session_index=2)
    assert world.states() == {**gone, NAMES[2]: "healthy"}
    assert world.alerts() == []


def test_f40_a_forged_farewell_sends_nobody_away(world: World) -> None:
    watcher, mallory = world.watcher(), SigningKey.generate()
    world.run(watcher, 12)
    world.beat(NAMES[1], key=mallory, beat=9999, activity="left")
    world.beat(NAMES[2], beat=3, activity="left")
    world.run(watcher, 1)
    assert set(world.states().values()) == {"healthy"}


def test_f40_what_is_not_signed_by_its_node_says_nothing_of_it(world: World) -> None:
    watcher, mallory = world.watcher(), SigningKey.generate()
    world.run(watcher, 12)
    for number in range(40):
        world.beat(NAMES[1], key=mallory, memory=0.99, beat=1000 + number)
        world.send(b"\x1b[2J no record at all")
    world.run(watcher, 3)
    assert world.alerts() == []
    assert watcher.listener.ignored["forged"] == 40
    assert {node.state for node in watcher.monitor.nodes.values()} == {"healthy"}


def test_f40_a_forged_beat_keeps_no_dead_node_alive_and_a_replayed_one_neither(world: World) -> None:
    watcher, mallory = world.watcher(), SigningKey.generate()
    world.run(watcher, 12)
    honest = world.beat(NAMES[2])
    for _ in range(7):
        world.beat(NAMES[2], key=mallory, beat=9999)
        world.send(encode(honest))
        world.run(watcher, 1, without=(NAMES[2],))
    assert world.states()[NAMES[2]] == "dead"


def test_f40_a_report_that_the_server_did_not_sign_is_not_read(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12)
    reader, consumer = follow_reports(world.bus, world.federation.topics, world.federation.genesis)
    honest = reader.newest
    assert honest is not None
    with consumer, world.bus.producer() as producer:
        forged = replace(honest, time_ms=honest.time_ms + 1000, nodes=(), key_id=KEYS[NAMES[0]].key_id)
        forged = replace(forged, signature=KEYS[NAMES[0]].sign(HEALTH_TAG, forged.digest))
        for made in (forged, replace(forged, signature=b""), replace(honest, nodes=())):
            headers = (("ce_type", b"refold.HealthReport"),)
            producer.send(world.federation.topics.health, encode(made), partition=0, headers=headers)
        producer.flush()
        reader.take(consumer.poll(0.0))
    assert reader.refused == 3
    assert len(reader.nodes()) == len(NAMES)


def test_f09_while_no_member_works_what_it_said_is_stale(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12)
    reader, consumer = follow_reports(world.bus, world.federation.topics, world.federation.genesis)
    consumer.close()
    assert not reader.is_stale(world.clock.wall_ms())
    world.clock.advance(60)
    assert reader.is_stale(world.clock.wall_ms())


def test_a_successor_knows_what_was_known_and_tells_nothing_twice(world: World) -> None:
    first = world.watcher()
    world.run(first, 12)
    world.run(first, 7, without=(NAMES[2],))
    before = world.alerts()
    first.close()
    second = world.watcher("w2")
    world.run(second, 6, without=(NAMES[2],))
    assert world.alerts() == before
    assert second.monitor.nodes[NAMES[2]].state == "dead"
    world.run(second, 3, memory=0.6)
    world.run(second, 3)
    assert [(alert.state, alert.kind) for alert in world.alerts()][2:4] == [("rejoined", "rejoined"), ("degraded", "memory")]


def test_what_its_updates_were_refused_for_outweighs_what_a_node_says(world: World) -> None:
    watcher, name = world.watcher(), NAMES[2]
    world.run(watcher, 12)
    with SteppedServer(world.federation, clock=world.clock) as server:
        for sequence in range(3):
            parcel = craft_update(
                world.federation,
                name,
                KEYS[name],
                session=(1, b"12345678"),
                sequence=sequence,
                base_digest=bytes([sequence]) * 32,
            )
            send_update(world.federation, parcel, name)
            server.settle()
    world.run(watcher, 3)
    assert [(alert.subject, alert.kind, alert.cause) for alert in world.alerts() if alert.cause] == [(name, "refused", "data")]


def test_policy_may_ban_what_lasts_and_only_with_the_operators_key(world: World) -> None:
    policy = HealthPolicy(ban=("node",), ban_after_beats=2)
    watcher = world.watcher(policy=policy)
    world.run(watcher, 12)
    world.run(watcher, 6, memory=0.99)
    assert not any(isinstance(order, BanClient) for order in world.commands()), "a server without the key commands nothing"
    watcher.close()
    with_key = world.watcher("w2", policy=policy, operator=world.federation.keyring.operator())
    world.run(with_key, 6, memory=0.99)
    assert [order.client for order in world.commands() if isinstance(order, BanClient)] == [NAMES[2]]
    with SteppedServer(world.federation, clock=world.clock) as server:
        server.settle()
    world.run(with_key, 3, memory=0.99)
    assert NAMES[2] not in with_key.monitor.nodes, "who may not take part is not watched"
    assert [alert.kind for alert in world.alerts() if alert.kind == "banned"] == ["banned"]


def logged(text: str, *, count: int = 1, is_new: bool = True) -> LogDigest:
    return LogDigest(b"life-one", 5, 0, 1, 0, 1, False, (LogTemplate(b"template", text, ERROR, count, is_new, 0.0),), (), ())


def test_a_node_whose_log_is_unusual_is_degraded_for_it_and_told_in_words(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12)
    world.run(watcher, 1, log=logged("ERROR [red]the disk is gone[/red]: unit #"))
    world.run(watcher, 2)
    (alert,) = world.alerts()
    assert (alert.subject, alert.kind, alert.state) == (NAMES[2], "log", "degraded")
    assert "wrote something new that tells of trouble: “ERROR [red]the disk is gone[/red]: unit #”" in alert.what
    assert [state for name, state in world.states().items() if name != NAMES[2]] == ["healthy"] * 5


def test_what_a_watcher_tells_of_a_node_without_beats_is_an_alert_and_no_sign_of_life(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12, without=(NAMES[2],))
    for number in range(3):
        told = logged("ERROR the disk is gone", is_new=number == 0)
        world.beat(NAMES[2], log=told, activity="watching", session_index=0, session_nonce=bytes(8), beat=number)
        world.run(watcher, 1, without=(NAMES[2],))
    (alert,) = world.alerts()
    assert (alert.subject, alert.kind, alert.state) == (NAMES[2], "log", "")
    assert alert.what.startswith("logs: wrote something new that tells of trouble: “ERROR the disk is gone”")
    assert NAMES[2] not in watcher.monitor.nodes


def test_f40_a_flood_of_forged_logs_degrades_its_own_node_alone_and_is_told_once(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12)
    for number in range(20):
        world.run(watcher, 1, log=logged(f"ERROR forged {'abcdefghijklmnopqrst'[number]}"))
    assert {alert.subject for alert in world.alerts()} == {NAMES[2]}
    assert len(world.alerts()) <= 2
    assert all(alert.what.isprintable() for alert in world.alerts())
    assert not any(isinstance(command, BanClient) for command in world.commands())
    assert [state for name, state in world.states().items() if name != NAMES[2]] == ["healthy"] * 5


def test_many_that_change_alike_are_told_of_together() -> None:
    from refold.consumers.monitoring.node import Change
    from refold.consumers.monitoring.telling import alerts_of

    changes = [Change(f"n{number}", "healthy", "dead", "cut-off", "network") for number in range(10_000)]
    [alert] = alerts_of(changes, 1, 2)
    assert alert.subject == "nodes"
    assert alert.what.startswith("10000 nodes: ")
    assert len(encode(alert)) < 1000


def test_a_page_of_a_report_fits_a_record(world: World) -> None:
    node = replace(decode_report_node(), client="x" * 200, note="y" * 400, activity="z" * 64)
    report = HealthReport("toy", "m", 0, 1, 5000, 1, (node,) * 512, bytes(8), bytes(64))
    assert len(encode(report)) < 1_000_000


def decode_report_node() -> Any:
    from refold.schemas.health import NodeHealth

    return NodeHealth("c", "healthy", "", "", 0, 0, 0.0, 0.0, 0, "", "")


def test_nobody_is_told_to_be_dead_once_the_federation_has_ended(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher, 12)
    world.federation.end()
    with SteppedServer(world.federation, clock=world.clock) as server:
        server.settle()
    world.run(watcher, 12, without=NAMES)
    assert world.alerts() == []
