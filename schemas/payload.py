"""Large values as chunks named by their digests.

Digests are the reference; where the chunks lie is a hint. So a copied, exported or interleaved log reads the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import blake3

from refold.schemas.canonical import Digest, Uint, Within
from refold.schemas.errors import InvalidRecord

INLINE_BYTES = 64 << 10
"""A payload up to this size travels inside the record that names it."""

CHUNK_BYTES = 1_000_000
"""Largest chunk: fits the default limits of a Kafka broker with its key and headers."""

MAX_CHUNKS = 1 << 15


@dataclass(frozen=True, slots=True)
class PlaceHint:
    """Where the chunks were when this was written; `first_offset` and `last_offset` are inclusive."""

    partition: Uint
    first_offset: Uint
    last_offset: Uint


@dataclass(frozen=True, slots=True)
class Payload:
    """A large value: its bytes, or the digests and lengths of its chunks in order.

    Parameters
    ----------
    root
        BLAKE3 over the chunk digests and lengths (over the one inline chunk's likewise).
    inline
        The only chunk, where it is at most `INLINE_BYTES`; then `hint` is None.
    """

    root: Digest
    chunks: Annotated[tuple[Digest, ...], Within(0, MAX_CHUNKS)]
    lengths: Annotated[tuple[Uint, ...], Within(0, MAX_CHUNKS)]
    inline: Annotated[bytes, Within(0, INLINE_BYTES)] | None
    hint: PlaceHint | None

    def __post_init__(self) -> None:
        if len(self.chunks) != len(self.lengths):
            raise InvalidRecord("lengths", f"{len(self.chunks)} chunks but {len(self.lengths)} lengths")
        if any(length > CHUNK_BYTES for length in self.lengths):
            raise InvalidRecord("lengths", f"a chunk is longer than {CHUNK_BYTES:,} bytes")
        if payload_root(self.chunks, self.lengths) != self.root:
            raise InvalidRecord("root-digest", "the root is not that of the chunk digests")
        if self.inline is not None and (self.hint is not None or self.chunks != (chunk_digest(self.inline),)):
            raise InvalidRecord("chunk-digest", "the inline bytes are not those of the digest")
        if self.inline is not None and self.lengths != (len(self.inline),):
            raise InvalidRecord("lengths", f"{len(self.inline):,} inline bytes that say they are {self.lengths[0]:,}")

    @property
    def size_bytes(self) -> int:
        """Sum of the chunks' lengths."""
        return sum(self.lengths)

    def at(self, hint: PlaceHint | None) -> Payload:
        """Return the same payload with another hint; an inline one needs none and stays."""
        return self if self.inline is not None else replace(self, hint=hint)


def chunk_digest(chunk: bytes | memoryview) -> bytes:
    """BLAKE3 of a chunk's bytes, 32 bytes."""
    return blake3.blake3(chunk).digest()


def payload_root(digests: Iterable[bytes], lengths: Iterable[int]) -> bytes:
    """Return the digest that stands for a list of chunks."""
    hasher = blake3.blake3(derive_key_context="refold 2026 payload root")
    for digest, length in zip(digests, lengths, strict=True):
        hasher.update(digest + length.to_bytes(8, "little"))
    return hasher.digest()


def describe(chunks: Sequence[bytes], *, inline_bytes: int = INLINE_BYTES) -> Payload:
    """Return the payload of these chunks; a single small one goes inline."""
    digests, lengths = tuple(map(chunk_digest, chunks)), tuple(map(len, chunks))
    inline = bytes(chunks[0]) if len(chunks) == 1 and lengths[0] <= inline_bytes else None
    return Payload(payload_root(digests, lengths), digests, lengths, inline, None)


def split(data: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> list[bytes]:
    """Cut bytes into chunks; no bytes give one empty chunk."""
    return [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)] or [b""]
