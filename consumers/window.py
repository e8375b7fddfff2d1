"""Chunks of `updates` as they pass: a bounded window, and seeking only past it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Record
from refold.bus.payloads import PayloadReader
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.payload import Payload, PlaceHint, chunk_digest, payload_root

DEFAULT_BYTES = 64 << 20
GRACE_S = 900.0
"""How long a chunk may wait for its manifest before the topic is cleaned over it."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    partition: int
    offset: int
    value: bytes
    since_s: float


class ChunkWindow:
    """Remembers chunks until the manifest that names them comes, at most `max_bytes` of them; the oldest go first.

    A chunk that went is still in the topic and is read again from there.
    """

    def __init__(self, bus: Bus, topic: str, clock: Clock, *, max_bytes: int = DEFAULT_BYTES) -> None:
        self._chunks: OrderedDict[bytes, _Chunk] = OrderedDict()
        self._clock = clock
        self._bytes = 0
        self._most = max_bytes
        self._reader = PayloadReader(bus, topic)

    def add(self, record: Record) -> None:
        """Remember a chunk."""
        value = record.value or b""
        digest = chunk_digest(value)
        if digest in self._chunks:
            return
        self._chunks[digest] = _Chunk(record.partition, record.offset, value, self._clock.monotonic_s())
        self._bytes += len(value)
        while self._bytes > self._most:
            _, oldest = self._chunks.popitem(last=False)
            self._bytes -= len(oldest.value)

    def read(self, payload: Payload, hint: PlaceHint | None) -> Iterator[bytes]:
        """Yield the chunks of a payload and forget them.

        Raises
        ------
        InvalidRecord
            ``missing-chunk``, or ``chunk-digest`` where bytes lie in its place that are not those of the digest.
        """
        for index, digest in enumerate(payload.chunks):
            found = self._chunks.pop(digest, None)
            if found is not None:
                self._bytes -= len(found.value)
                yield found.value
                continue
            try:
                yield from self._reader.read(_rest(payload, index, hint))
            except IntegrityError as error:
                raise self._fault(payload, hint) from error
            return

    def first_offset(self, payload: Payload, hint: PlaceHint | None, manifest_offset: int) -> int:
        """Return the lowest offset of the payload's chunks that is known here, or the manifest's own."""
        known = [self._chunks[digest].offset for digest in payload.chunks if digest in self._chunks]
        if hint is not None:
            known.append(hint.first_offset)
        return min([*known, manifest_offset])

    def open_from(self, partition: int, default: int) -> int:
        """Return the lowest offset of a partition whose chunk still waits for its manifest, within the grace."""
        since = self._clock.monotonic_s() - GRACE_S
        waiting = (c.offset for c in self._chunks.values() if c.partition == partition and c.since_s >= since)
        return min(waiting, default=default)

    def _fault(self, payload: Payload, hint: PlaceHint | None) -> InvalidRecord:
        """Tell bytes that changed on the way from bytes that never came."""
        if hint is not None and hint.last_offset - hint.first_offset + 1 >= len(payload.chunks):
            return InvalidRecord("chunk-digest", "a chunk's bytes are not those that the client signed")
        return InvalidRecord("missing-chunk", "a chunk that the manifest names never came")

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()


def _rest(payload: Payload, start: int, hint: PlaceHint | None) -> Payload:
    """Return what is left of a payload from a chunk on, to be found near the hint."""
    chunks, lengths = payload.chunks[start:], payload.lengths[start:]
    return Payload(payload_root(chunks, lengths), chunks, lengths, None, hint)
