"""The kept corpus: ``corpus/<decoder>/<outcome>-<digest>.bin``, each a msgpack array of an input's parts.

What a defect's input is called begins with ``defect``; it stays after the defect is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import blake3
import msgpack

from tests.fuzz.decoder import Input

FOLDER = Path(__file__).parent / "corpus"
MOST_KEPT_BYTES = 8 << 10
"""Larger inputs are not kept as samples of an outcome; a defect's is in any case."""


def load(decoder: str) -> Iterator[tuple[str, Input]]:
    """Yield a decoder's kept inputs by their files' names."""
    for path in sorted((FOLDER / decoder).glob("*.bin")):
        yield path.stem, tuple(msgpack.unpackb(path.read_bytes()))


def keep(decoder: str, outcome: str, value: Input) -> Path | None:
    """Write an input down, unless it is there; return its file."""
    data: bytes = msgpack.packb(list(value), use_bin_type=True)
    if outcome != "defect" and len(data) > MOST_KEPT_BYTES:
        return None
    word = re.sub(r"[^A-Za-z0-9]+", "-", outcome)
    path = FOLDER / decoder / f"{word}-{blake3.blake3(data).hexdigest()[:10]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
