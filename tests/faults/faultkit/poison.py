"""An update that no process survives decoding."""

from __future__ import annotations

import os
import resource
import signal

import numpy as np
import psutil

from refold.bus.contract import Record
from refold.consumers.consistency import Finding, SealingFault, inspect
from refold.consumers.inspection import Inspector
from refold.consumers.window import ChunkWindow
from refold.schemas.canonical import decode
from refold.schemas.updates import ClientUpdate

CLIENT = "c0"
MODULES = ("refold.consumers.consistency", "refold.consumers.intake")
SCANT_BYTES, BOMB_BYTES = 16 << 20, 1 << 30


def inspect_or_die(inspector: Inspector, window: ChunkWindow, record: Record, sealing_fault: SealingFault) -> Finding:
    """Inspect an update; die of the first round's one by `CLIENT`."""
    if record.key == CLIENT.encode() and decode(record.value or b"", ClientUpdate).body.base_round == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return inspect(inspector, window, record, sealing_fault)


def inspect_beyond_memory(inspector: Inspector, window: ChunkWindow, record: Record, sealing_fault: SealingFault) -> Finding:
    """Inspect an update; while it is the first round's one by `CLIENT`, the process may take hardly any more memory."""
    if record.key != CLIENT.encode() or decode(record.value or b"", ClientUpdate).body.base_round != 0:
        return inspect(inspector, window, record, sealing_fault)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + SCANT_BYTES, before[1]))
    try:
        np.ones(BOMB_BYTES, np.uint8)  # What it would unfold to.
        return inspect(inspector, window, record, sealing_fault)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


OUT_OF_MEMORY = tuple((module, "inspect", inspect_beyond_memory) for module in MODULES)
PATCHES = tuple((module, "inspect", inspect_or_die) for module in MODULES)
