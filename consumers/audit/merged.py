"""Merged steps: each is the sum of the steps of its rounds, as the log has them, integer by integer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from refold.bus.closing import close_all
from refold.bus.contract import Bus
from refold.bus.payloads import PayloadReader
from refold.bus.topics import Topics
from refold.consumers.audit.findings import SNAPSHOTS, Finding, Progress, Summary
from refold.consumers.audit.snapshots import SnapshotAudit
from refold.producers.lineage import Lineage
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.events import RoundCommitted, StepsMerged
from refold.schemas.model import ModelSchema
from refold.state.merging import MergedStep, Part, halves, is_line, merge
from refold.state.paths import Piece

HINT = "nothing is lost, a rebuild takes another way"


class MergedAudit:
    """Sums again what was merged, short ones first, so that a long one needs only its halves."""

    def __init__(self, bus: Bus, topics: Topics, summary: Summary, manifests: dict[Piece, tuple[int, StepsMerged]]) -> None:
        self._bus = bus
        self._topics = topics
        self._summary = summary
        self._manifests = manifests
        self._right: set[Piece] = set()
        self._steps = PayloadReader(bus, topics.steps)
        self._chunks = PayloadReader(bus, topics.snapshot_chunks)

    def findings(self, schema: ModelSchema, lineage: Lineage, progress: Progress, *, load: bool) -> Iterator[Finding]:
        """Compare every merged step with the log, and with `load` its integers with the sum. Holds two steps at a time."""
        try:
            short_first = sorted(self._manifests, key=lambda piece: (piece[1] - piece[0], piece))
            for done, piece in enumerate(short_first):
                progress("merged steps", done, len(short_first))
                offset, event = self._manifests[piece]
                what = _contradiction(event, lineage) or (self._fault_in(event, schema, lineage) if load else "")
                if what and self._is_there_still(event):
                    yield Finding(SNAPSHOTS, what, HINT, self._topics.snapshots, 0, offset, round=event.last)
                elif not what:
                    self._right.add(piece)
                    self._summary.merged += 1
        finally:
            close_all(self._steps, self._chunks)

    def _is_there_still(self, event: StepsMerged) -> bool:
        """Whether a merged step was not let go or written anew while it was read."""
        now = SnapshotAudit(self._bus, self._topics, Summary()).merged.get(event.piece)
        return now is not None and now[1].attempt == event.attempt

    def _fault_in(self, event: StepsMerged, schema: ModelSchema, lineage: Lineage) -> str:
        name = f"the merged step of rounds {event.first + 1} to {event.last}"
        try:
            found = merge(schema, [self._part(event)], dict(event.slot_exponents))
        except (IntegrityError, InvalidRecord) as error:
            return f"{name} cannot be read: {error.message}"
        try:
            due = self._sum(event, schema, lineage)
        except (IntegrityError, InvalidRecord):
            return ""  # A step that cannot be read is found where its round is replayed.
        return "" if found.equals(due) else f"{name} is not the sum of its rounds' steps"

    def _sum(self, event: StepsMerged, schema: ModelSchema, lineage: Lineage) -> MergedStep:
        pair = halves(event.piece, self._right)
        parts: Iterable[StepsMerged | RoundCommitted]
        if pair is not None:
            parts = [self._manifests[half][1] for half in pair]
        else:
            rounds = [lineage.rounds[round_] for round_ in range(event.first + 1, event.last + 1)]
            parts = [made for made in rounds if made.step is not None]
        return merge(schema, [self._part(part) for part in parts], dict(event.slot_exponents))

    def _part(self, event: StepsMerged | RoundCommitted) -> Part:
        parameters, slots = event.step, event.slots_step
        assert parameters is not None
        reader = self._chunks if isinstance(event, StepsMerged) and event.attempt else self._steps
        open_slots: Callable[[], Iterable[bytes]] | None = (lambda: reader.read(slots)) if slots is not None else None
        return Part(event.step_exponents, lambda: reader.read(parameters), open_slots)


def _contradiction(event: StepsMerged, lineage: Lineage) -> str:
    """Return how a manifest contradicts the log, or ""."""
    if not is_line(
        (event.first, event.last), lambda round_: lineage.rounds[round_].parent if round_ in lineage.rounds else None
    ):
        return f"a merged step of rounds {event.first + 1} to {event.last}, which do not follow one another"
    if (event.first_digest, event.last_digest) != (lineage.state_digest(event.first), lineage.state_digest(event.last)):
        return f"the digests of the merged step of rounds {event.first + 1} to {event.last} are not the log's"
    if dict(event.slot_exponents) != dict(lineage.rounds[event.last].slot_exponents):
        return f"the merged step of rounds {event.first + 1} to {event.last} is of other slots"
    return ""
