"""The bus in memory as one process of the simulation sees it: nothing blocks, and every durable step may be its last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self, cast

from refold.bus._producer import QueueDelivery
from refold.bus._store import Draft, make_draft
from refold.bus.contract import Committed, Consumer, Headers, Listener, Place, Record
from refold.bus.memory import MemoryStore
from refold.bus.wrapping import Wrapped
from refold.schemas.errors import BusError, StorageFullError
from tests.simulation.faults import Fault
from tests.simulation.scheduler import Crash, Process

if TYPE_CHECKING:
    from tests.simulation.world import World


def point_of(draft: Draft) -> str:
    """Return the point that a record's write passes."""
    topic = draft.place.topic.partition(".")[2]
    kinds = [value.decode().removeprefix("refold.") for name, value in draft.headers if name == "ce_type"]
    return f"{topic}/{'tombstone' if draft.value is None else kinds[0] if kinds else 'record'}"


class Line:
    """A process's line to the bus and to its disk: it dies, freezes, is cut off, or loses an answer there."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process

    def check(self) -> None:
        """Raise what a dead process raises, or one that the bus does not answer."""
        if not self.process.alive:
            raise Crash
        if self.process.cut_off_until_s > self.world.scheduler.now_s:
            self.world.rare["cut off"] += 1
            raise BusError("the bus does not answer", hint="the simulation cut it off")

    def interrupt(self) -> None:
        """Perhaps let others go on here."""
        self.world.scheduler.interrupt()
        self.check()

    def around(self, point: str, act: Callable[[], object]) -> None:
        """Do one durable thing at the bus that is no write, passing its point."""
        self.check()
        self.interrupt()
        self.at_disk(point, act)

    def at_disk(self, point: str, act: Callable[[], object]) -> None:
        """Do one durable thing, passing its point."""
        if not self.process.alive:
            raise Crash
        fault = self.world.plot.pass_points([point])
        if fault is None:
            act()
            self.world.scheduler.interrupt()
            return
        self.world.note(f"fault: {fault}")
        match fault.what:
            case "crash-before":
                self.die()
            case "lose-send":
                raise BusError(f"lost: {fault}")
            case "disk-full":
                raise StorageFullError(f"no room: {fault}")
            case "freeze-before":
                self.freeze(fault.span_s)
        act()
        match fault.what:
            case "lose-ack":
                raise BusError(f"no answer: {fault}")
            case "freeze-after":
                self.freeze(fault.span_s)
            case "crash-after":
                self.die()

    def die(self) -> None:
        """End this process here."""
        self.world.crash(self.process)
        raise Crash

    def freeze(self, span_s: float) -> None:
        """Stand still for so long."""
        self.world.freeze(self.process, span_s)
        self.world.scheduler.wait(0.0)


class SimBus(Wrapped):
    """A process's view of the bus."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world.bus)
        self._line = Line(world, process)

    def producer(self, *, max_in_flight_bytes: int = 16 << 20) -> SimProducer:
        """Open a producer."""
        self._line.check()
        return SimProducer(self._line, max_in_flight_bytes)

    def consumer(self, *, group: str | None = None, instance: str | None = None, **settings: Any) -> SimConsumer:
        """Open a consumer; its session is as long as the simulation's are."""
        self._line.check()
        settings["session_timeout_s"] = self._line.world.scenario.session_s
        return SimConsumer(self._line, self._inner.consumer(group=group, instance=instance, **settings))

    def end_offset(self, place: Place) -> int:
        """Offset of the next record."""
        self._line.check()
        return cast(int, self._inner.end_offset(place))

    def delete_records(self, place: Place, before_offset: int) -> None:
        """Delete records, passing a point."""

        def delete() -> None:
            self._line.world.note(f"delete {place.topic}/{place.partition} below {before_offset}")
            self._inner.delete_records(place, before_offset)

        self._line.around(f"{place.topic.partition('.')[2]}/delete", delete)

    def close(self) -> None:
        """Let go of nothing: the bus is the whole world's."""


