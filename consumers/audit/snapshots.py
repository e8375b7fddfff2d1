"""Snapshots: each that is kept loads, and is the state that the log says."""

from __future__ import annotations

from collections.abc import Iterator

from refold.bus.contract import Bus, Place
from refold.bus.payloads import PayloadReader
from refold.bus.topics import Topics
from refold.consumers.audit.findings import SNAPSHOTS, Finding, Progress, Summary
from refold.producers.history import Chunks
from refold.producers.lineage import Lineage
from refold.schemas.canonical import decode
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.events import SnapshotTaken, StepsMerged
from refold.schemas.merged import piece_of
from refold.schemas.model import ModelSchema
from refold.state.paths import Piece, RoundEntry
from refold.state.replay import load_snapshot

HINT = "nothing is lost, a rebuild takes another way; delete it, and the next server takes a new one"


class SnapshotAudit:
    """Reads the manifests, those of merged steps too, as they stand when it is made."""

    def __init__(self, bus: Bus, topics: Topics, summary: Summary) -> None:
        self._bus = bus
        self._topics = topics
        self._summary = summary
        self._offsets: dict[int, int] = {}
        self.merged: dict[Piece, tuple[int, StepsMerged]] = {}
        self._unreadable: list[Finding] = []
        self.manifests = self._read()

    def _read(self) -> dict[int, SnapshotTaken]:
        """Return the newest manifest of each round that has no tombstone."""
        place = Place(self._topics.snapshots, 0)
        found: dict[int, SnapshotTaken] = {}
        self._unreadable = []
        self.merged = {}
        end = self._bus.end_offset(place)
        with self._bus.consumer() as consumer:
            consumer.assign([place])
            while consumer.position(place) < end:
                for record in consumer.poll(1.0):
                    self._take(record.key or b"", record.value, record.offset, found)
        return found

    def _take(self, key: bytes, value: bytes | None, offset: int, found: dict[int, SnapshotTaken]) -> None:
        piece = piece_of(key)
        if piece is not None:
            self._take_merged(piece, value, offset)
            return
        round_ = int(key) if key.isdigit() and len(key) < 19 else None
        if round_ is not None:
            found.pop(round_, None)
        if value is None:
            return
        try:
            taken = decode(value, SnapshotTaken)
        except InvalidRecord as error:
            self._unreadable.append(self._at(f"a snapshot's manifest cannot be read: {error.message}", round_, offset))
            return
        if taken.round != round_:
            self._unreadable.append(self._at(f"the manifest of round {taken.round} lies under another key", round_, offset))
            return
        found[taken.round] = taken
        self._offsets[taken.round] = offset

    def _take_merged(self, piece: Piece, value: bytes | None, offset: int) -> None:
        self.merged.pop(piece, None)
        try:
            made = decode(value, StepsMerged) if value is not None else None
        except InvalidRecord as error:
            self._unreadable.append(self._at(f"a merged step's manifest cannot be read: {error.message}", piece[1], offset))
            return
        if made is not None and made.piece != piece:
            what = f"the manifest of rounds {made.first + 1} to {made.last} lies under another key"
            self._unreadable.append(self._at(what, piece[1], offset))
        elif made is not None:
            self.merged[piece] = offset, made

    def findings(self, schema: ModelSchema, lineage: Lineage, progress: Progress, *, load: bool) -> Iterator[Finding]:
        """Compare every snapshot with the log, and with `load` its bytes with its digests. Holds one state at a time."""
        yield from self._unreadable
        chunks = PayloadReader(self._bus, self._topics.snapshot_chunks)
        try:
            for done, (round_, taken) in enumerate(sorted(self.manifests.items())):
                progress("snapshots", done, len(self.manifests))
                what = _contradiction(taken, lineage)
                if not what and load:
                    what = self._fault_in(taken, schema.on(lineage.epochs.of(round_).lattice), chunks)
                if not what:
                    self._summary.snapshots += 1
                elif self._is_there_still(taken):
                    yield self._at(what, round_, self._offsets[round_])
        finally:
            chunks.close()

    def _fault_in(self, taken: SnapshotTaken, schema: ModelSchema, chunks: PayloadReader) -> str:
        entry = RoundEntry(taken.round, None, None, dict(taken.slot_exponents), taken.parameters_digest, taken.state_digest)
        source = Chunks(Lineage(), {taken.round: taken}, None, chunks, chunks, None)
        try:
            tree = load_snapshot(entry, schema, source).tree()
        except (IntegrityError, InvalidRecord) as error:
            return f"the snapshot cannot be loaded: {error.message}"
        same = (tree.parameters_digest, tree.state_digest) == (taken.parameters_digest, taken.state_digest)
        return "" if same else "the snapshot's bytes do not give its digests"

    def _is_there_still(self, taken: SnapshotTaken) -> bool:
        """Whether a snapshot was not pruned or taken anew while it was read."""
        now = SnapshotAudit(self._bus, self._topics, Summary()).manifests.get(taken.round)
        return now is not None and now.attempt == taken.attempt

    def _at(self, what: str, round_: int | None, offset: int) -> Finding:
        return Finding(SNAPSHOTS, what, HINT, self._topics.snapshots, 0, offset, round=round_)


def _contradiction(taken: SnapshotTaken, lineage: Lineage) -> str:
    """Return how a manifest contradicts the log, or ""."""
    if lineage.state_digest(taken.round) is None:
        return "a snapshot of a round that the log does not have"
    said = (taken.parameters_digest, taken.state_digest)
    if said != (lineage.parameters_digest(taken.round), lineage.state_digest(taken.round)):
        return "the snapshot's digests are not the log's"
    return ""
