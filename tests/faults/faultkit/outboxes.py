"""Points inside a client's outbox: it is no bus, so its own steps are hooked, in the process that is to die."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from faultkit.buses import AFTER, BEFORE, Hook
from refold.producers.outbox import Outbox, Parcel
from refold.schemas import files


def hook_outboxes(hook: Hook) -> None:
    """Make every outbox of this process pass ``outbox/file`` (its sync), ``outbox/put`` and ``outbox/drop``."""
    put, drop, putting = Outbox.put, Outbox.drop, threading.local()

    def put_passing(self: Outbox, parcel: Parcel) -> None:
        putting.now = True
        try:
            _passing(hook, "outbox/put", lambda: put(self, parcel))
        finally:
            putting.now = False

    def drop_passing(self: Outbox, digest: bytes) -> None:
        if digest in self.digests():
            _passing(hook, "outbox/drop", lambda: drop(self, digest))

    Outbox.put, Outbox.drop = put_passing, drop_passing  # type: ignore[method-assign]
    files.os = _OsThatPasses(hook, putting)  # type: ignore[assignment]


class _OsThatPasses:
    """`os`, but for what makes an outbox's bytes durable; other files are synced as they are."""

    def __init__(self, hook: Hook, putting: threading.local) -> None:
        self._hook, self._putting = hook, putting

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        """Sync; inside `Outbox.put`, passing a point before and after."""
        if getattr(self._putting, "now", False):
            _passing(self._hook, "outbox/file", lambda: os.fsync(descriptor))
        else:
            os.fsync(descriptor)


def _passing(hook: Hook, point: str, do: Callable[[], None]) -> None:
    hook(point, BEFORE)
    do()
    hook(point, AFTER)
