"""What the producer, the consumer and the group membership need of a driver's storage.

The memory and SQLite drivers share one producer, one consumer and one membership (`_producer`, `_consumer`, `_membership`), so
that they behave alike; a driver brings a `Store`, which belongs to one thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from refold.bus._groups import Group, Member
from refold.bus.contract import MAX_RECORD_BYTES, Committed, Headers, Place, Record, TopicSpec, partition_for
from refold.schemas.errors import BusError, ConfigurationError, NotFoundError, UsageError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class Draft:
    """A record that has no offset yet."""

    place: Place
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size_bytes(self) -> int:
        """Key, value and header bytes."""
        size = len(self.key or b"") + len(self.value or b"")
        return size + sum(len(name.encode()) + len(value) for name, value in self.headers)


class Fetched(NamedTuple):
    """What one fetch found.

    Parameters
    ----------
    records
        In turn order of the places, by offset within each.
    positions
        Where each place that was looked at goes on.
    served
        How many places had their turn: all up to the last that gave a record.
    """

    records: list[Record]
    positions: dict[Place, int]
    served: int


class OutcomeUnknown(BusError):
    """The storage failed in the middle of a commit, so nobody knows whether the batch is there."""


class Store(Protocol):
    """A driver's storage, as seen by one producer or consumer."""

    def spec(self, topic: str) -> TopicSpec:
        """Return a topic's settings; NotFoundError if there is none."""
        ...

    def begin_offset(self, place: Place) -> int: ...
    def end_offset(self, place: Place) -> int: ...
    def committed(self, group: str, place: Place) -> Committed | None: ...

    def append(self, drafts: Sequence[Draft], timeout_s: float) -> list[int]:
        """Append all drafts or none, durably, and return their offsets.

        Raises
        ------
        OutcomeUnknown
            The storage failed in the middle of the commit.
        """
        ...

    def fetch(self, positions: Sequence[tuple[Place, int]], max_records: int, max_bytes: int) -> Fetched:
        """Read from the places in this order, until one of the bounds is reached; the first record ignores `max_bytes`."""
        ...

    def now(self) -> float:
        """Seconds on the clock that leases are measured by."""
        ...

    def now_ms(self) -> int:
        """Wall clock in milliseconds."""
        ...

    def wait(self, positions: Mapping[Place, int], group: tuple[str, int] | None, timeout_s: float) -> None:
        """Return when there is news, or after `timeout_s`; may return early.

        News are a record at one of these positions or later, and a group of this name with a later generation.
        """
        ...

    def new_member(self) -> tuple[str, str]:
        """Return a member name that nobody has, and the words for this process."""
        ...

    def is_gone(self, member: Member) -> bool:
        """Whether the member's lease or process has ended."""
        ...

    def generation(self, group: str) -> int:
        """The group's generation, cheaply."""
        ...

    def group(self, name: str) -> Group:
        """The group's membership."""
        ...

    def change_group(
        self, name: str, change: Callable[[Group], Group], offsets: Mapping[Place, Committed] | None = None
    ) -> Group:
        """Apply `change` and store `offsets` in one transaction; an error that `change` raises leaves all as it was."""
        ...

    def close(self) -> None: ...


def check_specs(specs: Iterable[TopicSpec], present: Mapping[str, TopicSpec]) -> list[TopicSpec]:
    """Return the topics that are still to be created; ConfigurationError if one cannot be, or is there with other settings."""
    wanted: dict[str, TopicSpec] = {}
    for spec in specs:
        _check_spec(spec)
        have = present.get(spec.name) or wanted.setdefault(spec.name, spec)
        if have != spec:
            hint = f"it has partitions={have.partitions}, compacted={have.compacted}, retention_s={have.retention_s}; use these"
            raise ConfigurationError("A topic exists with other settings", topic=spec.name, hint=hint)
    return list(wanted.values())


def _check_spec(spec: TopicSpec) -> None:
    if not _NAME.fullmatch(spec.name) or spec.name in (".", ".."):
        hint = "use letters, digits, '.', '_' and '-', at most 249 characters"
        raise ConfigurationError("A topic cannot have this name", topic=repr(spec.name), hint=hint)
    if spec.partitions < 1:
        raise ConfigurationError("A topic needs at least one partition", topic=spec.name, partitions=spec.partitions)
    if spec.retention_s is not None and not spec.retention_s > 0:
        raise ConfigurationError("retention must be above 0 seconds, or None", topic=spec.name, retention_s=spec.retention_s)


def check_place(spec: TopicSpec, partition: int) -> Place:
    """Return the place, or raise UsageError if the topic has no such partition."""
    if not 0 <= partition < spec.partitions:
        raise UsageError("no such partition", topic=spec.name, partition=partition, partitions=spec.partitions)
    return Place(spec.name, partition)


def check_deletable(spec: TopicSpec) -> None:
    """Raise UsageError for a topic that is only compacted: Kafka refuses to delete its records by offset (policy violation)."""
    if spec.compacted and spec.retention_s is None:
        raise UsageError("records of a compacted topic cannot be deleted by offset", topic=spec.name, hint="send tombstones")


def no_topic(name: str) -> NotFoundError:
    """Return the error for a topic that is not there."""
    return NotFoundError("no such topic", topic=name, hint="create it with create_topics, or check the federation's name")


def make_draft(
    spec: TopicSpec, key: bytes | None, value: bytes | None, partition: int | None, headers: Headers, timestamp_ms: int
) -> Draft:
    """Check a record and choose its partition."""
    chosen = partition_for(key, spec.partitions) if partition is None else partition
    draft = Draft(check_place(spec, chosen), timestamp_ms, key, value, tuple(headers))
    if draft.size_bytes > MAX_RECORD_BYTES:
        hint = f"the bound is {MAX_RECORD_BYTES} bytes; cut larger payloads into chunks"
        raise UsageError("the record is too large", topic=spec.name, size_bytes=draft.size_bytes, hint=hint)
    if spec.compacted and key is None:
        raise UsageError("A compacted topic takes no record without a key", topic=spec.name)
    return draft
