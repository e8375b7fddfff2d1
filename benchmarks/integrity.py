"""Faults of integrity: is every one refused, and nothing that is sound? Real signed updates through the real path.

Clients send sound updates in rounds; others send as many that a disk, a network or a liar has changed (`_injections.py`:
flipped bits, cuts, replays, equivocation, wrong bases, NaN, wrong shapes and dtypes, forged signatures, swapped chunks,
wrong digests, lying lengths …). Consistency inspects, detection takes in, judges and commits, aggregation makes the round: all
of a server, on the bus in memory, with its default detectors. Afterwards the log is asked about each record by its place.

*Found* is an injected record that has a verdict and was not accepted. A *false alarm* is a sound update that was not accepted;
``of them by a detector`` are those that were compared and found odd, which is no fault of integrity. ``unjudged`` must be 0.

    python benchmarks/integrity.py [--injections N] [--bits N] [--seed N] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from _injections import CHUNK_BYTES, KINDS, Forge, Place, Scene, Sent

import refold
from refold.bus.clock import ManualClock
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.federation import Federation
from refold.schemas.codec import decode_integers, encode_integers
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import Unattributed, UpdateAccepted, UpdateRejected
from refold.schemas.identity import UpdatesRefused
from refold.schemas.keys import SigningKey
from refold.schemas.layout import Layout
from refold.schemas.reasons import ANOMALY, REASONS
from refold.state.tensors import schema_of
from refold.testing import SteppedServer

CLIENTS, ROUNDS = 100, 10
"""Of one federation, before a new one begins; so that memory stays small however many are injected."""

MODEL = {"w": np.zeros((30, 20), "f4"), "b": np.zeros(20, "f4"), "steps": np.array(0, "i8")}
KEPT = 200
FREEZES = "equivocation"
"""Who was caught at this is released after the round, to be caught again."""


class World:
    """One federation on a bus of its own: its honest clients, those that inject, and what became of what they sent."""

    def __init__(self, seed: int, folder: Path, clients: int, rounds: int) -> None:
        self.bus, self._chance = MemoryBus(), Random(seed)
        rng = np.random.default_rng(seed)
        plan = refold.Plan(minimum=clients, rounds=rounds, heartbeat_s=1.0, deadline_s=600.0)
        self.federation = refold.create(
            "memory:injected",
            MODEL,
            plan=plan,
            keys=folder,
            partitions=2,
            bus=self.bus,
            snapshots=refold.SnapshotPolicy(1000, 1),
        )
        names = [f"{kind}-{at:03d}" for kind in ("sound", "odd") for at in range(clients)]
        self._keys = {name: SigningKey.generate() for name in names}
        for name, key in self._keys.items():
            self.federation.enroll(name, key.public)
        self._common = [
            rng.normal(400, 900, tensor.size).astype(np.int32) if tensor.is_float else np.ones(tensor.size, np.int64)
            for tensor in self.federation.genesis.schema.tensors
        ]
        self._before: list[Sent] = []
        self._frozen: list[str] = []
        self.sound: dict[Place, str] = {}
        self.injected: dict[Place, str] = {}

    def run(self, rounds: int) -> None:
        """Make rounds, in each of which everyone sends once."""
        clock = ManualClock()
        with SteppedServer(self.federation, clock=clock) as server:
            server.settle()
            clock.advance(60.0)
            for sequence in range(rounds):
                self._round(sequence)
                server.settle()
                while self._frozen:
                    self.federation.release(self._frozen.pop())
                server.settle()
                assert self.federation.head == sequence + 1, f"round {sequence + 1} was not made"

    def _round(self, sequence: int) -> None:
        scene = self._scene()
        names = list(self._keys)
        self._chance.shuffle(names)
        # A repeat needs something to repeat, and what closes the round must come last.
        first, last = (next(name for name in order if name.startswith("sound")) for order in (names, names[::-1]))
        names = [first, *(name for name in names if name not in (first, last)), last]
        for name in names:
            forge = Forge(name, self._keys[name], scene, 2 * sequence, self._chance)
            if name.startswith("odd"):
                kind = self._chance.choice(list(KINDS))
                self.injected |= dict.fromkeys(KINDS[kind](forge), kind)
                if kind == FREEZES:
                    self._frozen.append(name)
            else:
                parcel = forge.honest()
                self.sound[forge.send(parcel)] = name
                scene.now.append((name, parcel))
        self._before = [*self._before, *scene.now][-KEPT:]

    def _scene(self) -> Scene:
        history = self.federation.history()
        try:
            lineage = history.lineage
            digests = {at: lineage.parameters_digest(at) or bytes(32) for at in range(lineage.head + 1)}
            schema = history.schema
            return Scene(self.federation, schema, lineage.head, digests, lineage.next_index, self._common, self._before, [])
        finally:
            history.close()


def judged(federation: Federation) -> Iterator[tuple[Place, str]]:
    """Yield the place of every record that the log names, with "accepted" or the reason."""
    for entry in read_all(federation.bus, federation.topics.accepted):
        for event in entry.events:
            match event:
                case UpdateAccepted():
                    yield (event.origin.partition, event.origin.offset), "accepted"
                case UpdateRejected():
                    yield (event.origin.partition, event.origin.offset), event.reasons[0]
                case Unattributed() | UpdatesRefused():
                    yield (event.partition, event.first_offset), event.reason


def bits(updates: int, seed: int) -> dict[str, int]:
    """Flip every single bit of updates' chunks; count what decodes all the same, and what decodes to something else."""
    schema = schema_of(MODEL)
    layout, found = Layout.of(schema), Counter[str]()
    for number in range(updates):
        rng = np.random.default_rng([seed, number])
        arrays = [rng.normal(400, 1300, t.size).astype(np.int32 if t.is_float else np.int64) for t in schema.tensors]
        chunks = list(encode_integers(arrays, layout, max_chunk_bytes=CHUNK_BYTES))
        for at, chunk in enumerate(chunks):
            for bit in range(8 * len(chunk)):
                changed = bytearray(chunk)
                changed[bit // 8] ^= 1 << bit % 8
                found["flipped"] += 1
                try:
                    got = [
                        array.copy() for _, array in decode_integers([*chunks[:at], bytes(changed), *chunks[at + 1 :]], layout)
                    ]
                except InvalidRecord:
                    continue
                found["decoded"] += 1
                found["decoded_otherwise"] += not all(map(np.array_equal, got, arrays))
    return {name: found[name] for name in ("flipped", "decoded", "decoded_otherwise")}


def measure(injections: int, seed: int) -> dict[str, Any]:
    """Inject until there are so many, and count."""
    total: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    started_s = time.monotonic()
    clients = min(CLIENTS, max(10, injections // 10))
    while total["injected"] < injections:
        rounds = min(ROUNDS, -(-(injections - total["injected"]) // clients))
        with tempfile.TemporaryDirectory() as folder:
            world = World(seed, Path(folder), clients, rounds)
            world.run(rounds)
            _count(world, total, missed, kinds, reasons)
            world.bus.close()
        seed += 1
        if sys.stderr.isatty():
            print(f"\r{total['injected']:,} injected", end="", file=sys.stderr)
    return {
        **{name: total[name] for name in ("injected", "found", "sound", "false_alarms", "by_a_detector", "unjudged")},
        "recall": total["found"] / total["injected"],
        "missed": dict(missed),
        "kinds": dict(sorted(kinds.items())),
        "reasons": dict(reasons.most_common()),
        "seconds": time.monotonic() - started_s,
    }


def _count(world: World, total: Counter[str], missed: Counter[str], kinds: Counter[str], reasons: Counter[str]) -> None:
    verdicts = dict(judged(world.federation))
    positions = {part.partition: part for part in world.federation.roster().position.updates}
    for place, kind in world.injected.items():
        is_judged, said = positions[place[0]].is_judged(place[1]), verdicts.get(place, "named with others")
        kinds[kind] += 1
        reasons[said] += 1
        total["injected"] += 1
        total["unjudged"] += not is_judged
        total["found"] += is_judged and said != "accepted"
        if said == "accepted" or not is_judged:
            missed[kind] += 1
    for place in world.sound:
        said = verdicts.get(place, "named with others")
        total["sound"] += 1
        total["unjudged"] += not positions[place[0]].is_judged(place[1])
        total["by_a_detector"] += REASONS.get(said) == ANOMALY
        total["false_alarms"] += said != "accepted" and REASONS.get(said) != ANOMALY


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bits", type=int, default=0, help="flip every bit of so many updates' chunks, and nothing else")
    options = parser.parse_args()
    if options.bits:
        print(json.dumps(bits(options.bits, options.seed)))
        return 0
    found = measure(options.injections, options.seed)
    if options.json:
        print(json.dumps({"seed": options.seed, **found}))
    else:
        print(f"{found['injected']:,} injected of {len(found['kinds'])} kinds, {found['found']:,} found", end=", ")
        print(f"recall {found['recall']:.6f}; missed: {found['missed'] or 'none'}")
        print(f"{found['sound']:,} sound, {found['false_alarms']} refused for a fault of integrity", end=", ")
        print(f"{found['by_a_detector']} by a detector; {found['unjudged']} records without a verdict")
        print(f"reasons: {found['reasons']}")
        print(f"{found['seconds']:.0f} s")
    return int(bool(found["missed"] or found["false_alarms"] or found["unjudged"]))


if __name__ == "__main__":
    sys.exit(main())
