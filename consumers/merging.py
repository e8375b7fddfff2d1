"""Writing merged steps: the sums of 2, 4, 8, … rounds' steps, beside training, by the member that takes snapshots.

A round is never waited for: what is due since the last turn is written together, once a few rounds came.

1. The sums' chunks are acknowledged in `steps`. A crash after this leaves chunks that nothing names.
2. Their manifests are acknowledged in `snapshots`. Only now are they merged steps.

Whoever comes next writes what has no manifest yet; a merged step that is written twice is the same twice, and the newest
manifest counts. A step that cannot be read leaves out the merged steps that it would be part of: replay has other ways.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Producer
from refold.bus.payloads import PayloadReader, Sent, send_payload
from refold.bus.topics import Topics, event_headers
from refold.producers.history import History
from refold.schemas.canonical import encode
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.events import RoundCommitted, StepsMerged
from refold.schemas.merged import merged_key
from refold.state.merging import MergedStep, Part, due, halves, is_line, merge
from refold.state.paths import Piece

log = logging.getLogger("refold.server")

ROUNDS_A_TURN = 8
"""Rounds that must have come before any are merged: so few writes of many steps disturb training little, and a way of fewer
rounds is short without them."""

MOST_ROUNDS_A_TURN = 4 * ROUNDS_A_TURN
"""Rounds looked at in one turn: a snapshot that is due meanwhile waits no longer than for these."""


class Merging:
    """Writes the merged steps that a history lacks.

    Parameters
    ----------
    history
        The caller's, who keeps it fresh.
    """

    def __init__(self, bus: Bus, topics: Topics, history: History, producer: Producer, clock: Clock) -> None:
        self._topics = topics
        self._history = history
        self._producer = producer
        self._clock = clock
        self._partitions = bus.topics()[topics.steps].partitions
        self._reader = PayloadReader(bus, topics.steps)
        self._looked_to = 0
        self._given_up: set[Piece] = set()

    def turn(self) -> bool:
        """Write what is due, some rounds at a time; return whether there were any."""
        head = self._history.lineage.head
        if head - self._looked_to < ROUNDS_A_TURN:
            return False
        head = min(head, self._looked_to + MOST_ROUNDS_A_TURN)
        written: dict[Piece, StepsMerged] = {}
        # 1. Chunks.
        for piece in self._lacking(head):
            try:
                written[piece] = self._write(piece, written)
            except (IntegrityError, InvalidRecord) as error:
                self._given_up.add(piece)
                log.warning("rounds %d to %d are not merged: %s", piece[0] + 1, piece[1], error)
        # 2. Manifests.
        for event in written.values():
            self._send_manifest(event)
        self._producer.flush()
        self._looked_to = head
        return True

    def _lacking(self, head: int) -> Iterator[Piece]:
        """Yield the merged steps that there could be and that have no manifest, each after its halves."""
        rounds = self._history.lineage.rounds
        for piece in due(head, self._looked_to):
            if piece not in self._history.merged and piece not in self._given_up:
                if is_line(piece, lambda round_: rounds[round_].parent if round_ in rounds else None):
                    yield piece
                else:
                    self._given_up.add(piece)

    def _write(self, piece: Piece, written: dict[Piece, StepsMerged]) -> StepsMerged:
        first, last = piece
        lineage = self._history.lineage
        step = self._merge(piece, written)
        exponents = lineage.rounds[last].slot_exponents
        key = str(last).encode()
        parameters = self._send(step.encode(), key)
        slots = self._send(step.encode_slots(), key) if exponents else None
        digests = lineage.state_digest(first) or b"", lineage.state_digest(last) or b""
        placed = parameters.placed(), slots.placed() if slots else None
        return StepsMerged(
            first, last - first, *digests, placed[0], step.exponents, placed[1], exponents, self._clock.wall_ms()
        )

    def _send(self, chunks: Iterable[bytes], key: bytes) -> Sent:
        """Send chunks, however small: the manifests, which every client reads, stay short."""
        sent = send_payload(self._producer, self._topics.steps, self._partitions, chunks, key=key, inline_bytes=0)
        self._producer.flush()
        return sent

    def _merge(self, piece: Piece, written: dict[Piece, StepsMerged]) -> MergedStep:
        """Return the sum, from its two halves, or where they are not to be had from the single steps."""
        exponents = dict(self._history.lineage.rounds[piece[1]].slot_exponents)
        known = {**self._history.merged, **written}
        pair = halves(piece, known)
        if pair is not None:
            try:
                return merge(self._history.schema, [self._part(known[half]) for half in pair], exponents)
            except (IntegrityError, InvalidRecord) as error:
                log.warning("rounds %d to %d are merged from single steps: %s", piece[0] + 1, piece[1], error)
        singles = [self._history.lineage.rounds[round_] for round_ in range(piece[0] + 1, piece[1] + 1)]
        return merge(self._history.schema, [self._part(event) for event in singles if event.step is not None], exponents)

    def _part(self, event: StepsMerged | RoundCommitted) -> Part:
        parameters, slots = event.step, event.slots_step
        assert parameters is not None
        open_slots = (lambda: self._reader.read(slots)) if slots is not None else None
        return Part(event.step_exponents, lambda: self._reader.read(parameters), open_slots)

    def _send_manifest(self, event: StepsMerged) -> None:
        key = merged_key(event.first, event.last)
        headers = event_headers(
            "StepsMerged",
            source=self._topics.snapshots,
            subject=f"rounds {event.first + 1} to {event.last}",
            identity=key.decode(),
            time_ms=event.time_ms,
        )
        self._producer.send(self._topics.snapshots, encode(event), key=key, partition=0, headers=headers)

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()
