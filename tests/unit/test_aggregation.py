"""The aggregation group beside another member's commit that comes late."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.bus.wrapping import Wrapped
from refold.schemas.errors import BusError, PlaceTakenError
from refold.schemas.events import Receipts, RoundCommitted
from refold.schemas.keys import SigningKey
from refold.testing import SteppedServer, craft_update, send_update


class LateBus(Wrapped):
    """A bus that keeps a commit of `rounds` back, says that it failed, and lets it arrive when somebody reads `accepted`."""

    holds = False
    lets_go = False

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.held: list[Callable[[], object]] = []

    def producer(self, **settings: Any) -> Any:
        return _LateProducer(self._inner.producer(**settings), self)

    def consumer(self, **settings: Any) -> Any:
        return _Consumer(self._inner.consumer(**settings), self)


class _LateProducer(Wrapped):
    def __init__(self, inner: Any, bus: LateBus) -> None:
        super().__init__(inner)
        self._bus = bus

    def send(self, topic: str, value: bytes | None, **where: Any) -> Any:
        if self._bus.holds and topic.endswith(".rounds"):
            self._bus.holds = False
            late = self._bus._inner.producer()

            def arrive() -> None:
                late.send(topic, value, **where)
                late.close()

            self._bus.held.append(arrive)
            raise BusError("no answer")
        return self._inner.send(topic, value, **where)


class _Consumer(Wrapped):
    def __init__(self, inner: Any, bus: LateBus) -> None:
        super().__init__(inner)
        self._bus = bus

    def poll(self, timeout_s: float = 0.0, **bounds: Any) -> Any:
        records = self._inner.poll(timeout_s, **bounds)
        if self._bus.lets_go and any(record.topic.endswith(".accepted") for record in records):
            while self._bus.held:
                self._bus.held.pop()()
        return records


def test_f12_a_round_that_a_late_commit_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    """A member that gave up comes back; its first life's commit arrives right after it looked where `rounds` ends."""
    bus = LateBus(MemoryBus())
    plan = refold.Plan(minimum=1, deadline_s=30.0, heartbeat_s=1.0)
    federation = refold.create(
        "memory:late", {"w": np.zeros((4, 2), "f4")}, plan=plan, keys=tmp_path, partitions=1, bus=bus, defence="consistency"
    )
    key = SigningKey.generate()
    federation.enroll("ann", key.public)
    with SteppedServer(federation) as server:
        server.settle()
        send_update(federation, craft_update(federation, "ann", key), "ann")
        server.settle("consistency", "detection")
        bus.holds = True
        with pytest.raises(BusError):
            server.settle("aggregation")
        server.members.pop("aggregation").close()
    with SteppedServer(federation, groups=("aggregation",), member="again") as server:
        bus.lets_go = True
        with pytest.raises(PlaceTakenError):
            server.settle()
    with SteppedServer(federation, member="and again") as server:
        server.settle()
    assert not bus.held
    events = [event for entry in read_all(bus, federation.topics.rounds) for event in entry.events]
    assert [event.round for event in events if isinstance(event, RoundCommitted)] == [1]
    told = [receipt.digest for event in events if isinstance(event, Receipts) for receipt in event.receipts]
    assert len(told) == len(set(told)) == 1
