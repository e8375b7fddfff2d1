"""Servers as the health group sees them: that they beat, that their groups get on, that memory and disk are not full.

A server's load comes and goes with the rounds, and there are few of them. So their measures are not held against their past
or each other: what is judged is silence, as of every node, and what needs no past. A server that stops in an orderly way says
so by a beat without groups and is known no more; one that is dead is forgotten after an hour.

Whoever may write to `health` can write such records. Where the log has keys only what one of them signed counts, and of one
server only what is newer than the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from refold.consumers.monitoring import kinds
from refold.consumers.monitoring.monitor import Monitor
from refold.consumers.monitoring.node import Change
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.monitoring.readings import Sample
from refold.schemas.events import Genesis
from refold.schemas.health import DEAD, LEFT, NodeHealth
from refold.schemas.keys import SERVER_HEARTBEAT_TAG, key_id, verify_beat
from refold.schemas.updates import FAREWELL, ServerHeartbeat, server_heartbeat_digest

PREFIX = "server "
"""What a server's name begins with among the nodes."""
SERVING = "serving"
HANGING_S, FAILURES = 60.0, 3
"""A group whose last step ended so long ago hangs; one that began again so often in a row gets nothing done."""
MOST_SERVERS, MOST_AT_ONCE = 256, 256
"""Servers that are known, and beats that are looked at in one turn: of each known server, and of all others together."""
FORGOTTEN_S, OLDEST_MS = 3600.0, 600_000
"""A beat of a life not heard before is none of now if it is older than this."""
NEVER, EVEN_LESS = 1e9, 2e9
PATIENCE = 2
"""A server may be silent for so many times as long as a client: servers start beside it, and a turn of its may be long."""


@dataclass(slots=True)
class Servers:
    """All servers of one federation."""

    genesis: Genesis
    policy: HealthPolicy
    ignored: Counter[str] = field(default_factory=Counter)
    monitor: Monitor = field(init=False)
    _last: dict[str, ServerHeartbeat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {name: PATIENCE * getattr(self.policy, name) for name in ("suspect_beats", "dead_beats", "silence_s")}
        silence_alone = replace(self.policy, raise_at=NEVER, severe_at=EVEN_LESS, score_at=NEVER, **least)
        self.monitor = Monitor(silence_alone, self.genesis.policy.heartbeat_ms / 1000, stalls_from=1)

    def take(self, beats: Iterable[ServerHeartbeat], now_s: float, wall_ms: int) -> None:
        """Take in what was just read."""
        for beat in self._believed(beats, wall_ms):
            name = PREFIX + beat.member
            self._last[beat.member] = beat
            self.monitor.take(_sample_of(beat, name), now_s)
            if name in self.monitor.nodes:
                self._mark(name, beat)

    def tick(self, now_s: float) -> list[Change]:
        """Let time pass and return what changed; forget who has left, and who has been dead for long."""
        changes = self.monitor.tick(now_s)
        nodes = self.monitor.nodes.values()
        gone = [n for n in nodes if n.state == LEFT or (n.state == DEAD and now_s - n.heard_s > FORGOTTEN_S)]
        for node in gone:
            self.monitor.forget(node.client)
            self._last.pop(node.client.removeprefix(PREFIX), None)
        return changes

    def resume(self, told: Iterable[NodeHealth], now_s: float) -> None:
        """Take over the states that a predecessor reported."""
        self.monitor.resume((node for node in told if is_server(node)), now_s)

    def _believed(self, beats: Iterable[ServerHeartbeat], wall_ms: int) -> Iterable[ServerHeartbeat]:
        of: dict[str, list[ServerHeartbeat]] = {}
        for beat in beats:
            of.setdefault(beat.member if beat.member in self._last else "", []).append(beat)
        for found in of.values():
            found.sort(key=self._is_next, reverse=True)
            self.ignored["flood"] += max(0, len(found) - MOST_AT_ONCE)
            held = []
            for beat in found[:MOST_AT_ONCE]:
                fault = self._fault(beat, wall_ms)
                if fault:
                    self.ignored[fault] += 1
                else:
                    held.append(beat)
            for beat in sorted(held, key=lambda beat: (beat.time_ms, beat.beat)):
                if self._is_newer(beat, wall_ms):  # Two may have one number.
                    yield beat

    def _is_next(self, beat: ServerHeartbeat) -> tuple[bool, int]:
        last = self._last.get(beat.member)
        return last is not None and beat.life == last.life and 0 < beat.beat - last.beat <= 16, beat.time_ms

    def _is_newer(self, beat: ServerHeartbeat, wall_ms: int) -> bool:
        last = self._last.get(beat.member)
        if last is not None and beat.life == last.life:
            return beat.beat > last.beat
        if last is None and len(self._last) >= MOST_SERVERS:
            return False
        return beat.time_ms > (last.time_ms if last else wall_ms - OLDEST_MS)

    def _fault(self, beat: ServerHeartbeat, wall_ms: int) -> str:
        if not self._is_newer(beat, wall_ms):
            return "old"
        public = {key_id(key): key for key in self.genesis.log_keys}
        if not public:
            return ""
        key = public.get(beat.key_id)
        if key is None or not beat.signature:
            return "unsigned"
        return "" if verify_beat(key, SERVER_HEARTBEAT_TAG, server_heartbeat_digest(beat), beat.signature) else "forged"

    def _mark(self, name: str, beat: ServerHeartbeat) -> None:
        """Mark what one beat shows and needs no past."""
        sick = sick_groups(beat)
        if sick:
            self.monitor.note(name, kinds.GROUP, "; ".join(sick))
        for measure, kind in (("memory_used_ratio", kinds.MEMORY_SHORT), ("disk_used_ratio", kinds.DISK_SHORT)):
            share = beat.condition.measure(measure) if beat.condition else None
            if share is not None and share >= self.policy.full:
                self.monitor.note(name, kind, f"{share:.0%} used")


def is_server(node: NodeHealth) -> bool:
    """Whether a line of a report is about a server."""
    return node.client.startswith(PREFIX) and node.activity in (SERVING, FAREWELL)


def sick_groups(beat: ServerHeartbeat) -> Sequence[str]:
    """Return what is wrong with a server's groups, in words."""
    alive_s, found = beat.beat * beat.interval_ms / 1000, []
    for group in beat.groups:
        if group.failures >= FAILURES:
            found.append(f"{group.group} began again {group.failures} times in a row")
        elif min(group.step_age_ms / 1000, alive_s) > HANGING_S:
            found.append(f"{group.group} has ended no step for {min(group.step_age_ms / 1000, alive_s):,.0f} s")
    return found


def _sample_of(beat: ServerHeartbeat, name: str) -> Sample:
    activity = SERVING if beat.groups else FAREWELL
    # Neither clock nor pauses are judged: a turn over a large model may hold up the thread that beats.
    planned_s = beat.beat * beat.interval_ms / 1000
    # Lives are drawn, not counted; which of two is the later one was settled by time.
    return Sample(name, (0, beat.life), beat.beat, planned_s, activity)
