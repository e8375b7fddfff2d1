"""Sections 2, 6, 7, 10 and 11 of docs/WIRE.md: the chain of `rounds`, what it tells, and the model that follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from foreign.arrays import Array, add_step, coarsen, integers, parameters_digest, raw
from foreign.checkpoints import Checkpoints
from foreign.records import RefusedError, Value, decode, derived, log_root, plain
from refold.bus import Place

KEPT_EVENT_LISTS = 256


class Chain:
    """Takes the records of a log that extend it."""

    def __init__(self, topic: str) -> None:
        self.head = log_root(topic)
        self.next_index = 0
        self.skipped = 0
        self.commit: Value = {}
        self._lists: dict[bytes, bytes] = {}

    def offer(self, value: bytes, kind: bytes = b"") -> list[tuple[str, Value]] | None:
        """Return a record's events if it extends the chain; `kind` is its header ``ce_type``."""
        if kind == b"refold.EventList":
            self._lists[plain(value)] = value
            if len(self._lists) > KEPT_EVENT_LISTS:
                del self._lists[next(iter(self._lists))]
            return None
        try:
            name, commit = decode(value)
        except RefusedError:
            name, commit = "", {}
        if name != "Commit" or not self._extends(commit):
            self.skipped += 1
            return None
        self.head = derived("commit", value)
        self.next_index += commit["count"]
        self.commit = commit
        return [decode(event) for event in self._events(commit)]

    def _extends(self, commit: Value) -> bool:
        inline = commit["chunks"] is None
        whole = len(commit["events"]) == commit["count"] if inline else not commit["events"]
        return commit["previous"] == self.head and commit["first_index"] == self.next_index and whole

    def _events(self, commit: Value) -> list[bytes]:
        if commit["chunks"] is None:
            return commit["events"]
        return [event for digest in commit["chunks"]["chunks"] for event in decode(self._lists[digest])[1]["events"]]


class Payloads:
    """Reads payloads of one topic."""

    def __init__(self, bus: Any, topic: str) -> None:
        self._bus = bus
        self._topic = topic

    def read(self, payload: Value) -> Iterator[bytes]:
        """Yield the chunks in order, found by their digests."""
        if payload["inline"] is not None:
            yield payload["inline"]
            return
        hint = payload["hint"]
        found = {} if hint is None else self._values(hint["partition"], hint["first_offset"], hint["last_offset"] + 1)
        for digest in payload["chunks"]:
            yield found[digest] if digest in found else self._searched(digest)

    def _searched(self, digest: bytes) -> bytes:
        for partition in range(self._bus.topics()[self._topic].partitions):
            found = self._values(partition, 0, self._bus.end_offset(Place(self._topic, partition)))
            if digest in found:
                return found[digest]
        raise RefusedError("missing-chunk")

    def _values(self, partition: int, first: int, end: int) -> dict[bytes, bytes]:
        place = Place(self._topic, partition)
        records = records_between(self._bus, place, first, min(end, self._bus.end_offset(place)))
        return {plain(record.value): record.value for record in records if record.value is not None}


def records_between(bus: Any, place: Place, first: int, end: int) -> Iterator[Any]:
    """Yield the records of a range of offsets."""
    if first >= end:
        return
    with bus.consumer() as consumer:
        consumer.assign([place])
        consumer.seek(place, first)
        while consumer.position(place) < end:
            yield from (record for record in consumer.poll(1.0) if record.offset < end)


