"""The newest model that a client held, on its disk: who comes back fetches what came after, not the whole model.

A cache and no more: it is written without waiting for the disk, and taken only where the log's digest of that round says that
it is whole. One that is damaged, cut off or of another federation costs a snapshot.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path

import numpy as np

from refold.producers.lineage import Lineage
from refold.producers.outbox import owner_of
from refold.schemas.files import replacing
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema
from refold.state.model_state import ModelState

log = logging.getLogger("refold.client")

MAGIC = b"refold\x04\x01"
_HEAD = struct.Struct("<8s32sQ")


class HeldState:
    """One file in the outbox's folder.

    Parameters
    ----------
    folder
        The outbox's. Other clients may have theirs in it.
    """

    def __init__(self, folder: Path, federation: str, client: str) -> None:
        self.path = folder / f"{owner_of(federation, client).hex()}.model"

    def write(self, state: ModelState) -> None:
        """Keep a round's parameters in place of those before; where there is no room, that is said and nothing is kept."""
        try:
            with replacing(self.path, durable=False) as file:
                file.write(_HEAD.pack(MAGIC, state.schema.digest, state.round))
                for array in state.parameters:
                    file.write(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).data)
        except OSError as error:
            log.warning("the model is not kept on disk: %s", error)

    def read(self, lineage: Lineage) -> ModelState | None:
        """Return the state that was kept, if the log knows its round by the very digest."""
        if lineage.opened is None:
            return None
        try:
            with self.path.open("rb") as file:
                magic, digest, round_ = _HEAD.unpack(file.read(_HEAD.size).ljust(_HEAD.size, b"\0"))
                schema = lineage.schema_of(round_)
                if magic != MAGIC or digest != schema.digest or os.fstat(file.fileno()).st_size != _bytes_of(schema):
                    return None
                arrays = [np.fromfile(file, f"<i{width // 8}", size) for size, width in _shapes(schema)]
        except OSError:
            return None
        native: list[Integers] = [array.astype(array.dtype.newbyteorder("="), copy=False) for array in arrays]
        state = ModelState(schema, round_, native)
        return state if state.parameters_digest == lineage.parameters_digest(round_) else None


def _shapes(schema: ModelSchema) -> list[tuple[int, int]]:
    layout = Layout.of(schema)
    return list(zip(layout.sizes, layout.widths, strict=True))


def _bytes_of(schema: ModelSchema) -> int:
    return _HEAD.size + Layout.of(schema).size_bytes
