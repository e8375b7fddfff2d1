"""A round waits a bounded time for nodes that the health group holds to be stragglers, and as ever for all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.clock import ManualClock
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.consumers.planning import plan_round
from refold.consumers.stragglers import Stragglers
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.events import RoundClosed
from refold.schemas.health import HealthReport, NodeHealth
from refold.schemas.keys import HEALTH_TAG, HEARTBEAT_TAG, SigningKey, log_key
from refold.schemas.updates import Heartbeat, heartbeat_digest
from refold.testing import SteppedServer, craft_update, send_update

NAMES = ("ann", "bob", "eve")
KEYS = {name: SigningKey.generate() for name in NAMES}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def federation(tmp_path: Path, clock: ManualClock) -> Iterator[Federation]:
    with MemoryBus(clock=clock.monotonic_s) as bus:
        plan = refold.Plan(minimum=2, deadline_s=1000.0, heartbeat_s=1.0)
        made = refold.create("memory:toy", {"w": np.zeros(40, "f4")}, plan=plan, keys=tmp_path, partitions=1, bus=bus)
        for name in NAMES:
            made.enroll(name, KEYS[name].public)
        yield made


def beat(federation: Federation, clock: ManualClock, number: int) -> None:
    with federation.bus.producer() as producer:
        for name in NAMES:
            about = ("training", 0, bytes(32), (), clock.wall_ms(), KEYS[name].key_id)
            made = Heartbeat("toy", name, 1, b"12345678", number, 1000, *about)
            made = replace(made, signature=KEYS[name].sign(HEARTBEAT_TAG, heartbeat_digest(made)))
            producer.send(federation.topics.health, encode(made), key=name.encode())


def report(federation: Federation, clock: ManualClock, *, key: SigningKey | None = None, cause: str = "straggler") -> None:
    node = NodeHealth("eve", "degraded", cause, "slow", 0, 0, 0.0, 0.0, 0, "training", "")
    signing = key or log_key(federation.keyring.secret(federation.genesis.secret_digest))
    made = HealthReport("toy", "server", 0, 1, 5000, clock.wall_ms(), (node,), signing.key_id)
    made = replace(made, signature=signing.sign(HEALTH_TAG, made.digest))
    with federation.bus.producer() as producer:
        headers = (("ce_type", b"refold.HealthReport"),)
        producer.send(federation.topics.health, encode(made), partition=0, headers=headers)


class Named:
    """Reports that call eve a straggler."""

    def __init__(self) -> None:
        self.newest: HealthReport | None = None

    def take(self, records: object) -> None:
        """Take one in."""
        self.newest = HealthReport("toy", "server", 0, 1, 5000, 0, tuple(self.nodes()))

    def nodes(self) -> list[NodeHealth]:
        """Return eve."""
        return [NodeHealth("eve", "degraded", "straggler", "slow", 0, 0, 0.0, 0.0, 0, "training", "")]


def closings(federation: Federation) -> list[str]:
    entries = read_all(federation.bus, federation.topics.accepted)
    return [event.closed_by for entry in entries for event in entry.events if isinstance(event, RoundClosed)]


def run(federation: Federation, clock: ManualClock, seconds: int, *, at: int = 10, **of_report: object) -> list[str]:
    """Answer for all but one after so long, and let time pass."""
    with SteppedServer(federation, clock=clock) as server:
        server.settle()
        for second in range(seconds):
            beat(federation, clock, second)
            if "nothing" not in of_report:
                report(federation, clock, **of_report)  # type: ignore[arg-type]
            if second == at:
                for name in ("ann", "bob"):
                    send_update(federation, craft_update(federation, name, KEYS[name], seed=ord(name[0])), name)
            server.settle()
            clock.advance(1.0)
    return closings(federation)


@pytest.mark.parametrize(("seconds", "closed"), [(18, []), (26, ["stragglers"])])
def test_a_round_waits_for_a_straggler_as_long_again_as_the_others_took(
    federation: Federation, clock: ManualClock, seconds: int, closed: list[str]
) -> None:
    assert run(federation, clock, seconds) == closed


@pytest.mark.parametrize(("seconds", "closed"), [(10, []), (14, ["stragglers"])])
def test_however_quick_the_others_were_a_straggler_has_ten_intervals(
    federation: Federation, clock: ManualClock, seconds: int, closed: list[str]
) -> None:
    assert run(federation, clock, seconds, at=1) == closed


@pytest.mark.parametrize(("waited_s", "closes"), [(0.4, False), (4.9, False), (5.1, True)])
def test_rounds_of_milliseconds_are_closed_early_on_nobody(waited_s: float, closes: bool) -> None:
    plan = plan_round(refold.Plan(minimum=2, heartbeat_s=0.01, seed=bytes(16)).policy(), 1, (0,), ())
    stragglers = Stragglers(Named())  # type: ignore[arg-type]
    stragglers.take([], 100.0)
    asked = (plan, NAMES, ("ann", "bob"), 2)
    assert not stragglers.had_their_time(*asked, 0.02, 100.0)
    assert stragglers.had_their_time(*asked, waited_s, 100.0 + waited_s) == closes


def test_without_word_of_a_straggler_it_waits_until_its_deadline(federation: Federation, clock: ManualClock) -> None:
    assert run(federation, clock, 60, nothing=True) == []


def test_f40_a_report_that_no_server_signed_shortens_no_wait(federation: Federation, clock: ManualClock) -> None:
    assert run(federation, clock, 60, key=KEYS["ann"]) == []


def test_one_that_is_ill_otherwise_is_waited_for(federation: Federation, clock: ManualClock) -> None:
    assert run(federation, clock, 60, cause="network") == []
