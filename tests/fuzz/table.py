"""Every decoder that takes bytes or words from outside, in one table."""

from __future__ import annotations

from itertools import chain

from tests.fuzz import arrays, batches, files, logs, records, trust, updates, words
from tests.fuzz.decoder import Decoder


def decoders() -> dict[str, Decoder]:
    """Return them by name."""
    parts = (records, arrays, updates, logs, batches, files, words, trust)
    return {decoder.name: decoder for decoder in chain.from_iterable(part.decoders() for part in parts)}