class SimProducer:
    """A producer whose batches have a fate."""

    def __init__(self, line: Line, max_in_flight_bytes: int) -> None:
        self._line = line
        self._world = line.world
        self._store = MemoryStore(line.world.bus._log)
        self._most_bytes = max_in_flight_bytes
        self._drafts: list[Draft] = []
        self._deliveries: list[QueueDelivery] = []

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> QueueDelivery:
        """Queue a record."""
        self._line.check()
        draft = make_draft(self._store.spec(topic), key, value, partition, headers, self._store.now_ms())
        if self._drafts and sum(d.size_bytes for d in self._drafts) + draft.size_bytes > self._most_bytes:
            self.flush()
        delivery = QueueDelivery(self)
        self._drafts.append(draft)
        self._deliveries.append(delivery)
        return delivery

    def flush(self, timeout_s: float = 30.0) -> None:
        """Write what is queued, if fate lets it."""
        if not self._drafts:
            return
        drafts, self._drafts = self._drafts, []
        deliveries, self._deliveries = self._deliveries, []
        try:
            self._line.check()
            fault = self._world.plot.pass_points(list(dict.fromkeys(map(point_of, drafts))))
            self._line.interrupt()
            offsets = self._append(drafts) if fault is None else self._suffer(fault, drafts)
        except BusError as error:
            for delivery in deliveries:
                delivery.settle(None, error)
            raise
        for delivery, offset in zip(deliveries, offsets, strict=True):
            delivery.settle(offset)
        self._world.scheduler.interrupt()

    def _append(self, drafts: list[Draft]) -> list[int]:
        """Write place by place; others may write between two places."""
        offsets: dict[int, int] = {}
        order = sorted(range(len(drafts)), key=lambda number: drafts[number].place)
        for _, numbers in groupby(order, key=lambda number: drafts[number].place):
            if offsets:
                self._world.scheduler.interrupt()
            batch = list(numbers)
            offsets |= zip(batch, self._world.append([drafts[number] for number in batch]), strict=True)
        return [offsets[number] for number in range(len(drafts))]

    def _suffer(self, fault: Fault, drafts: list[Draft]) -> list[int]:
        self._world.note(f"fault: {fault}")
        match fault.what:
            case "crash-before":
                self._line.die()
            case "crash-part":
                self._append(drafts[: fault.pick % len(drafts)])
                self._line.die()
            case "crash-late":
                self._world.append_later(drafts, fault.span_s, "late record of a dead writer")
                self._line.die()
            case "hole-crash":
                self._append(_with_a_hole(drafts, fault.pick))
                self._line.die()
            case "lose-send":
                raise BusError(f"lost: {fault}")
            case "late-send":
                self._world.append_later(drafts, fault.span_s, "late record of a writer that gave up")
                raise BusError(f"no answer: {fault}")
            case "hole":
                self._append(_with_a_hole(drafts, fault.pick))
                raise BusError(f"a batch was dropped: {fault}")
            case "freeze-before":
                self._line.freeze(fault.span_s)
            case "corrupt":
                drafts = _corrupted(drafts, fault.pick)
            case "repeat":
                self._world.append_later(drafts, fault.span_s, "record repeated")
        offsets = self._append(drafts)
        match fault.what:
            case "crash-after":
                self._line.die()
            case "poison":
                self._world.plot.again(fault.point, 2)
                self._line.die()
            case "lose-ack":
                raise BusError(f"no answer: {fault}")
            case "freeze-after":
                self._line.freeze(fault.span_s)
        return offsets

    def close(self) -> None:
        """Write what is queued and let go; a dead process writes nothing."""
        if self._line.process.alive:
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _with_a_hole(drafts: list[Draft], pick: int) -> list[Draft]:
    """Return the drafts without one or a few of them, the last one staying."""
    if len(drafts) == 1:
        return []
    first = pick % (len(drafts) - 1)
    return drafts[:first] + drafts[first + 1 + pick % 2 if first + 2 < len(drafts) else first + 1 :]


def _corrupted(drafts: list[Draft], pick: int) -> list[Draft]:
    """Return the drafts with a bit of one of them turned."""
    place = pick % len(drafts)
    value = bytearray(drafts[place].value or b"\0")
    value[pick % len(value)] ^= 1 << pick % 8
    old = drafts[place]
    return [*drafts[:place], Draft(old.place, old.timestamp_ms, old.key, bytes(value), old.headers), *drafts[place + 1 :]]


class SimConsumer(Wrapped):
    """A consumer that waits in simulated time."""

    def __init__(self, line: Line, inner: Consumer) -> None:
        super().__init__(inner)
        self._line = line
        self._topics: tuple[str, ...] = ()

    def assign(self, places: Iterable[Place]) -> None:
        """Read these places."""
        self._line.check()
        places = list(places)
        self._topics = tuple(dict.fromkeys(place.topic for place in places))
        self._inner.assign(places)

    def subscribe(
        self, topics: Iterable[str], *, on_assigned: Listener | None = None, on_revoked: Listener | None = None
    ) -> None:
        """Join the group at the next poll."""
        self._topics = tuple(topics)
        group, world = self._inner._group, self._line.world

        def assigned(places: frozenset[Place]) -> None:
            world.took_over(group, places, self._line.process)
            if on_assigned is not None:
                on_assigned(places)

        self._inner.subscribe(self._topics, on_assigned=assigned, on_revoked=on_revoked)

    def poll(self, timeout_s: float = 0.0, *, max_records: int = 500) -> list[Record]:
        """Return new records, waiting in simulated time for the first; sometimes fewer than there are."""
        scheduler, chance = self._line.world.scheduler, self._line.world.chance
        until_s = scheduler.now_s + timeout_s
        self._line.interrupt()
        most = chance.randint(1, 8) if chance.random() < 0.2 else max_records
        while True:
            records = cast(list[Record], self._inner.poll(0.0, max_records=min(most, max_records)))
            if records or scheduler.now_s >= until_s:
                return records
            scheduler.wait(until_s - scheduler.now_s, self._topics)
            self._line.check()

    def stay(self) -> None:
        """Keep the membership, where the bus can be reached."""
        if self._line.process.alive and self._line.process.cut_off_until_s <= self._line.world.scheduler.now_s:
            self._inner.stay()

    def commit(self, offsets: Mapping[Place, Committed]) -> None:
        """Store the group's positions, passing a point."""
        topic = next(iter(offsets)).topic if offsets else self._topics[0]
        self._line.around(f"{topic.partition('.')[2]}/offsets", lambda: self._inner.commit(offsets))

    def close(self) -> None:
        """Leave the group; a dead process leaves it to its lease."""
        if not self._line.process.alive:
            return
        self._line.check()
        self._inner.close()
