"""What it costs to sign, prove and check a long log, beside reading it.

A log of N verdicts, a thousand in each commit, is written to a SQLite bus and signed. Then, each in one pass over it:

- ``read``: the log is read as every reader does, decoding each event: the limit that the others are held to.
- ``fold``: the same, with the Merkle tree that aggregation keeps: what signing costs.
- ``inclusion``: one event is proven against the newest checkpoint.
- ``consistency``: the log is proven to begin with the one of a checkpoint half as long.
- ``check``: an inclusion proof is checked, signature and all, without any log.

    python benchmarks/proofs.py [--events N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import refold
from refold.bus.ledger import Entry, LedgerReader
from refold.consumers.checkpoints import LogSigner
from refold.consumers.proving import prove_consistency
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.commits import Chain, commit_hash, next_commit
from refold.schemas.events import Origin, UpdateAccepted
from refold.schemas.kept import Kept
from refold.schemas.keys import log_key
from refold.schemas.payload import describe
from refold.schemas.proofs import proof_from_json, require_proof

COMMIT = 1000
ROUNDS = Chain(bytes(32))


def silent(*_told: object) -> None:
    """Show nothing."""


def verdicts(first: int, count: int) -> tuple[bytes, ...]:
    """Return events of the usual size, some 450 bytes, that differ in the update's digest."""
    payload = describe([os.urandom(16)], inline_bytes=-1)
    origin = Origin(0, 1, bytes(32), "client-17", os.urandom(8), 1, os.urandom(8), 0, "train", 1)
    event = encode(UpdateAccepted(origin, 10, 10, (("loss", 0.5),), "grid", (0,), payload, payload, ()))
    return tuple(event.replace(bytes(32), number.to_bytes(32, "big"), 1) for number in range(first + 1, first + 1 + count))


def write(federation: Federation, events: int) -> list[Kept]:
    """Fill the log, past the writer that every server uses, and return checkpoints of half of it and of all of it."""
    topic, key = federation.topics.accepted, log_key(federation.keyring.secret())
    signer, reader = LogSigner(federation.name, key, None), LedgerReader(federation.bus, topic)
    for entry in reader.read_to_end():
        signer.fold(entry)
    chain, kept = reader.chain, list[Kept]()
    with federation.bus.producer() as producer:
        for first in range(0, events, COMMIT):
            encoded = verdicts(first, COMMIT)
            commit = next_commit(chain, encoded, chain.position, writer="bench", epoch=1, time_ms=0)
            data = encode(commit)
            producer.send(topic, data, partition=0)
            producer.flush()
            chain.offer(data)
            entry = Entry(commit, commit_hash(data), 0, (), encoded)
            signer.fold(entry)
            if first + COMMIT in (events // 2 // COMMIT * COMMIT, events):
                kept.append(Kept(signer.sign(entry, ROUNDS, 0).signed, key.public))
    reader.close()
    return kept


def read(federation: Federation, each: Callable[[Entry], None]) -> None:
    """Read the log to its end."""
    reader = LedgerReader(federation.bus, federation.topics.accepted)
    for entry in reader.read_to_end():
        each(entry)
    reader.close()


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(federation: Federation, kept: list[Kept], events: int) -> dict[str, Any]:
    """Time each, and take the peak of what Python allocates in a pass of its own."""
    half, whole = kept
    signer = LogSigner(federation.name, log_key(federation.keyring.secret()), None)
    proof = federation.prove(events // 3, kept=whole)
    said = json.dumps(proof.to_json())
    bus, topics = federation.bus, federation.topics
    seconds = {
        "read": timed(lambda: read(federation, lambda _: None)),
        "fold": timed(lambda: read(federation, signer.fold)),
        "inclusion": timed(lambda: federation.prove(events // 3, kept=whole)),
        "consistency": timed(lambda: prove_consistency(bus, topics, half, whole, silent)),
        "check": timed(lambda: require_proof(proof_from_json(json.loads(said)), log_keys=[whole.log_key])),
    }
    tracemalloc.start()
    federation.prove(0, kept=half)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ratio = {name: seconds[name] / seconds["read"] for name in ("fold", "inclusion", "consistency")}
    size = {"proof": len(said), "path": len(proof.path), "peak": peak}
    return {"events": events, "seconds": seconds, "ratio": ratio, "bytes": size}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="in thousands")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    events = max(2, options.events // COMMIT) * COMMIT
    with tempfile.TemporaryDirectory() as folder:
        made = refold.create(f"sqlite:{Path(folder)}/fed.db", {"w": np.zeros(1, "f4")})
        with made as federation:
            found = measure(federation, write(federation, events), events)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found["seconds"].items():
        ratio = f"   {found['ratio'][name]:.2f} of read" if name in found["ratio"] else ""
        print(f"{name:<12}{value * 1000:12.1f} ms{ratio}")
    print(f"proof {found['bytes']['proof']:,} bytes, {found['bytes']['path']} hashes; peak {found['bytes']['peak']:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
