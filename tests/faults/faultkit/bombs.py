"""What a client may send to hurt a server: rows 30 to 34, each sent the way of a real update, in a process that is measured.

``python -m faultkit.bombs ROW BUS FOLDER`` sends the row's bombs one after the other to a federation on ``memory`` or
``sqlite`` and prints for each what the log says of it and by how much the process grew.
"""

from __future__ import annotations

import json
import pickle  # noqa: TID251 — what is shown is that nobody loads one
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import refold
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.bus.topics import chunk_headers
from refold.federation import Federation
from refold.schemas.codec import encode_floats, pack_frame
from refold.schemas.events import Unattributed, UpdateAccepted, UpdateRejected
from refold.schemas.keys import SigningKey
from refold.schemas.layout import Layout
from refold.schemas.payload import Payload, chunk_digest, payload_root
from refold.testing import SteppedServer, craft_update, send_update

CLIENT = "eve"
MODEL = {"w": np.zeros((300, 300), "f4"), "n": np.array(0, "i8")}
NOBODY, ACCEPTED = "nobody", "accepted"
GIB = 1 << 30

Send = Callable[["Attacker"], None]


@dataclass
class Attacker:
    """An enrolled client that follows no rule."""

    federation: Federation
    key: SigningKey
    folder: Path
    sequence: int = 0

    def raw(self, value: bytes | None, key: bytes | None = b"eve", *, is_chunk: bool = False) -> None:
        """Write a record as it is."""
        with self.federation.bus.producer() as producer:
            producer.send(self.federation.topics.updates, value, key=key, headers=chunk_headers() if is_chunk else ())

    def update(self, **said: Any) -> None:
        """Write a signed update."""
        parcel = self.crafted(**said)
        send_update(self.federation, parcel, CLIENT)

    def crafted(self, **said: Any) -> Any:
        """Return a signed update that is the next of its session."""
        self.sequence += 1
        return craft_update(self.federation, CLIENT, self.key, sequence=self.sequence, session=(1, bytes(8)), **said)

    def frame(self, frame: bytes) -> None:
        """Write a signed update whose first block is this frame."""
        table = b"\x01" + len(frame).to_bytes(4, "little") + b"\x00"
        head = bytes((1, 1, 0, 0)) + bytes(4) + (2).to_bytes(4, "little") + table
        self.update(chunks=(head + bytes(-len(head) % 8) + frame,))

    def floats(self, value: float, **said: Any) -> None:
        """Write a signed update of plain floats, all of this value."""
        arrays = [np.full(90_000, value, np.float32), np.zeros(1, np.int64)]
        self.update(chunks=tuple(encode_floats(arrays, Layout.of(self.federation.genesis.schema))), codec="float32", **said)


BLOCK_BYTES = 90_000
"""What the decoder expects of a plane of the model's only block of floats."""


def lying(frame: bytes, named: int) -> bytes:
    """Return a frame that names another content size, in eight bytes (RFC 8878, 3.1.1.1)."""
    flag, single = frame[4] >> 6, frame[4] >> 5 & 1
    behind = 5 + (0 if single else 1) + {0: 1 if single else 0, 1: 2, 2: 4, 3: 8}[flag]
    return frame[:4] + bytes((frame[4] & 0x1F | 0xE0,)) + named.to_bytes(8, "little") + frame[behind:]


def frame_of(size: int, **said: Any) -> bytes:
    """Return a frame of zeros, however many, made piece by piece."""
    stream = zstandard.ZstdCompressor(**{"level": 1, "write_checksum": True, **said}).compressobj(size=size)
    pieces = [stream.compress(bytes(1 << 20)) for _ in range(size >> 20)] + [stream.compress(bytes(size & (1 << 20) - 1))]
    return b"".join((*pieces, stream.flush()))


def huge_window(content: int) -> bytes:
    """Return a frame's head that asks for a window of 2 GiB, then an empty last block and no more."""
    descriptor = 2 << 6 | 1 << 2  # content size in four bytes, a checksum, a window of its own
    return b"\x28\xb5\x2f\xfd" + bytes((descriptor, 21 << 3)) + content.to_bytes(4, "little") + b"\x01\x00\x00" + bytes(4)


