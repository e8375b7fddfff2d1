"""Points inside a client's outbox: it is no bus, so its own steps are hooked, in the process that is to die."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from faultkit.buses import AFTER, BEFORE, Hook
from refold.producers import outbox
from refold.producers.outbox import Outbox, Parcel


def hook_outboxes(hook: Hook) -> None:
    """Make every outbox of this process pass ``outbox/file`` (its sync), ``outbox/put`` and ``outbox/drop``."""
    put, drop = Outbox.put, Outbox.drop

    def put_passing(self: Outbox, parcel: Parcel) -> None:
        _passing(hook, "outbox/put", lambda: put(self, parcel))

    def drop_passing(self: Outbox, digest: bytes) -> None:
        if digest in self.digests():
            _passing(hook, "outbox/drop", lambda: drop(self, digest))

    Outbox.put, Outbox.drop = put_passing, drop_passing  # type: ignore[method-assign]
    outbox.os = _OsThatPasses(hook)  # type: ignore[assignment]


class _OsThatPasses:
    """`os`, but for what makes bytes durable."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        """Sync, passing a point before and after."""
        _passing(self._hook, "outbox/file", lambda: os.fsync(descriptor))


def _passing(hook: Hook, point: str, do: Callable[[], None]) -> None:
    hook(point, BEFORE)
    do()
    hook(point, AFTER)
