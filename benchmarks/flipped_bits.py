"""Bits flipped in snapshots, steps and merged steps: found every time, and a wrong state returned never, or exit code 1.

One bit after the other is flipped where it lies on the bus. Then the damaged piece is used, by a way that cannot do without
it: that must fail and name the piece. And the round is rebuilt as anybody would, digest checked: that must give the recorded
state by another way, or fail. Bits of manifests, which say where the pieces are, are flipped besides: some mean nothing (the
time of writing), so they need not be found, but must not lead to a wrong state either.

    python benchmarks/flipped_bits.py [--flips 10000] [--seed N] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._written import WrittenLog, above
from refold.bus.contract import Record
from refold.producers.history import History
from refold.schemas.errors import IntegrityError
from refold.schemas.events import RoundCommitted, SnapshotTaken, StepsMerged
from refold.schemas.payload import Payload, chunk_digest
from refold.state.optimizers import FedAdam
from refold.state.paths import Leg
from refold.state.paths import Path as Way
from refold.state.replay import PieceBrokenError, load_snapshot, walk

ROUNDS = 64
SIDE = 130
"""Of the model's tensor, a square: so large that a snapshot does not travel inside its manifest."""

MANIFESTS_PER_CHUNK = 10
"""One bit of a manifest is flipped for so many of chunks."""


@dataclass(frozen=True, slots=True)
class Target:
    """A chunk that can be damaged, and what it belongs to."""

    kind: str
    event: SnapshotTaken | StepsMerged | RoundCommitted
    digest: bytes


class Bits:
    """The records of a bus in memory, to be damaged one at a time."""

    def __init__(self, log: WrittenLog) -> None:
        self._logs = log.bus._log.partitions
        topics = log.federation.topics
        self._topics = topics
        self._where = {
            chunk_digest(record.value): (place, number)
            for place, held in self._logs.items()
            if place.topic in (topics.steps, topics.snapshot_chunks)
            for number, record in enumerate(held._records)
            if record.value is not None
        }
        self._manifests = next(held for place, held in self._logs.items() if place.topic == topics.snapshots)

    @contextmanager
    def flipped(self, digest: bytes, chance: random.Random) -> Iterator[None]:
        """Flip a bit of a chunk, and put it back."""
        place, number = self._where[digest]
        with _flipped(self._logs[place]._records, number, chance):
            yield

    @contextmanager
    def flipped_manifest(self, chance: random.Random) -> Iterator[None]:
        """Flip a bit of some manifest, and put it back."""
        numbers = [number for number, record in enumerate(self._manifests._records) if record.value]
        with _flipped(self._manifests._records, chance.choice(numbers), chance):
            yield


@contextmanager
def _flipped(records: list[Record], number: int, chance: random.Random) -> Iterator[None]:
    record = records[number]
    value = bytearray(record.value or b"")
    value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
    records[number] = replace(record, value=bytes(value))
    try:
        yield
    finally:
        records[number] = record


def targets(history: History) -> dict[str, list[Target]]:
    """Return every chunk, by what it is part of."""
    found: dict[str, list[Target]] = {"snapshot": [], "step": [], "merged step": []}
    for taken in history.snapshots.values():
        found["snapshot"] += [Target("snapshot", taken, d) for d in _chunks(taken.parameters, taken.slots)]
    for made in history.lineage.rounds.values():
        found["step"] += [Target("step", made, d) for d in _chunks(made.step, made.slots_step)]
    for merged in history.merged.values():
        found["merged step"] += [Target("merged step", merged, d) for d in _chunks(merged.step, merged.slots_step)]
    return found


def _chunks(*payloads: Payload | None) -> Iterator[bytes]:
    for payload in payloads:
        yield from payload.chunks if payload is not None and payload.inline is None else ()


def is_found(history: History, target: Target, states: dict[int, object]) -> bool:
    """Whether using the damaged piece fails, naming it."""
    rounds, merged, event = history._entries(), history._merged_entries(), target.event
    try:
        if isinstance(event, SnapshotTaken):
            load_snapshot(rounds[event.round], history.schema, history._chunks)
            return False
        first = event.first if isinstance(event, StepsMerged) else event.parent
        last = event.last if isinstance(event, StepsMerged) else event.round
        leg = Leg(first, last, 1, merged=isinstance(event, StepsMerged))
        state = states[first].copy()  # type: ignore[attr-defined]
        walk(state, Way(first, (leg,)), rounds, history._chunks, merged=merged)
    except PieceBrokenError as error:
        return error.piece == (event.round if isinstance(event, SnapshotTaken) else (first, last))
    return False


def outcome(log: WrittenLog, history: History, target: Target) -> str:
    """Return what anybody's rebuild gives of a round that the piece leads to: ``right``, ``refused`` or ``wrong``."""
    event = target.event
    round_ = event.last if isinstance(event, StepsMerged) else event.round
    start = above(sorted(history.snapshots), round_) if isinstance(event, SnapshotTaken) else None
    return rebuilt(log, history, round_, start if start != round_ else None)


def rebuilt(log: WrittenLog, history: History, round_: int, start: int | None = None) -> str:
    try:
        return "right" if history.rebuild(round_, start=start).digest == log.digests[round_] else "wrong"
    except IntegrityError:
        return "refused"


def flip(log: WrittenLog, flips: int, chance: random.Random) -> dict[str, Counter[str]]:
    """Flip so many bits of chunks, and some of manifests, and count what came of it."""
    history, bits = log.history(), Bits(log)
    states = {round_: history.rebuild(round_) for round_ in log.digests}
    every = targets(history)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in (*every, "manifest")}
    for number in range(flips):
        kind = list(every)[number % len(every)]
        target = chance.choice(every[kind])
        with bits.flipped(target.digest, chance):
            counts[kind]["found" if is_found(history, target, states) else "missed"] += 1
            counts[kind][outcome(log, history, target)] += 1
        if number % MANIFESTS_PER_CHUNK == 0:
            with bits.flipped_manifest(chance):
                fresh = log.history()
                counts["manifest"][rebuilt(log, fresh, chance.choice(sorted(log.digests)))] += 1
                fresh.close()
    history.close()
    return counts


def main() -> int:
    """Flip, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    logging.getLogger("refold").setLevel(logging.CRITICAL)  # Each flip would be warned of.
    log = WrittenLog(ROUNDS, FedAdam(), side=SIDE, every=16, kept=8, seed=options.seed)
    counts = flip(log, options.flips, random.Random(options.seed))
    log.federation.close()
    if options.json:
        print(json.dumps({"seed": options.seed, "flips": options.flips, "counts": counts}, indent=2))
    else:
        for kind, count in counts.items():
            print(
                f"{kind:<12}  "
                + ", ".join(f"{name} {count[name]}" for name in ("found", "missed", "right", "refused", "wrong"))
            )
    return 1 if any(count["missed"] or count["wrong"] for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
