"""What comes from outside: garbage, damaged and repeated records, forgeries, and an enrolled client that lies."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from refold.bus._store import Draft
from refold.bus.contract import Headers, Place, Record, partition_for
from refold.bus.topics import chunk_headers, event_headers, hint_header
from refold.schemas.canonical import decode, encode
from refold.schemas.errors import InvalidRecord
from refold.schemas.keys import UPDATE_TAG, SigningKey
from refold.schemas.payload import describe
from refold.schemas.updates import EVALUATE, ClientUpdate, Heartbeat, UpdateBody, update_digest

if TYPE_CHECKING:
    from tests.simulation.world import World

LIAR = "mal"
CLAIMS = (
    {"base_round": 90},
    {"base_digest": bytes(32)},
    {"session_index": 1 << 40},
    {"session_index": 0},
    {"num_examples": 2**31 - 1},
    {"num_examples": 0},
    {"schema_digest": bytes(32)},
    {"federation": "other"},
    {"codec": "topk"},
    {"raw_bytes": 1},
    {"kind": EVALUATE, "payload": None},
    {"kind": "nonsense"},
    {"exponents": (99, 99, 99)},
    {"payload": describe((b"never sent", b"nor this"))},
    {"sequence": 1 << 50},
    {},
)
"""Fields of an update that an enrolled client may fill in as it likes."""


@dataclass
class Adversary:
    """Writes to the bus what nobody should."""

    world: World
    chance: random.Random

    def garbage(self, pick: int) -> None:
        """Write bytes that are no update."""
        length = self.chance.choice((0, 1, 30, 300))
        headers: Headers = () if pick % 2 else self._headers(b"")
        self._write(pick, b"nobody", self.chance.randbytes(length), headers)

    def truncated(self, pick: int) -> None:
        """Write the beginning of a record that was there."""
        record = self._earlier(pick)
        if record is not None and record.value:
            self._write(record.partition, record.key, record.value[: pick % len(record.value)], record.headers)

    def flipped(self, pick: int) -> None:
        """Write a record that was there, with one bit turned."""
        record = self._earlier(pick)
        if record is not None and record.value:
            value = bytearray(record.value)
            value[pick % len(value)] ^= 1 << self.chance.randrange(8)
            self._write(record.partition, record.key, bytes(value), record.headers)

    def replay(self, pick: int) -> None:
        """Write a record again, there or in another partition, once or many times."""
        record = self._earlier(pick)
        for _ in range(self.chance.choice((1, 1, 2, 5))) if record is not None else ():
            partition = record.partition if pick % 3 else pick
            self._write(partition, record.key, record.value, record.headers)

    def forge(self, pick: int) -> None:
        """Write an update in the name of an honest client, signed by another, or by nobody."""
        body = self._body(pick)
        if body is None:
            return
        name = self.chance.choice(self.world.scenario.clients)
        key = self.world.kit.key(LIAR)
        if pick % 2:
            body = replace(body, key_id=key.key_id)
        self._send(replace(body, client=name, sequence=body.sequence + 1), key)

    def equivocate(self, pick: int) -> None:
        """Write two updates of one session and sequence."""
        body = self._body(pick)
        if body is None:
            return
        body = self._own(body)
        for note in ("one", "two"):
            self._send(replace(body, note=note), self.world.kit.key(LIAR))

    def claim(self, pick: int) -> None:
        """Write a signed update of an enrolled client that says something odd."""
        body = self._body(pick)
        if body is not None:
            self._send(replace(self._own(body), **CLAIMS[pick % len(CLAIMS)]), self.world.kit.key(LIAR))

    def swap(self, pick: int) -> None:
        """Write a client's manifest again under another sequence, with other bytes of the same lengths in its chunks' place."""
        body = self._body(pick)
        if body is None or body.payload is None or body.payload.inline is not None:
            return
        self._send(self._own(body), self.world.kit.key(LIAR), swapped=True)

    def orphan_chunks(self, pick: int) -> None:
        """Write chunks that no manifest will ever name."""
        for _ in range(3):
            self._write(pick, b"nobody", self.chance.randbytes(40), chunk_headers())

    def lie_of_life(self, pick: int) -> None:
        """Write a heartbeat in the name of a client that may be dead."""
        name = self.world.scenario.clients[pick % len(self.world.scenario.clients)]
        beat = Heartbeat("sim", name, 0, bytes(8), pick, 1000, "training", 0, bytes(32), (), 0)
        self.world.write(Place("sim.health", 0), name.encode(), encode(beat), ())

    def noise_in_logs(self, pick: int) -> None:
        """Write into the logs what extends nothing: garbage, or a commit that was there already."""
        topic = ("sim.accepted", "sim.rounds", "sim.checked", "sim.commands", "sim.snapshots")[pick % 5]
        records = self.world.records(topic)
        value = self.chance.choice(records).value if records and pick % 3 else self.chance.randbytes(50)
        key = b"77" if topic == "sim.snapshots" else None
        if topic == "sim.checked":
            value = self.chance.randbytes(50)
        self.world.write(Place(topic, 0), key, value, ())

    def _own(self, body: UpdateBody) -> UpdateBody:
        key = self.world.kit.key(LIAR)
        number = self.chance.randrange(1000)
        return replace(
            body, client=LIAR, key_id=key.key_id, session_nonce=bytes(6) + number.to_bytes(2, "big"), sequence=number
        )

    def _earlier(self, pick: int) -> Record | None:
        records = self.world.updates_seen
        return records[pick % len(records)] if records else None

    def _body(self, pick: int) -> UpdateBody | None:
        """Return what some client said lately."""
        for record in reversed(self.world.updates_seen[-12:]):
            try:
                body = decode(record.value or b"", ClientUpdate).body
            except InvalidRecord:
                continue
            if body.payload is not None and body.client != LIAR:
                return body
        return None

    def _send(self, body: UpdateBody, key: SigningKey, *, swapped: bool = False) -> None:
        try:
            digest = update_digest(body)
            manifest = encode(ClientUpdate(body, key.sign(UPDATE_TAG, digest)))
        except (InvalidRecord, TypeError, ValueError):
            return  # Not even a record can say it.
        partition = partition_for(body.client.encode(), self.world.scenario.partitions)
        headers = self._headers(digest)
        if swapped and body.payload is not None:
            headers += self._swapped_chunks(body, partition)
        self._write(partition, body.client.encode(), manifest, headers)

    def _swapped_chunks(self, body: UpdateBody, partition: int) -> Headers:
        """Write chunks of the lengths that the manifest names, each a sound frame but another's; return where."""
        assert body.payload is not None
        place = Place("sim.updates", partition)
        first = self.world.bus.end_offset(place)
        chunks: list[Any] = [r for r in self.world.chunks_seen if len(r.value or b"") in body.payload.lengths]
        for digest, length in zip(body.payload.chunks, body.payload.lengths, strict=True):
            others = [r.value for r in chunks if len(r.value) == length and self.world.digest_of(r) != digest]
            self._write(partition, body.client.encode(), others[-1] if others else bytes(length), chunk_headers())
        return (hint_header(first, self.world.bus.end_offset(place) - 1),)

    def _headers(self, digest: bytes) -> Headers:
        return event_headers("ClientUpdate", source="sim.updates", subject="-", identity=digest.hex(), time_ms=0)

    def _write(self, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        place = Place("sim.updates", partition % self.world.scenario.partitions)
        self.world.append([Draft(place, 0, key, value, headers)])
