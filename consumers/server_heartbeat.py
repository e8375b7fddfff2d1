"""Heartbeats of a server: which groups it runs, how they get on, and how its machine and its log are."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from refold.bus.clock import Clock
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.consumers.server import AtWork
from refold.producers.heartbeat import SIGNATURE_BYTES, Beating, Letter
from refold.producers.reporting import BEAT_BYTES
from refold.schemas.canonical import encode
from refold.schemas.held import StateHeld
from refold.schemas.keys import SERVER_HEARTBEAT_TAG, SigningKey
from refold.schemas.updates import GroupStatus, ServerHeartbeat, server_heartbeat_digest

NEVER_MS = 2**62
"""The age of a step that was never taken."""


class ServerHeartbeatThread(Beating):
    """Beats for a server. Its logger ``refold`` is watched: what its groups warn of goes out as a digest.

    Parameters
    ----------
    members
        Tells how the members of this process get on.
    holds
        Tells which states they keep between rounds.
    key
        The log's key; None where the log has none, and nobody can know the beats for genuine.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        member: str,
        members: Callable[[], Sequence[AtWork]],
        key: SigningKey | None,
        *,
        holds: Callable[[], tuple[StateHeld, ...]] = tuple,
        interval_s: float,
        clock: Clock,
        folder: Path | None = None,
    ) -> None:
        super().__init__(bus, topics, member, interval_s=interval_s, clock=clock, folder=folder)
        self._member = member
        self._members = members
        self._holds = holds
        self._key = key
        self._life = os.urandom(8)
        self._beat = 0
        self._is_leaving = False
        self.reporter.watch(logger="refold")
        self._thread.start()

    def _next(self, lateness_s: float) -> Letter:
        bare = self._bare()
        self._beat += 1
        beat = replace(bare, condition=self.reporter.condition(lateness_s, BEAT_BYTES - SIGNATURE_BYTES - len(encode(bare))))
        if self._key is not None:
            beat = replace(beat, signature=self._key.sign(SERVER_HEARTBEAT_TAG, server_heartbeat_digest(beat)))
        return Letter("ServerHeartbeat", self._member, beat.beat, beat.time_ms, encode(beat))

    def leave(self) -> None:
        """Let the last beat say that this server stops in an orderly way: it has no groups."""
        self._is_leaving = True

    def _farewell(self) -> Letter | None:
        return self._next(0.0) if self._is_leaving else None

    def _bare(self) -> ServerHeartbeat:
        key_id = self._key.key_id if self._key is not None else bytes(8)
        members = () if self._is_leaving else self._members()
        groups = tuple(GroupStatus(one.group, _ms(one.step_age_s), one.failures) for one in members)
        return ServerHeartbeat(
            self._topics.federation,
            self._member,
            self._life,
            self._beat,
            int(self._interval_s * 1000),
            groups[:64],
            self._clock.wall_ms(),
            key_id,
            b"",
            None,
            self._holds(),
        )


def _ms(age_s: float) -> int:
    return NEVER_MS if math.isinf(age_s) else max(0, int(age_s * 1000))
