"""An update that no process survives decoding."""

from __future__ import annotations

import os
import signal

from refold.bus.contract import Record
from refold.consumers.consistency import Finding, inspect
from refold.consumers.inspection import Inspector
from refold.consumers.window import ChunkWindow
from refold.schemas.canonical import decode
from refold.schemas.updates import ClientUpdate

CLIENT = "c0"


def inspect_or_die(inspector: Inspector, window: ChunkWindow, record: Record) -> Finding:
    """Inspect an update; die of the first round's one by `CLIENT`."""
    if record.key == CLIENT.encode() and decode(record.value or b"", ClientUpdate).body.base_round == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return inspect(inspector, window, record)


PATCHES = (
    ("refold.consumers.consistency", "inspect", inspect_or_die),
    ("refold.consumers.intake", "inspect", inspect_or_die),
)