class Follower:
    """Follows `rounds`, and brings parameters to the newest round."""

    def __init__(self, bus: Any, federation: str) -> None:
        self._bus = bus
        self._federation = federation
        self._place = Place(f"{federation}.rounds", 0)
        self._consumer = bus.consumer()
        self._consumer.assign([self._place])
        self.chain = Chain(self._place.topic)
        self.opened: Value | None = None
        self.rounds: dict[int, Value] = {}
        self.regrids: dict[int, list[int]] = {}
        self.receipts: dict[bytes, str] = {}
        self.ended = False
        self.notices: list[tuple[str, str, bytes | None]] = []
        self.checkpoints: Checkpoints | None = None
        self._held: tuple[int, list[Array]] | None = None

    def has_passed(self, partition: int, offset: int) -> bool:
        """Whether a manifest there gets no receipt any more, where it has none by now."""
        parts = self.chain.commit["position"]["updates"] if self.chain.commit else []
        return any(part["partition"] == partition and offset < part["next_offset"] for part in parts)

    def follow(self, timeout_s: float = 0.0) -> None:
        """Take in what is new, and all that is there."""
        self._take(self._consumer.poll(timeout_s))
        while self._consumer.position(self._place) < self._bus.end_offset(self._place):
            self._take(self._consumer.poll(1.0))

    def _take(self, records: list[Any]) -> None:
        for record in records:
            kind = next((value for name, value in record.headers if name == "ce_type"), b"")
            for name, event in self.chain.offer(record.value or b"", kind) or ():
                self._fold(name, event)

    def _fold(self, name: str, event: Value) -> None:
        if name == "FederationOpened":
            self.opened = event
            self.checkpoints = Checkpoints(self._federation, event["log_keys"]) if event["log_keys"] else None
        elif name == "RoundCommitted":
            self.rounds[event["round"]] = event
        elif name == "Receipts":
            self.receipts |= {receipt["digest"]: receipt["outcome"] for receipt in event["receipts"]}
        elif name == "ClientNotices":
            self.notices += [(notice["client"], notice["what"], notice["key_id"]) for notice in event["notices"]]
        elif name == "FederationEnded":
            self.ended = True
        elif name == "RolledBack":
            pass  # The round that it opens says all that a client needs.
        elif name == "Overflowed":
            pass  # The server answers it.
        elif name == "Regridded":
            self.regrids[event["round"]] = event["exponents"]
        elif name == "Checkpointed" and self.checkpoints:
            self.checkpoints.take(self.chain.commit, event)
        else:
            raise RefusedError("unknown-type")

    @property
    def schema(self) -> Value:
        """The schema on the newest round's lattice."""
        return self.schema_of(self.newest)

    def schema_of(self, round_: int) -> Value:
        """Return the schema on the lattice of a round."""
        begun = next((self.regrids[r] for r in self._past(round_) if r in self.regrids), None)
        if begun is None:
            return self.opened["schema"]
        pairs = zip(self.opened["schema"]["tensors"], begun, strict=True)
        return self.opened["schema"] | {"tensors": [tensor | {"exponent": exponent} for tensor, exponent in pairs]}

    @property
    def newest(self) -> int:
        return max(self.rounds, default=0)

    @property
    def plan(self) -> Value:
        return self.rounds[self.newest]["next_plan"] if self.rounds else self.opened["first_plan"]

    def digest(self, round_: int, which: str = "parameters_digest") -> bytes:
        return (self.rounds[round_] if round_ else self.opened)[which]

    def parameters(self, round_: int) -> list[Array] | None:
        """Return a round's parameters, checked; None while there is no snapshot yet."""
        past = self._past(round_)
        if self._held is None or self._held[0] not in past:
            self._held = self._from_snapshot(past)
        if self._held is None:
            return None
        at, arrays = self._held
        steps = Payloads(self._bus, f"{self._federation}.steps")
        for later in reversed(past[: past.index(at)]):
            made = self.rounds[later]
            if made["outcome"] == "applied":
                add_step(arrays, integers(steps.read(made["step"]), self.schema), made["step_exponents"])
            elif made["outcome"] == "regrid":
                coarsen(arrays, self.schema_of(made["parent"]), self.schema_of(later))
        if parameters_digest(self.schema_of(round_), arrays) != self.digest(round_):
            raise RefusedError("digest")
        self._held = (round_, arrays)
        return arrays

    def _past(self, round_: int) -> list[int]:
        """Return a round and all that it stands on, newest first."""
        past = [round_]
        while past[-1]:
            past.append(self.rounds[past[-1]]["parent"])
        return past

    def _from_snapshot(self, past: list[int]) -> tuple[int, list[Array]] | None:
        place = Place(f"{self._federation}.snapshots", 0)
        newest = {r.key: r.value for r in records_between(self._bus, place, 0, self._bus.end_offset(place))}
        taken = [decode(value)[1] for key, value in newest.items() if value is not None and key.isdigit()]
        usable = [t for t in taken if t["round"] in past and t["state_digest"] == self.digest(t["round"], "state_digest")]
        if not usable:
            return None
        best = max(usable, key=lambda t: t["round"])
        chunks = Payloads(self._bus, f"{self._federation}.snapshot-chunks").read(best["parameters"])
        return best["round"], raw(chunks, self.schema)


def draw(client: str, plan: Value) -> int:
    """Return a client's lot in a round."""
    key = plan["seed"] + plan["round"].to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(client.encode(), key=key, digest_size=8).digest(), "little") >> 1
