"""The golden vectors in docs/vectors: inputs and outputs for every part of docs/WIRE.md.

::

    python tools/wire_vectors.py        writes all of them; look at the difference before you keep it

Random choices are formulas and keys are fixed, so a run gives the same values again. Compressed frames may differ between
versions of zstd: those files (`FRAMED`) are held to by decoding them, the others also byte by byte.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from wire_arrays import LARGE, SMALL, chunks, fold, lattice
from wire_shapes import numbered, shapes
from wire_values import as_json

from refold.bus.contract import partition_for
from refold.consumers.commands import signed_part
from refold.keyring import secret_digest
from refold.producers.sealer import Place
from refold.schemas.canonical import decode, encode
from refold.schemas.checkpoints import Checkpoint, sign_checkpoint
from refold.schemas.checks import Command, EndFederation
from refold.schemas.codec import encode_integers
from refold.schemas.commits import Chain, Position, commit_hash, next_commit, pack_events, root_hash
from refold.schemas.events import FederationEnded, Receipt, Receipts
from refold.schemas.kept import Kept
from refold.schemas.keys import CHECKPOINT_TAG, COMMAND_TAG, UPDATE_TAG, SigningKey
from refold.schemas.layout import Integers, Layout
from refold.schemas.merkle import consistency_ranges, inclusion_ranges, leaf_hash, root_of
from refold.schemas.payload import chunk_digest, describe, payload_root
from refold.schemas.plans import RoundPlan
from refold.schemas.proofs import ConsistencyProof, InclusionProof
from refold.schemas.sealing import SUITE, SealingKey, chunk_info
from refold.schemas.updates import ClientUpdate, UpdateBody, update_digest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "vectors"
GOLDEN = ROOT / "tests" / "unit" / "golden"

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def types() -> Any:
    """Every record type and structure: fields in order, types, bounds."""
    return shapes()


def records() -> Any:
    """The stored bytes of every type and version, with what they say, and whether a writer writes them so today."""
    found = []
    for kind, about in sorted(numbered().items(), key=lambda item: item[1].number):
        for version in range(1, about.version + 1):
            data = bytes.fromhex((GOLDEN / f"{kind.__name__}.v{version}.hex").read_text())
            written = encode(decode(data)) == data
            head = {"name": kind.__name__, "number": about.number, "version": version, "newest": written}
            found.append(head | {"hex": data.hex(), "value": as_json(decode(data))})
    return found


def refused() -> Any:
    """Bytes that are no canonical record, and the reason code."""
    good = encode(FederationEnded(3, "done"))
    cases = [
        ("a number in a longer form than it needs", "942e01cc03a4646f6e65", "not-canonical"),
        ("a text in a longer form than it needs", "942e0103d904646f6e65", "not-canonical"),
        ("an array in a longer form than it needs", "dc00042e0103a4646f6e65", "not-canonical"),
        ("a byte after the array", good.hex() + "00", "form"),
        ("the last byte is missing", good[:-1].hex(), "form"),
        ("no array", "a4646f6e65", "form"),
        ("a map", "942e010380", "form"),
        ("an extension", "942e0103d40100", "form"),
        ("bin where text belongs", "942e0103c404646f6e65", "form"),
        ("a text that is not UTF-8", "942e0103a4ffffffff", "form"),
        ("a line break in a text", "942e0103a4646f0a65", "form"),
        ("true where an int belongs", "942e01c3a4646f6e65", "form"),
        ("a float where an int belongs", "942e01cb4008000000000000a4646f6e65", "form"),
        ("an int below its bound", "942e01ffa4646f6e65", "form"),
        ("an int above its bound", "942e01cfffffffffffffffffa4646f6e65", "form"),
        ("a field too few", "932e0103", "form"),
        ("a field too many", "952e0103a4646f6e6500", "form"),
        ("a type that does not exist", "94cd270f0103a4646f6e65", "unknown-type"),
        ("a version that does not exist", "942e7f03a4646f6e65", "unknown-version"),
        ("version 0", "942e0003a4646f6e65", "unknown-version"),
        ("an int where a float belongs", "950a01940101", "form"),
        ("a float of 32 bits", "960a01ca3f000000cb3ff000000000000001cb0000000000000000", "not-canonical"),
        ("a float that is not finite", "960a01cb7ff8000000000000cb3ff000000000000001cb0000000000000000", "form"),
        ("nothing at all", "", "form"),
    ]
    return [{"why": why, "hex": data, "reason": reason} for why, data, reason in cases]


def digests() -> Any:
    """Digests, key ids, signatures and partitions of small inputs."""
    chunks = [b"first", b"", bytes(range(256))]
    command = Command("toy", bytes(range(16)), encode(EndFederation("over")), KEY.key_id, bytes(64))
    said = signed_part(command)
    return {
        "chunks": [{"chunk": chunk.hex(), "digest": chunk_digest(chunk).hex()} for chunk in chunks],
        "payload_root": payload_root(map(chunk_digest, chunks), map(len, chunks)).hex(),
        "payload_root_of_nothing": payload_root((), ()).hex(),
        "key": {"private": bytes(range(32)).hex(), "public": KEY.public.hex(), "key_id": KEY.key_id.hex()},
        "schemas": [{"value": as_json(s), "hex": encode(s).hex(), "digest": s.digest.hex()} for s in (SMALL, LARGE)],
        "log_roots": {topic: root_hash(topic).hex() for topic in ("toy.rounds", "toy.accepted", "ward-7.rounds")},
        "command": {
            "federation": "toy",
            "command_id": command.command_id.hex(),
            "body": command.body.hex(),
            "digest": said.hex(),
            "message": (COMMAND_TAG + said).hex(),
            "signature": KEY.sign(COMMAND_TAG, said).hex(),
        },
        "secret": {"secret": bytes(32).hex(), "digest": secret_digest(bytes(32)).hex()},
        "partitions": [
            {
                "key": key.encode().hex(),
                "text": key,
                "of_4": partition_for(key.encode(), 4),
                "of_7": partition_for(key.encode(), 7),
            }
            for key in ("a", "ab", "abc", "abcd", "ward-7", "ann", "bob", "1", "120", "Klinikum Süd", "")
        ],
    }


def plans() -> Any:
    """Draws of clients, which decide who is selected."""
    found = []
    for round_, below in ((1, 2**63 - 1), (2, 2**62), (300, 2**61)):
        plan = RoundPlan(round_, below, False, 2, 0, 1000, 0, "grid", 16, (), (), bytes(range(16)))
        draws = [
            {"client": name, "draw": str(plan.draw(name)), "selected": plan.selects(name)}
            for name in ("ann", "bob", "ward-7", "Klinikum Süd")
        ]
        found.append({"seed": plan.seed.hex(), "round": round_, "select_below": str(below), "draws": draws})
    return found


def update() -> Any:
    """Signed updates: one that carries its payload, one with chunks, one without a delta."""
    arrays: list[Integers] = [
        np.arange(-3, 3, dtype=np.int32),
        np.array([12], np.int32),
        np.zeros(0, np.int32),
        np.array([4], np.int64),
        np.array([1, 1], np.int64),
    ]
    made = list(encode_integers(arrays, Layout.of(SMALL)))
    body = UpdateBody(
        "toy", "ann", KEY.key_id, 17, bytes(range(8)), 0, "train", 3, bytes(range(32)), SMALL.digest, "grid", (3, 0, 0, 0, 0),
        120, (("accuracy", 1.0), ("loss", 0.25)), describe(made), Layout.of(SMALL).size_bytes, "", 1_700_000_000_123,
    )  # fmt: skip
    chunked = replace(body, sequence=1, payload=describe(made, inline_bytes=-1))
    declined = replace(body, sequence=2, kind="decline", exponents=(), num_examples=0, metrics=(), payload=None, raw_bytes=0)
    bodies = (body, chunked, replace(declined, note="no data today"))
    return {"schema": as_json(SMALL), "chunks": [c.hex() for c in made], "updates": [_signed(each) for each in bodies]}


def _signed(body: UpdateBody) -> dict[str, Any]:
    digest = update_digest(body)
    signature = KEY.sign(UPDATE_TAG, digest)
    return {
        "body": as_json(body),
        "body_record": encode(body).hex(),
        "digest": digest.hex(),
        "message": (UPDATE_TAG + digest).hex(),
        "signature": signature.hex(),
        "manifest": encode(ClientUpdate(body, signature)).hex(),
    }


SEALED = (
    "1bfcdbf7daa063db77a3fe14afbef7a477ab61360fe61391d05dc5dd6c279764bab6c19ca409a37cd924f681f4f3411913aad1084c72ca891ee0819505e5ff99d6b2",
    "416cf604f1a2a3f004a8ffaa24a903504b278e96b4a9b601ecadc2f16642763fddf04fb6659b4040a2e0972884ed408efa324b3c49ee959c69771ace63a2dff2aba9",
)
"""Two chunks, sealed once: each time they are, they come out otherwise."""


def sealing() -> Any:
    """Sealed chunks, what each is bound to, and what is in it."""
    key = SealingKey(X25519PrivateKey.from_private_bytes(bytes(range(32))))
    place = Place("ann", 17, bytes(range(8)), 5)
    infos = [chunk_info("toy", place, index) for index in range(len(SEALED))]
    opened = [key.open(bytes.fromhex(sealed), info) for sealed, info in zip(SEALED, infos, strict=True)]
    about = {"federation": "toy", "client": "ann", "session_index": 17, "session_nonce": bytes(range(8)).hex(), "sequence": 5}
    return {
        "suite": SUITE,
        "private": bytes(range(32)).hex(),
        "public": key.public.hex(),
        "key_id": key.key_id.hex(),
        **about,
        "chunks": [
            {"info": info.hex(), "sealed": sealed, "plain": plain.hex()}
            for info, sealed, plain in zip(infos, SEALED, opened, strict=True)
        ],
    }


def chain() -> Any:
    """The records of a topic as they lie there, and which of them a reader takes."""
    topic = "toy.rounds"
    head = Chain.of(topic)
    lines: list[dict[str, Any]] = []

    def put(why: str, value: bytes, kind: str = "refold.Commit") -> None:
        commit = head.offer(value) if kind == "refold.Commit" else None
        about = {"why": why, "ce_type": kind, "hex": value.hex(), "hash": commit_hash(value).hex(), "taken": commit is not None}
        lines.append(about | {"head": head.head.hex(), "next_index": head.next_index})

    def made(events: tuple[bytes, ...], at: Chain, **more: Any) -> bytes:
        commit = next_commit(
            at, events, Position(accepted_index=at.next_index), writer="toy", epoch=1, time_ms=1_700_000_000_000
        )
        return encode(replace(commit, **more))

    receipt = encode(Receipts((Receipt("ann", bytes(32), "accepted"),)))
    ended = encode(FederationEnded(2, "all rounds are done"))
    root = head.copy()
    first = made((receipt,), head)
    put("garbage", b"not a record")
    put("the first commit", first)
    put("the first commit again", first)
    put("a commit of a writer that still believes in the root", made((ended,), root))
    put("right hash, wrong index", made((receipt,), head, first_index=7))
    put("right hash, wrong count", made((receipt,), head, count=2))
    put("the second commit", made((receipt, receipt), head))
    parts = pack_events((receipt, ended, receipt), most_bytes=len(receipt))
    for part in parts:
        put("events of the third commit", part, "refold.EventList")
    put("the third commit", made((), head, count=3, chunks=describe(parts, inline_bytes=-1)))
    events = [receipt, receipt, receipt, receipt, ended, receipt]
    return {"topic": topic, "root": root.head.hex(), "records": lines, "events": [event.hex() for event in events]}


def checkpoints() -> Any:
    """A log of seven events: the roots of its beginnings, proofs, and signed checkpoints."""
    events = [encode(FederationEnded(number, "over")) for number in range(7)]
    leaves = [leaf_hash(data) for data in events]
    signed = [_checkpoint(leaves[:size]) for size in range(1, 8)]
    return {
        "events": [data.hex() for data in events],
        "leaves": [leaf.hex() for leaf in leaves],
        "roots": {str(size): root_of(leaves[:size]).hex() for size in range(8)},
        "checkpoints": [
            {
                "record": encode(one.checkpoint).hex(),
                "digest": one.checkpoint.digest.hex(),
                "message": (CHECKPOINT_TAG + one.checkpoint.digest).hex(),
                "kept": one.to_json(),
            }
            for one in signed
        ],
        "inclusion": [
            InclusionProof(
                index, events[index], _path(leaves[:size], inclusion_ranges(index, size)), signed[size - 1]
            ).to_json()
            for index, size in ((0, 1), (0, 7), (3, 7), (6, 7), (4, 6))
        ],
        "consistency": [
            ConsistencyProof(signed[old - 1], signed[new - 1], _path(leaves[:new], consistency_ranges(old, new))).to_json()
            for old, new in ((1, 7), (3, 7), (4, 7), (6, 7), (2, 5), (7, 7))
        ],
    }


def _checkpoint(leaves: list[bytes]) -> Kept:
    size = len(leaves)
    said = Checkpoint("toy", size, root_of(leaves), bytes([size]) * 32, 2 * size, bytes(32), 1_700_000_000_000 + size)
    return Kept(sign_checkpoint(said, KEY), KEY.public)


def _path(leaves: list[bytes], ranges: list[tuple[int, int]]) -> tuple[bytes, ...]:
    return tuple(root_of(leaves[first:end]) for first, end in ranges)


EXACT: dict[str, Callable[[], Any]] = {
    "types": types,
    "records": records,
    "refused": refused,
    "digests": digests,
    "plans": plans,
    "lattice": lattice,
    "chain": chain,
    "checkpoints": checkpoints,
    "sealing": sealing,
}
FRAMED: dict[str, Callable[[], Any]] = {"chunks": chunks, "fold": fold, "update": update}


def text_of(made: Any) -> str:
    """Return a file's text."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in (EXACT | FRAMED).items():
        (FOLDER / f"{name}.json").write_text(text_of(make()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
