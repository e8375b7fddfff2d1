"""What goes wrong between a client and the bus: a bus that spoils what an armed injector tells it to.

The faults are real ones: the bytes that reach the log are the spoiled ones, and a killed process is killed by the system.
Each is written to ``faults.jsonl`` when the update passes, just before it is sent.
"""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import blake3

from refold.bus.contract import Bus, Delivery, Headers, Producer
from refold.bus.topics import Topics, is_chunk
from refold.bus.wrapping import Wrapped
from refold.demo.faults import FLIPPED, KILLED, TWICE, Fault, FaultFile
from refold.schemas.canonical import decode
from refold.schemas.updates import ClientUpdate


class Injector:
    """Knows which fault the next update carries, and commits it when the update passes."""

    def __init__(self, client: str, topics: Topics, file: FaultFile) -> None:
        self.client = client
        self.updates = topics.updates
        self._file = file
        self._done = {(fault.kind, fault.round) for fault in file.read() if fault.client == client}
        self._armed: tuple[str, int] | None = None

    def arm(self, kind: str, round_: int) -> str:
        """Let the next update carry this fault, and return it; "" if there is none, or it happened already.

        So who is asked again after a fault, in this process or the next, answers well.
        """
        self._armed = (kind, round_) if kind and (kind, round_) not in self._done else None
        return kind if self._armed else ""

    def pass_on(self, producer: Producer, value: bytes, **where: Any) -> Delivery:
        """Send a manifest, spoiled as armed."""
        armed, self._armed = self._armed, None
        if armed is None:
            return producer.send(self.updates, value, **where)
        kind, round_ = armed
        self._done.add(armed)
        sent = _flip(value) if kind == FLIPPED else value
        record = blake3.blake3(sent).hexdigest() if sent != value else ""
        self._file.add(Fault(kind, self.client, round_, decode(value, ClientUpdate).digest.hex(), record))
        if kind == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == TWICE:
            producer.send(self.updates, sent, **where)
        return producer.send(self.updates, sent, **where)


def _flip(value: bytes) -> bytes:
    """Return the record with sixteen bytes in its middle inverted."""
    middle = len(value) // 2
    return value[:middle] + bytes(byte ^ 0xFF for byte in value[middle : middle + 16]) + value[middle + 16 :]


class _TroubledProducer(Wrapped):
    """A producer whose manifests go through the injector."""

    def __init__(self, producer: Producer, injector: Injector) -> None:
        super().__init__(producer)
        self._injector = injector

    def send(self, topic: str, value: bytes | None, *, headers: Headers = (), **where: Any) -> Delivery:
        where["headers"] = headers
        if topic == self._injector.updates and value is not None and not is_chunk(headers):
            return self._injector.pass_on(self._inner, value, **where)
        return cast(Delivery, self._inner.send(topic, value, **where))


class _TroubledBus(Wrapped):
    """A bus whose producers are troubled; all else is the bus's own."""

    def __init__(self, bus: Bus, injector: Injector) -> None:
        super().__init__(bus)
        self._injector = injector

    def producer(self, **settings: Any) -> Producer:
        return cast(Producer, _TroubledProducer(self._inner.producer(**settings), self._injector))


def troubled(bus: Bus, injector: Injector) -> Bus:
    """Return the bus as a client with this injector sees it."""
    return cast(Bus, _TroubledBus(bus, injector))
