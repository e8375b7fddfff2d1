"""Reading topics whole, and following a chain of commits by its hashes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import blake3

from refold.bus.contract import Bus, Place, Record
from refold.schemas.canonical import decode
from refold.schemas.commits import Commit, EventList
from refold.schemas.errors import InvalidRecord

Source = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that lay, or lies, in `updates`."""

    partition: int
    offset: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """A commit on the chain, its hash and its events."""

    commit: Commit
    hash: bytes
    events: tuple[Any, ...]


def read_topic(bus: Bus, topic: str) -> list[Record]:
    """Return all records that a topic holds now."""
    places = [Place(topic, partition) for partition in range(bus.topics()[topic].partitions)]
    return [record for place in places for record in read_place(bus, place)]


def read_place(bus: Bus, place: Place) -> list[Record]:
    """Return all records that a partition holds now."""
    records: list[Record] = []
    end = bus.end_offset(place)
    with bus.consumer() as consumer:
        consumer.assign([place])
        while consumer.position(place) < end:
            records += consumer.poll(1.0)
    return records


def follow(topic: str, records: Iterable[Record], *, check_previous: bool = True) -> tuple[list[Step], int]:
    """Return the commits that form the chain, and how many do not extend it.

    Parameters
    ----------
    check_previous
        False plants a bug: every commit counts, whatever it follows.
    """
    head = blake3.blake3(topic.encode(), derive_key_context="refold 2026 log root").digest()
    parts: dict[bytes, bytes] = {}
    steps: list[Step] = []
    stale = 0
    for record in records:
        data = record.value or b""
        try:
            found = decode(data, Commit, EventList)
        except InvalidRecord:
            stale += 1
            continue
        if isinstance(found, EventList):
            parts[blake3.blake3(data).digest()] = data
            continue
        if check_previous and found.previous != head:
            stale += 1
            continue
        head = blake3.blake3(data, derive_key_context="refold 2026 commit").digest()
        steps.append(Step(found, head, _events(found, parts)))
    return steps, stale


def _events(commit: Commit, parts: dict[bytes, bytes]) -> tuple[Any, ...]:
    packed = list(commit.events)
    if commit.chunks is not None:
        packed = [event for digest in commit.chunks.chunks for event in decode(parts[digest], EventList).events]
    assert len(packed) == commit.count
    return tuple(decode(event) for event in packed)


def events_of(steps: list[Step]) -> list[Any]:
    """Return all events of a chain, in order."""
    return [event for step in steps for event in step.events]
