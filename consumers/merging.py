"""Writing merged steps: the sums of 2, 4, 8, … rounds' steps, beside training, by the member that takes snapshots.

A round is never waited for: what is due since the last turn is written together, once a few rounds came.

1. The sums' chunks are acknowledged in `snapshot-chunks`, under keys of this attempt. A crash after this leaves chunks that
   nothing names; the sweeper of snapshots removes them.
2. Their manifests are acknowledged in `snapshots`. Only now are they merged steps.
3. Tombstones of the manifests that are not kept any longer. A crash after this leaves chunks for the sweeper.
4. Tombstones of their chunks.

Whoever comes next writes what has no manifest yet; a merged step that is written twice is the same twice, and the newest
manifest counts. A step that cannot be read leaves out the merged steps that it would be part of: replay has other ways.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping

from refold.bus.clock import Clock
from refold.bus.closing import close_all
from refold.bus.contract import Bus, Producer
from refold.bus.payloads import PayloadReader, Sent, send_payload
from refold.bus.topics import Topics, event_headers
from refold.producers.history import History
from refold.schemas.canonical import encode
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.events import RoundCommitted, StepsMerged
from refold.schemas.merged import merged_chunk_key, merged_key
from refold.state.merging import MergedStep, Part, due, is_kept, is_line, merge, spanning
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
        self._partitions = bus.topics()[topics.snapshot_chunks].partitions
        self._steps = PayloadReader(bus, topics.steps)
        self._chunks = PayloadReader(bus, topics.snapshot_chunks)
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
            self._send_manifest(event.piece, event)
        self._producer.flush()
        self._looked_to = head
        self._drop()
        return True

    def _drop(self) -> None:
        """Let go of what is not kept."""
        head = self._history.lineage.head
        dropped = [event for piece, event in self._history.merged.items() if not is_kept(piece, head)]
        # 3. Their manifests' tombstones.
        for event in dropped:
            self._send_manifest(event.piece, None)
        self._producer.flush()
        # 4. Their chunks'.
        for event in dropped:
            for part, payload in ((b"p", event.step), (b"s", event.slots_step)):
                if payload is None or payload.hint is None or not event.attempt:
                    continue  # In `steps`, where nothing is removed.
                for index in range(len(payload.chunks)):
                    key = merged_chunk_key(event.piece, event.attempt, part, index)
                    self._producer.send(self._topics.snapshot_chunks, None, key=key, partition=payload.hint.partition)
        self._producer.flush()

    def _lacking(self, head: int) -> Iterator[Piece]:
        """Yield the merged steps that there could be and that have no manifest, each after its halves."""
        rounds = self._history.lineage.rounds
        for piece in due(head, self._looked_to):
            if not is_kept(piece, self._history.lineage.head):
                continue
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
        attempt = os.urandom(8)
        parameters = self._send(step.encode(), piece, attempt, b"p")
        slots = self._send(step.encode_slots(), piece, attempt, b"s") if exponents else None
        digests = lineage.state_digest(first) or b"", lineage.state_digest(last) or b""
        placed = parameters.placed(), slots.placed() if slots else None
        return StepsMerged(
            first,
            last - first,
            *digests,
            placed[0],
            step.exponents,
            placed[1],
            exponents,
            self._clock.wall_ms(),
            attempt,
        )

    def _send(self, chunks: Iterable[bytes], piece: Piece, attempt: bytes, part: bytes) -> Sent:
        """Send chunks, however small: the manifests, which every client reads, stay short."""
        sent = send_payload(
            self._producer,
            self._topics.snapshot_chunks,
            self._partitions,
            chunks,
            key=merged_key(*piece),
            key_of=lambda index: merged_chunk_key(piece, attempt, part, index),
            inline_bytes=0,
        )
        self._producer.flush()
        return sent

    def _merge(self, piece: Piece, written: dict[Piece, StepsMerged]) -> MergedStep:
        """Return the sum, from as few and long steps as there are, or where they cannot be read from the single ones."""
        known = {**self._history.merged, **written}
        try:
            return self._sum(piece, known)
        except (IntegrityError, InvalidRecord) as error:
            log.warning("rounds %d to %d are merged from single steps: %s", piece[0] + 1, piece[1], error)
        return self._sum(piece, {})

    def _sum(self, piece: Piece, known: Mapping[Piece, StepsMerged]) -> MergedStep:
        rounds = self._history.lineage.rounds
        events = [known[part] if part in known else rounds[part[1]] for part in spanning(piece, known)]
        parts = [self._part(event) for event in events if event.step is not None]
        return merge(self._history.schema, parts, dict(rounds[piece[1]].slot_exponents))

    def _part(self, event: StepsMerged | RoundCommitted) -> Part:
        parameters, slots = event.step, event.slots_step
        assert parameters is not None
        reader = self._chunks if isinstance(event, StepsMerged) and event.attempt else self._steps
        open_slots = (lambda: reader.read(slots)) if slots is not None else None
        return Part(event.step_exponents, lambda: reader.read(parameters), open_slots)

    def _send_manifest(self, piece: Piece, event: StepsMerged | None) -> None:
        """Send a manifest, or its tombstone."""
        key = merged_key(*piece)
        headers = event_headers(
            "StepsMerged",
            source=self._topics.snapshots,
            subject=f"rounds {piece[0] + 1} to {piece[1]}",
            identity=key.decode(),
            time_ms=event.time_ms if event is not None else self._clock.wall_ms(),
        )
        value = encode(event) if event is not None else None
        self._producer.send(self._topics.snapshots, value, key=key, partition=0, headers=headers)

    def close(self) -> None:
        """Let go of the readers."""
        close_all(self._steps, self._chunks)