def _form() -> Iterator[tuple[str, str, Send]]:
    sound = lambda a: a.crafted().manifest  # noqa: E731
    yield "empty", "form", lambda a: a.raw(b"")
    yield "no value", "form", lambda a: a.raw(None)
    yield "truncated", "form", lambda a: a.raw(sound(a)[:-1])
    yield "garbage", "form", lambda a: a.raw(bytes(range(256)) * 1000)
    yield "a megabyte", "too-large", lambda a: a.raw(bytes(1_000_000))
    yield "unknown type", "unknown-type", lambda a: a.raw(b"\x93\xcd\x7f\xff\x01\x00")
    yield "unknown version", "unknown-version", lambda a: a.raw(sound(a)[:2] + b"\x7f" + sound(a)[3:])
    yield "not canonical", "not-canonical", lambda a: a.raw(b"\xdc\x00\x04" + sound(a)[1:])
    yield "duplicate keys", "form", lambda a: a.raw(b"\x82\x01\x01\x01\x02")
    yield "deep nesting", "form", lambda a: a.raw(b"\x91" * 399_000)
    yield (
        "ten million empty maps, says the head",
        "form",
        lambda a: a.raw(_maps()),
    )
    yield "as many empty maps as an array may have", "form", lambda a: a.raw(b"\xdc\xff\xff" + b"\x80" * 0xFFFF)
    yield "empty arrays in arrays", "form", lambda a: a.raw((b"\xdc\xff\xff" + b"\x90" * 0xFFFF) * 6)
    yield "the widest tree", "form", lambda a: a.raw(b"\xdc\x03\xde" + (b"\x91" * 400 + b"\xc0") * 990)
    yield "bytes that say they are 4 GiB", "form", lambda a: a.raw(b"\x92\xc6\xff\xff\xff\xff")
    yield "a text of half a surrogate", "form", lambda a: a.raw(b"\x94\x15\x01\xa3\xed\xa0\x80\xc0")
    yield "an extension", "form", lambda a: a.raw(b"\xc7\x05\x01abcde")


def _maps() -> bytes:
    return b"\xdd" + struct.pack(">I", 10_000_000) + b"\x80" * 399_000


def _frames() -> Iterator[tuple[str, str, Send]]:
    plain = lambda: pack_frame(bytes([1]) * BLOCK_BYTES)  # noqa: E731
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    yield "a gigabyte, and says so", "lengths", lambda a: a.frame(frame_of(GIB))
    yield "a gigabyte that says it is the block", "compression", lambda a: a.frame(lying(frame_of(GIB), BLOCK_BYTES))
    yield "2^62 bytes", "compression", lambda a: a.frame(lying(plain(), 1 << 62))
    yield "2^64 - 1 bytes", "compression", lambda a: a.frame(lying(plain(), 2**64 - 1))
    yield "no size", "lengths", lambda a: a.frame(frame_of(BLOCK_BYTES, write_content_size=False))
    yield "a window of 2 GiB", "compression", lambda a: a.frame(huge_window(BLOCK_BYTES))
    yield "two frames joined", "compression", lambda a: a.frame(plain() * 2)
    yield "a frame and bytes", "compression", lambda a: a.frame(plain() + b"x")
    yield "a frame and one to be skipped", "compression", lambda a: a.frame(plain() + skippable)
    yield "one to be skipped and a frame", "compression", lambda a: a.frame(skippable + plain())
    yield "a dictionary's number", "compression", lambda a: a.frame(_with_dictionary(plain()))
    yield "a wrong checksum", "compression", lambda a: a.frame(plain()[:-4] + b"\x00\x01\x02\x03")
    yield "no checksum", "compression", lambda a: a.frame(frame_of(BLOCK_BYTES, write_checksum=False))
    yield "cut off", "compression", lambda a: a.frame(plain()[:-9])


