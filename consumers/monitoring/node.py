"""One node as the health group knows it, and how its state changes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from refold.consumers.monitoring.arrivals import Arrivals
from refold.consumers.monitoring.causes import Levels
from refold.consumers.monitoring.hysteresis import Switch
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.monitoring.readings import Course, Losses, Pace, Sample, Vector, Way
from refold.schemas.health import DEAD, HEALTHY, LEFT

NO_VECTOR: Vector = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A node's state, or what is wrong with it, changed.

    Parameters
    ----------
    before, state
        Of `refold.schemas.health.STATES`.
    kind, cause
        What is wrong and whose fault it is; "" where nothing is.
    evidence
        Measurements that it rests on.
    note
        The same in words.
    """

    client: str
    before: str
    state: str
    kind: str
    cause: str
    evidence: tuple[tuple[str, float], ...] = ()
    note: str = ""


@dataclass(slots=True)
class Node:
    """What is remembered of one node: bounded, whatever it sends.

    Parameters
    ----------
    place
        In `refold.consumers.monitoring.outliers.Pasts`.
    heard_s, stalled_s
        When it was heard last, and how long the bus had been silent altogether by then.
    refusals
        Its last verdicts: whether the update was refused for its content.
    """

    client: str
    place: int
    arrivals: Arrivals
    way: Way
    heard_s: float
    stalled_s: float
    last: Sample
    since_s: float
    pace: Pace = field(default_factory=Pace)
    course: Course = field(default_factory=Course)
    losses: Losses = field(default_factory=Losses)
    state: str = HEALTHY
    kind: str = ""
    cause: str = ""
    note: str = ""
    score: float = 0.0
    beats_in_state: int = 0
    switches: dict[str, Switch] = field(default_factory=dict)
    on: set[str] = field(default_factory=set)
    refusals: deque[bool] = field(default_factory=lambda: deque(maxlen=8))
    readings: Vector = NO_VECTOR
    deviations: Vector = NO_VECTOR
    marked: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    is_banned: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether nothing is expected of it: it is dead, or said farewell."""
        return self.state in (DEAD, LEFT)

    def feed(self, policy: HealthPolicy, found: Levels) -> set[str]:
        """Take in how far out of line the node is, and return in which ways it counts as such."""
        for kind, level in found.items():
            if level >= policy.raise_at and kind not in self.switches:
                self.switches[kind] = Switch(
                    policy.raise_at, policy.clear_at, policy.severe_at, policy.raise_after, policy.clear_after
                )
        on = set()
        for kind, switch in list(self.switches.items()):
            level = found.get(kind, 0.0)
            if switch.feed(level):
                on.add(kind)
            elif level < policy.raise_at:
                del self.switches[kind]
        return on

    def mark(self, kind: str, beats: int) -> None:
        """Take note of what shows in one moment only, such as a clock that was set: it counts for so many beats."""
        self.marked[kind] = beats

    def worn_marks(self) -> set[str]:
        """Return the marks that still count, one beat older."""
        self.marked = {kind: beats - 1 for kind, beats in self.marked.items() if beats > 0}
        return set(self.marked)
