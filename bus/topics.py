"""The topics of a federation: their names, partitions and keeping."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from refold.bus.contract import Headers, Record, TopicSpec
from refold.schemas.errors import UsageError
from refold.schemas.payload import PlaceHint

DAY_S = 86_400.0
CHUNK_TYPE = "refold.Chunk"
HINT_HEADER = "refold-hint"


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of a federation's topics."""

    federation: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.federation):
            raise UsageError(
                f"{self.federation!r} is no federation's name", hint="use 1 to 64 letters, digits, underscores and dashes"
            )

    def __getattr__(self, name: str) -> str:
        """Return the full name of a topic, dashes for underscores: ``topics.snapshot_chunks``."""
        short = name.replace("_", "-")
        if short not in KEPT:
            raise AttributeError(f"no topic called {short}")
        return f"{self.federation}.{short}"

    def specs(self, partitions: int) -> list[TopicSpec]:
        """Return every topic as it is created; those keyed by client or digest get `partitions`."""
        return [
            TopicSpec(
                f"{self.federation}.{short}",
                partitions=partitions if short in SPREAD else 1,
                compacted=short in COMPACTED,
                retention_s=retention_s,
            )
            for short, retention_s in KEPT.items()
        ]


KEPT: dict[str, float | None] = {
    "updates": None,
    "health": 3 * DAY_S,
    "checked": None,
    "commands": None,
    "accepted": None,
    "deltas": None,
    "features": None,
    "rounds": None,
    "steps": None,
    "snapshots": None,
    "snapshot-chunks": None,
    "quarantine": None,
    "alerts": 30 * DAY_S,
}
"""Topic → age after which the bus may delete; what has None is deleted by Refold alone."""

SPREAD = frozenset({"updates", "health", "deltas", "steps", "snapshot-chunks", "quarantine", "alerts"})
COMPACTED = frozenset({"snapshots", "snapshot-chunks"})


def federations_in(names: dict[str, TopicSpec]) -> list[str]:
    """Return the federations that have a log among these topics: where ACLs are in force, clients see `rounds` alone."""
    return sorted({name.removesuffix(log) for log in (".accepted", ".rounds") for name in names if name.endswith(log)})


def made_spec(name: str, partitions: int) -> TopicSpec:
    """Return how Refold makes a topic of this name, for those who may not read how it is set."""
    short = name.rpartition(".")[2]
    return TopicSpec(name, partitions, compacted=short in COMPACTED, retention_s=KEPT.get(short))


def event_headers(kind: str, *, source: str, subject: str, identity: str, time_ms: int) -> Headers:
    """Return CloudEvents binary-mode headers, so that a viewer of the topic shows something useful.

    Source: CloudEvents 1.0, Kafka protocol binding.
    """
    seconds, millis = divmod(time_ms, 1000)
    return (
        ("ce_specversion", b"1.0"),
        ("ce_id", identity.encode()),
        ("ce_type", f"refold.{kind}".encode()),
        ("ce_source", source.encode()),
        ("ce_subject", subject.encode()),
        ("ce_time", _rfc3339(seconds, millis).encode()),
        ("content-type", b"application/x-msgpack"),
    )


def chunk_headers() -> Headers:
    """Return the header that tells a chunk from an event."""
    return (("ce_type", CHUNK_TYPE.encode()),)


def is_chunk(headers: Headers) -> bool:
    """Whether a record says that it is a chunk; untrue only costs its writer, since digests decide."""
    return ("ce_type", CHUNK_TYPE.encode()) in headers


def hint_of(record: Record) -> PlaceHint | None:
    """Return where a manifest's header says that its chunks lie; None if it says nothing sensible."""
    text = record.header(HINT_HEADER)
    parts = (text or b"").split(b",")
    if len(parts) != 2 or not all(part.isdigit() and len(part) < 19 for part in parts):
        return None
    first, last = int(parts[0]), int(parts[1])
    return PlaceHint(record.partition, first, last) if first <= last < record.offset else None


def hint_header(first_offset: int, last_offset: int) -> tuple[str, bytes]:
    """Return the header that says where a manifest's chunks lie (both inclusive)."""
    return (HINT_HEADER, f"{first_offset},{last_offset}".encode())


def _rfc3339(seconds: int, millis: int) -> str:
    """Format without a calendar library's range errors: client clocks may say anything."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{millis:03d}Z"
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00.000Z"
