"""Chunks of `updates` as they pass: a bounded window, and seeking only past it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Record
from refold.bus.payloads import MAX_INDEXED, PayloadReader
from refold.bus.topics import hint_of
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.payload import Payload, PlaceHint, chunk_digest, payload_root

DEFAULT_BYTES = 64 << 20
MAX_OPEN = 1 << 16
"""Most chunks that wait for their manifests and are remembered one by one; of the others the lowest offset is kept."""

GRACE_S = 900.0
"""How long a chunk may wait for its manifest before the topic is cleaned over it."""


_Name = tuple[bytes, bytes]
"""Digests of the writer's key, which may be as long as a record, and of the chunk."""


@dataclass(frozen=True, slots=True)
class _Open:
    """Where a chunk lies that waits for its manifest, and since when."""

    partition: int
    offset: int
    since_s: float
    size_bytes: int


@dataclass(slots=True)
class _Writer:
    """What one writer has open, oldest first."""

    chunks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    size_bytes: int = 0


class ChunkWindow:
    """Remembers chunks until the manifest that names them comes: where they lie, and the bytes of the newest `max_bytes`.

    A chunk whose bytes went is still in the topic and is read again from there, and nothing is deleted over it.

    Parameters
    ----------
    of_one_writer
        How many chunks of one writer are remembered, and how many bytes of them. Of a writer beyond that the oldest are let go
        at once, and the topic may be cleaned over them: who opens uploads without end loses their beginnings.
    """

    def __init__(
        self,
        bus: Bus,
        topic: str,
        clock: Clock,
        *,
        max_bytes: int = DEFAULT_BYTES,
        max_open: int = MAX_OPEN,
        of_one_writer: tuple[int, int] | None = None,
    ) -> None:
        # By writer and digest: two that happen to write the same bytes wait for a manifest each.
        self._open: OrderedDict[_Name, _Open] = OrderedDict()
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self._floor: dict[int, _Open] = {}
        self._clock = clock
        self._of_one_writer = of_one_writer
        self._writers: dict[bytes, _Writer] = {}
        self._bytes = 0
        self._most_bytes = max_bytes
        self._most_open = max_open
        self._reader = PayloadReader(bus, topic, max_indexed=MAX_INDEXED)

    def __len__(self) -> int:
        """Return how many chunks wait."""
        return len(self._open)

    def add(self, record: Record) -> None:
        """Remember a chunk."""
        value = record.value or b""
        digest = chunk_digest(value)
        name = (_writer(record.key), digest)
        if name in self._open:
            return
        self._open[name] = _Open(record.partition, record.offset, self._clock.monotonic_s(), len(value))
        writer = self._writers.setdefault(name[0], _Writer())
        writer.chunks[digest] = None
        writer.size_bytes += len(value)
        if digest not in self._values:
            self._values[digest] = value
            self._bytes += len(value)
        self._let_go_of_too_many(name[0])
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._values.popitem(last=False)[1])
        while self._open and self._is_over(next(iter(self._open.values()))):
            self._forget(next(iter(self._open)))
        while len(self._open) > self._most_open:
            oldest, chunk = next(iter(self._open.items()))
            self._floor.setdefault(chunk.partition, chunk)
            self._forget(oldest)

    def forget(self, payload: Payload, key: bytes | None) -> None:
        """Let go of the chunks of a manifest that was seen, as far as they were written under its key."""
        writer = _writer(key)
        for digest in payload.chunks:
            self._forget((writer, digest))

    def begin_anew(self, partition: int) -> None:
        """Forget a partition, which is read from its beginning again."""
        self._floor.pop(partition, None)
        for name in [name for name, chunk in self._open.items() if chunk.partition == partition]:
            self._forget(name)

    def _let_go_of_too_many(self, key: bytes) -> None:
        writer = self._writers[key]
        most, most_bytes = self._of_one_writer or (len(writer.chunks), writer.size_bytes)
        while len(writer.chunks) > most or (writer.size_bytes > most_bytes and len(writer.chunks) > 1):
            self._forget((key, next(iter(writer.chunks))))

    def _forget(self, name: _Name) -> None:
        chunk = self._open.pop(name, None)
        if chunk is None:
            return
        self._bytes -= len(self._values.pop(name[1], b""))
        writer = self._writers[name[0]]
        del writer.chunks[name[1]]
        writer.size_bytes -= chunk.size_bytes
        if not writer.chunks:
            del self._writers[name[0]]

    def _is_over(self, chunk: _Open) -> bool:
        return chunk.since_s < self._clock.monotonic_s() - GRACE_S

    def read(self, payload: Payload, hint: PlaceHint | None) -> Iterator[bytes]:
        """Yield the chunks of a payload; `forget` them after it.

        Raises
        ------
        InvalidRecord
            ``missing-chunk``, or ``chunk-digest`` where bytes lie in its place that are not those of the digest.
        """
        for index, (digest, length) in enumerate(zip(payload.chunks, payload.lengths, strict=True)):
            found = self._values.get(digest)
            if found is not None and len(found) == length:
                yield found
                continue
            try:
                yield from self._reader.read(_rest(payload, index, hint))
            except IntegrityError as error:
                raise self._fault(payload, hint) from error
            return

    def first_offset(self, payload: Payload, manifest: Record) -> int:
        """Return the lowest offset of the payload's chunks that is known here, or the manifest's own."""
        writer = _writer(manifest.key)
        names = ((writer, digest) for digest in payload.chunks)
        known = [self._open[name].offset for name in names if name in self._open]
        hint = hint_of(manifest)
        if hint is not None:
            known.append(hint.first_offset)
        return min([*known, manifest.offset])

    def open_from(self, partition: int, default: int) -> int:
        """Return the lowest offset of a partition whose chunk still waits for its manifest, within the grace."""
        # A partition is read in order, so the first of its chunks is the lowest.
        waiting = (chunk.offset for chunk in self._open.values() if chunk.partition == partition and not self._is_over(chunk))
        floor = self._floor.get(partition)
        if floor is not None and self._is_over(floor):
            del self._floor[partition]
            floor = None
        return min(next(waiting, default), floor.offset if floor else default, default)

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


def _writer(key: bytes | None) -> bytes:
    """Return what stands for a record's key: no key and an empty one are two writers."""
    return b"" if key is None else chunk_digest(key)
