"""Sections 3 and 12 to 15 of docs/WIRE.md: sessions, updates, the outbox, heartbeats."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foreign.arrays import FLOATS, PLANES, SPARSE, Array, cell, encoded, grid, is_float, largest, raw_bytes, value_of
from foreign.log import Follower, draw
from foreign.records import (
    Value,
    decode,
    key_id,
    partition_of,
    payload_of,
    schema_digest,
    signed_beat,
    signed_update,
    update_digest,
)


class ForeignClient:
    """One life of a client. What is in its outbox is sent again at the start, before the session is opened."""

    def __init__(self, bus: Any, federation: str, name: str, key: Ed25519PrivateKey, outbox: Path) -> None:
        self.name = name
        self.log = Follower(bus, federation)
        self._bus = bus
        self._federation = federation
        self._key = key
        self.key_id = key_id(key.public_key().public_bytes_raw())
        self.places: dict[bytes, tuple[int, int]] = {}
        self._outbox = outbox
        self._producer = bus.producer()
        self._session = (0, bytes(8))
        self._sequence = self._beats = 0

    def open(self) -> None:
        """Begin: the outbox, then a session above every one that is known."""
        self.log.follow()
        for manifest in self.waiting():
            body = decode(manifest)[1]["body"]
            self._session = max(self._session, (body["session_index"], body["session_nonce"]))
            self.send(update_digest(body))
        self.log.follow()
        index = self.log.chain.next_index
        nonce = os.urandom(8)
        if index == self._session[0]:
            nonce = (int.from_bytes(self._session[1], "big") + 1 + nonce[0]).to_bytes(8, "big")
        self._session, self._sequence = (index, nonce), 0

    # What it is asked.

    @property
    def is_selected(self) -> bool:
        return draw(self.name, self.log.plan) < self.log.plan["select_below"]

    def model(self) -> dict[str, Array] | None:
        """Return the newest round's parameters by name, flat."""
        held = self.log.parameters(self.log.newest)
        if held is None:
            return None
        return {t["name"]: value_of(array, t) for t, array in zip(self.log.schema["tensors"], held, strict=True)}

    # What it answers.

    def train(self, local: dict[str, Array], codec: str, num_examples: int) -> bytes:
        """Keep and send a training update; return its digest."""
        arrays, exponents = self._delta(local, codec)
        form = {"float32": FLOATS, "topk": SPARSE}.get(codec, PLANES)
        chunks = encoded(arrays, self.log.schema, form)
        body = self._body("train", codec=codec, exponents=exponents, num_examples=num_examples, payload=payload_of(chunks))
        return self.send(self.keep(body | {"raw_bytes": raw_bytes(self.log.schema)}, chunks))

    def evaluate(self, metrics: dict[str, float], num_examples: int) -> bytes:
        body = self._body("evaluate", num_examples=num_examples, metrics=sorted([name, v] for name, v in metrics.items()))
        return self.send(self.keep(body, []))

    def decline(self, why: str) -> bytes:
        return self.send(self.keep(self._body("decline", note=why), []))

    def _delta(self, local: dict[str, Array], codec: str) -> tuple[list[Array], list[int]]:
        arrays, exponents = [], []
        plan, held = self.log.plan, self.log.parameters(self.log.newest)
        if codec == "topk":
            local = largest(local, held, self.log.schema, plan["density_ppm"])
        for tensor, base, planned in zip(self.log.schema["tensors"], held, plan["exponents"], strict=True):
            mine, k = local[tensor["name"]], 0
            if not is_float(tensor):
                arrays.append(mine.astype("i8") - base if tensor["rule"] == "sum" else mine.astype("i8"))
            elif codec == "float32":
                arrays.append((mine.astype("f8") - value_of(base, tensor)).astype("f4"))
            else:
                if codec != "exact":
                    k = cell(mine, base, tensor, planned, plan["sigma_divisor"], entries=codec == "topk")
                arrays.append(grid(mine, base, tensor, k))
            exponents.append(k)
        return arrays, exponents

    def _body(self, kind: str, **said: Any) -> Value:
        """Return the body of an update of the open round."""
        common = {
            "federation": self._federation,
            "client": self.name,
            "key_id": self.key_id,
            "session_index": self._session[0],
            "session_nonce": self._session[1],
            "sequence": self._sequence,
            "kind": kind,
            "base_round": self.log.newest,
            "base_digest": self.log.digest(self.log.newest),
            "schema_digest": schema_digest(self.log.schema),
            "codec": self.log.plan["codec"],
        }
        rest = {"exponents": [], "num_examples": 0, "metrics": [], "payload": None, "raw_bytes": 0, "note": ""}
        return common | rest | {"client_time_ms": now_ms(), "sealing": None} | said

    # The outbox.

    def keep(self, body: Value, chunks: Sequence[bytes]) -> bytes:
        """Sign an update and make it durable; return its digest."""
        inline = body["payload"] is not None and body["payload"]["inline"] is not None
        digest = update_digest(body)
        path = self._outbox / digest.hex()
        with path.with_suffix(".part").open("wb") as file:
            file.write(msgpack.packb([signed_update(body, self._key), [] if inline else list(chunks)]))
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".part").replace(path)
        self._sequence += 1
        return digest

    def waiting(self) -> list[bytes]:
        """Return the manifests that have no receipt yet; forget the others."""
        for digest in self.log.receipts:
            (self._outbox / digest.hex()).unlink(missing_ok=True)
        files = [path for path in self._outbox.iterdir() if not path.suffix]
        return [msgpack.unpackb(path.read_bytes())[0] for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]

    def send(self, digest: bytes) -> bytes:
        """Send what the outbox holds under a digest: chunks, then the manifest."""
        manifest, chunks = msgpack.unpackb((self._outbox / digest.hex()).read_bytes())
        topic = f"{self._federation}.updates"
        headers = cloud_event("ClientUpdate", digest.hex(), topic, self.name)
        offsets = [self._put(topic, chunk, (("ce_type", b"refold.Chunk"),)) for chunk in chunks]
        if offsets:
            headers += (("refold-hint", f"{min(offsets)},{max(offsets)}".encode()),)
        self.places[digest] = (self._partition(topic), self._put(topic, manifest, headers))
        return digest

    def beat(self, activity: str = "training") -> None:
        """Say that this client lives."""
        held = self.log.newest
        value = {
            "federation": self._federation,
            "client": self.name,
            "session_index": self._session[0],
            "session_nonce": self._session[1],
            "beat": self._beats,
            "interval_ms": self.log.plan["heartbeat_ms"],
            "activity": activity,
            "round": held,
            "parameters_digest": self.log.digest(held),
            "properties": [["language", "foreign"]],
            "client_time_ms": now_ms(),
            "key_id": self.key_id,
            "condition": None,
            "training": None,
        }
        topic = f"{self._federation}.health"
        self._put(topic, signed_beat(value, self._key), cloud_event("Heartbeat", str(self._beats), topic, self.name))
        self._beats += 1

    def _put(self, topic: str, value: bytes, headers: tuple[tuple[str, bytes], ...]) -> int:
        """Write a record to this client's partition and wait until it is acknowledged; return its offset."""
        partition = self._partition(topic)
        return self._producer.send(topic, value, key=self.name.encode(), partition=partition, headers=headers).result()

    def _partition(self, topic: str) -> int:
        return partition_of(self.name.encode(), self._bus.topics()[topic].partitions)


def cloud_event(kind: str, identity: str, topic: str, subject: str) -> tuple[tuple[str, bytes], ...]:
    """Return the headers of section 3."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    said = {
        "ce_specversion": "1.0",
        "ce_id": identity,
        "ce_type": f"refold.{kind}",
        "ce_source": topic,
        "ce_subject": subject,
        "ce_time": stamp,
        "content-type": "application/x-msgpack",
    }
    return tuple((name, value.encode()) for name, value in said.items())


def now_ms() -> int:
    return time.time_ns() // 1_000_000