def _with_dictionary(frame: bytes) -> bytes:
    at = 5 if frame[4] & 0x20 else 6
    return frame[:4] + bytes((frame[4] | 1,)) + frame[5:at] + b"\x07" + frame[at:]


class _Runs:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (str(self._path), "w")


def _pickles() -> Iterator[tuple[str, str, Send]]:
    made = lambda a: pickle.dumps(_Runs(a.folder / "executed"))  # noqa: E731
    yield "a pickle as an update", "form", lambda a: a.raw(made(a))
    yield "a pickle as a chunk", "layout", lambda a: a.update(chunks=(made(a) + bytes(20),))
    yield "a torch file's beginning as a chunk", "layout", lambda a: a.update(chunks=(b"PK\x03\x04" + made(a),))
    yield "a model of other tensors", "schema", lambda a: a.update(schema_digest=bytes(32))
    yield "a million exponents", "form", lambda a: a.raw(_exponents(a))
    yield "exponents for tensors that are not there", "codec", lambda a: a.update(exponents=(0,) * 4000)
    yield "raw bytes beyond any model", "lengths", lambda a: a.update(raw_bytes=2**63 - 1)


def _exponents(attacker: Attacker) -> bytes:
    """Return a signed update with its two exponents repeated until it says it has ten million."""
    manifest: bytes = attacker.crafted().manifest
    at = manifest.index(b"\x92\x00\x00")
    return manifest[:at] + b"\xdd" + struct.pack(">I", 10_000_000) + bytes(300_000) + manifest[at + 3 :]


def _numbers() -> Iterator[tuple[str, str, Send]]:
    yield "NaN", "not-finite", lambda a: a.floats(float("nan"))
    yield "infinity", "not-finite", lambda a: a.floats(float("inf"))
    yield "1e38", "out-of-range", lambda a: a.floats(1e38)
    yield "-1e38", "out-of-range", lambda a: a.floats(-1e38)
    yield "denormals, less than a lattice step", "zero-update", lambda a: a.floats(1e-40)
    yield "minus zero", "zero-update", lambda a: a.floats(-0.0)
    yield "zero", "zero-update", lambda a: a.floats(0.0)
    yield "no examples", "examples", lambda a: a.floats(0.01, num_examples=0)
    yield "2^63 - 1 examples", "examples", lambda a: a.floats(0.01, num_examples=2**63 - 1)
    yield "a metric that is not finite", "form", lambda a: a.raw(_nan_metric(a))


def _nan_metric(attacker: Attacker) -> bytes:
    manifest: bytes = attacker.crafted(metrics=(("loss", 0.5),)).manifest
    return manifest.replace(struct.pack(">d", 0.5), struct.pack(">d", float("nan")))


def _chunks() -> Iterator[tuple[str, str, Send]]:
    yield "a manifest without its chunks", "missing-chunk", lambda a: _without_chunks(a)
    yield "a manifest of a chunk named 5,000 times", "lengths", lambda a: _named_often(a, 5_000)
    yield "a chunk longer than named", "missing-chunk", lambda a: _longer_than_named(a)
    yield "chunks that never get a manifest", "", lambda a: _orphans(a, 400, bytes(250_000), b"eve")
    yield "as many small ones as come", "", lambda a: _orphans(a, 150_000, b"", b"eve")
    yield "chunks with keys as long as a record", "", lambda a: _orphans(a, 400, b"", bytes(900_000))
    yield "a hint that spans everything", "chunk-digest", lambda a: _wide_hint(a)


def _without_chunks(attacker: Attacker) -> None:
    send_update(attacker.federation, attacker.crafted(inline=False), CLIENT, chunks=())


def _named_often(attacker: Attacker, times: int) -> None:
    chunk = b"x" * 900_000
    payload = Payload(*_root(chunk, times), None, None)
    attacker.raw(chunk, is_chunk=True)
    attacker.update(payload=payload, inline=False, chunks=())


