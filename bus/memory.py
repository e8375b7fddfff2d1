"""The bus in memory, for tests and simulation: deterministic, with a clock that can be set by hand.

It does not survive its process. `memory:NAME` is one bus for all who open that name in this process; `memory:` is a new one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self
from weakref import WeakValueDictionary

from refold.bus._consumer import LogConsumer
from refold.bus._groups import Group, Member
from refold.bus._memory_log import PartitionLog
from refold.bus._producer import QueueProducer
from refold.bus._store import Draft, Fetched, check_deletable, check_place, check_specs, no_topic
from refold.bus.contract import Committed, Place, Record, TopicSpec
from refold.bus.examination import examine_specs
from refold.bus.symptoms import Symptom
from refold.schemas.errors import UsageError


class _Log:
    """What one bus in memory holds, behind one lock."""

    def __init__(self, clock: Callable[[], float] | None, delete_retention_s: float) -> None:
        self.monotonic = clock or time.monotonic
        self.wall = clock or time.time
        self.delete_retention_s = delete_retention_s
        self.changed = threading.Condition(threading.RLock())
        self.specs: dict[str, TopicSpec] = {}
        self.partitions: dict[Place, PartitionLog] = {}
        self.groups: dict[str, Group] = {}
        self.offsets: dict[tuple[str, Place], Committed] = {}
        self.member_numbers = itertools.count(1)

    def wrote(self) -> None:
        self.changed.notify_all()


_anonymous_numbers = itertools.count(1)
_anonymous: WeakValueDictionary[str, _Log] = WeakValueDictionary()
_named: dict[str, _Log] = {}
_registry_lock = threading.Lock()


class MemoryBus:
    """A bus in memory.

    Parameters
    ----------
    name
        Share the bus of this name, which lives as long as the process; without one the bus is new and goes with its last user.
    clock
        Seconds, for timestamps and leases alike; set by hand in tests. Waiting in `poll` always takes real time. A bus that is
        there keeps the clock it was made with.
    delete_retention_s
        How long `compact` keeps a tombstone after it first saw it.
    """

    def __init__(
        self, name: str | None = None, *, clock: Callable[[], float] | None = None, delete_retention_s: float = 86_400.0
    ) -> None:
        with _registry_lock:
            self._name = name or f"#{next(_anonymous_numbers)}"
            found = _named.get(self._name) or _anonymous.get(self._name)
            self._log = found or _Log(clock, delete_retention_s)
            if found is None:
                registry = _named if name else _anonymous
                registry[self._name] = self._log
        self._closed = False

    @property
    def url(self) -> str:
        """The URL that opens it again, in this process."""
        return f"memory:{self._name}"

    def create_topics(self, specs: Iterable[TopicSpec]) -> None:
        """Create what is not there. Idempotent; all or nothing."""
        with self._open_log().changed:
            for spec in check_specs(specs, self._log.specs):
                self._log.specs[spec.name] = spec
                for partition in range(spec.partitions):
                    self._log.partitions.setdefault(Place(spec.name, partition), PartitionLog(spec))
            self._log.wrote()

    def topics(self) -> dict[str, TopicSpec]:
        """All topics by name."""
        with self._open_log().changed:
            return dict(sorted(self._log.specs.items()))

    def producer(self, *, max_in_flight_bytes: int = 16 << 20) -> QueueProducer:
        """Open a producer."""
        return QueueProducer(MemoryStore(self._open_log()), max_in_flight_bytes)

    def consumer(
        self,
        *,
        group: str | None = None,
        instance: str | None = None,
        max_in_flight_bytes: int = 16 << 20,
        session_timeout_s: float = 10.0,
    ) -> LogConsumer:
        """Open a consumer."""
        return LogConsumer(MemoryStore(self._open_log()), group, instance, max_in_flight_bytes, session_timeout_s)

    def begin_offset(self, place: Place) -> int:
        """First offset that still exists, or the end."""
        return MemoryStore(self._open_log()).begin_offset(place)

    def end_offset(self, place: Place) -> int:
        """Offset of the next record."""
        return MemoryStore(self._open_log()).end_offset(place)

    def offset_for_time(self, place: Place, timestamp_ms: int) -> int | None:
        """First offset whose record has this timestamp or a later one."""
        with self._open_log().changed:
            return MemoryStore(self._log).partition(place).offset_for_time(timestamp_ms)

    def delete_records(self, place: Place, before_offset: int) -> None:
        """Delete every record below `before_offset`."""
        with self._open_log().changed:
            partition = MemoryStore(self._log).partition(place)
            check_deletable(self._log.specs[place.topic])
            partition.delete_before(before_offset)
            self._log.wrote()

    def compact(self, topic: str | None = None) -> int:
        """Apply retention and compaction to one topic or all, and return how many records went."""
        with self._open_log().changed:
            if topic is not None and topic not in self._log.specs:
                raise no_topic(topic)
            now_ms = int(self._log.wall() * 1000)
            logs = [log for place, log in self._log.partitions.items() if topic in (None, place.topic)]
            removed = sum(log.clean(now_ms, self._log.delete_retention_s) for log in logs)
            self._log.wrote()
            return removed

    def committed(self, group: str, place: Place) -> Committed | None:
        """The group's stored position, or None."""
        return MemoryStore(self._open_log()).committed(group, place)

    def lag(self, group: str) -> dict[Place, int]:
        """End offset − stored next offset, for each place where the group stored a position."""
        with self._open_log().changed:
            stored = {place: at.next_offset for (name, place), at in self._log.offsets.items() if name == group}
            return {place: self._log.partitions[place].next_offset - stored[place] for place in sorted(stored)}

    def examine(self, specs: Iterable[TopicSpec], *, thorough: bool = False) -> list[Symptom]:
        """Look at the topics."""
        return examine_specs(specs, self.topics(), lambda spec, setting: f"make {spec.name} anew")

    def _open_log(self) -> _Log:
        if self._closed:
            raise UsageError("the bus is closed")
        return self._log

    def close(self) -> None:
        """Let go. Producers and consumers that are open stay usable. Idempotent."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MemoryStore:
    """A `Store` on a bus in memory."""

    def __init__(self, log: _Log) -> None:
        self._log = log

    def spec(self, topic: str) -> TopicSpec:
        with self._log.changed:
            if topic not in self._log.specs:
                raise no_topic(topic)
            return self._log.specs[topic]

    def partition(self, place: Place) -> PartitionLog:
        check_place(self.spec(place.topic), place.partition)
        return self._log.partitions[place]

    def begin_offset(self, place: Place) -> int:
        with self._log.changed:
            return self.partition(place).begin_offset

    def end_offset(self, place: Place) -> int:
        with self._log.changed:
            return self.partition(place).next_offset

    def committed(self, group: str, place: Place) -> Committed | None:
        with self._log.changed:
            return self._log.offsets.get((group, place))

    def append(self, drafts: Sequence[Draft], timeout_s: float) -> list[int]:
        with self._log.changed:
            offsets = [self._log.partitions[draft.place].append(draft) for draft in drafts]
            self._log.wrote()
            return offsets

    def fetch(self, positions: Sequence[tuple[Place, int]], max_records: int, max_bytes: int) -> Fetched:
        records: list[Record] = []
        after: dict[Place, int] = {}
        served = 0
        with self._log.changed:
            for looked_at, (place, position) in enumerate(positions, 1):
                room = max_bytes - sum(record.size_bytes for record in records)
                partition = self._log.partitions[place]
                found, after[place] = partition.read(position, max_records - len(records), room, at_least_one=not records)
                records += found
                served = looked_at if found else served
                if len(records) >= max_records or after[place] < partition.next_offset:
                    break
        return Fetched(records, after, served)

    def now(self) -> float:
        return self._log.monotonic()

    def now_ms(self) -> int:
        return int(self._log.wall() * 1000)

    def wait(self, positions: Mapping[Place, int], group: tuple[str, int] | None, timeout_s: float) -> None:
        def has_news() -> bool:
            if group is not None and self.generation(group[0]) > group[1]:
                return True
            return any(self._log.partitions[place].next_offset > position for place, position in positions.items())

        with self._log.changed:
            self._log.changed.wait_for(has_news, timeout_s)

    def new_member(self) -> tuple[str, str]:
        with self._log.changed:
            return f"member-{next(self._log.member_numbers):06d}", ""

    def is_gone(self, member: Member) -> bool:
        return member.lease_until <= self.now()

    def generation(self, group: str) -> int:
        return self.group(group).generation

    def group(self, name: str) -> Group:
        with self._log.changed:
            return self._log.groups.get(name, Group())

    def change_group(
        self, name: str, change: Callable[[Group], Group], offsets: Mapping[Place, Committed] | None = None
    ) -> Group:
        with self._log.changed:
            group = self._log.groups[name] = change(self.group(name))
            self._log.offsets.update({(name, place): Committed(*at) for place, at in (offsets or {}).items()})
            self._log.wrote()
            return group

    def close(self) -> None:
        """Nothing to let go of."""