def _root(chunk: bytes, times: int) -> tuple[bytes, tuple[bytes, ...], tuple[int, ...]]:
    digests, lengths = (chunk_digest(chunk),) * times, (len(chunk),) * times
    return payload_root(digests, lengths), digests, lengths


def _longer_than_named(attacker: Attacker) -> None:
    chunk = b"y" * 900_000
    digest = chunk_digest(chunk)
    attacker.raw(chunk, b"another", is_chunk=True)
    payload = Payload(payload_root([digest], [100]), (digest,), (100,), None, None)
    attacker.update(payload=payload, inline=False, chunks=())


def _orphans(attacker: Attacker, count: int, value: bytes, key: bytes) -> None:
    with attacker.federation.bus.producer() as producer:
        for number in range(count):
            mark = number.to_bytes(4, "big")
            headers = chunk_headers()
            producer.send(attacker.federation.topics.updates, mark + value, key=key + mark, partition=0, headers=headers)


def _wide_hint(attacker: Attacker) -> None:
    parcel = attacker.crafted(inline=False)
    send_update(attacker.federation, parcel, CLIENT, chunks=(), headers={"refold-hint": b"0,5"})


ROWS: dict[int, Callable[[], Iterator[tuple[str, str, Send]]]] = {
    30: _form,
    31: _frames,
    32: _pickles,
    33: _numbers,
    34: _chunks,
}


def names(row: int) -> list[tuple[str, str]]:
    """Return the bombs of a row with the reason that each must be refused for; "" for what is no update."""
    return [(name, reason) for name, reason, _ in ROWS[row]()]


def send_all(row: int, bus: str, folder: Path) -> dict[str, Any]:
    """Send a row's bombs, and return for each what the log says of it and by how much the process had grown."""
    federation = _federation(bus, folder)
    key = SigningKey.generate()
    federation.enroll(CLIENT, key.public)
    told: dict[str, Any] = {}
    with SteppedServer(federation) as server:
        server.settle()
        attacker = Attacker(federation, key, folder)
        attacker.update(note="the first, that all that is used later is loaded", base_digest=bytes(32))
        server.settle()
        idle, seen = peak_bytes(), len(verdicts(federation))
        for name, _, send in ROWS[row]():
            send(attacker)
            server.settle()
            found = verdicts(federation)
            told[name] = {"verdicts": found[seen:], "grown_mib": round((peak_bytes() - idle) / 2**20, 1)}
            seen = len(found)
        last = craft_update(federation, CLIENT, key, session=(2, bytes(8)), seed=3)
        send_update(federation, last, CLIENT)
        server.settle()
        told["afterwards"] = {"verdicts": verdicts(federation)[seen:], "head": federation.head}
    told["executed"] = (folder / "executed").exists()
    return told


def _federation(bus: str, folder: Path) -> Federation:
    plan = refold.Plan(minimum=1, deadline_s=None, heartbeat_s=1.0)
    where: Any = {"bus": MemoryBus()} if bus == "memory" else {}
    url = "memory:bombs" if bus == "memory" else f"sqlite:{folder}/bombs.db"
    return refold.create(url, MODEL, plan=plan, keys=folder / "keys", partitions=1, **where)


def verdicts(federation: Federation) -> list[tuple[str, str]]:
    """Return every verdict as (client or `NOBODY`, reason or `ACCEPTED`)."""
    found: list[tuple[str, str]] = []
    for entry in read_all(federation.bus, federation.topics.accepted):
        for event in entry.events:
            match event:
                case UpdateAccepted():
                    found.append((event.origin.client, ACCEPTED))
                case UpdateRejected():
                    found += [(event.origin.client, event.reasons[0])] * event.count
                case Unattributed():
                    found += [(NOBODY, event.reason)] * event.count
    return found


def peak_bytes() -> int:
    """Return the most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(row: int, bus: str, folder: Path) -> dict[str, Any]:
    """Do `send_all` in a process of its own."""
    words = [sys.executable, "-m", "faultkit.bombs", str(row), bus, str(folder)]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


if __name__ == "__main__":
    print(json.dumps(send_all(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
