"""The health group's mind: beats, verdicts and the time that passes go in, changes of state come out.

Nothing here reads a clock or a bus, and nothing is lost with it: a successor that reads the last beats of `health` knows the
same.

What the server sees itself comes first: that a node is silent, that its beats are late, that its updates are refused. What the
node says of itself can only add to that. It can say that it is unwell; it cannot say that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from refold.consumers.monitoring import kinds
from refold.consumers.monitoring.arrivals import Arrivals
from refold.consumers.monitoring.causes import evidence_of, explain, levels, unrelated
from refold.consumers.monitoring.node import Change, Node
from refold.consumers.monitoring.outliers import Pasts
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.monitoring.readings import (
    DELAY,
    LATENCY,
    LOST,
    NAMES,
    SLOWNESS,
    Course,
    Losses,
    Pace,
    Sample,
    Vector,
    Way,
    readings,
    step_between,
)
from refold.consumers.monitoring.silences import Silences
from refold.schemas.health import DEAD, DEGRADED, HEALTHY, LEFT, NETWORK, NODE, REJOINED, SUSPECT, NodeHealth
from refold.schemas.updates import FAREWELL

MOST_NODES = 65_536
"""Of those beyond nothing is known; who is enrolled is bounded by the log, who is not by this."""
STALL_BEATS, MOST_STALLED_BEATS = 1.5, 10.0
"""After so long without a beat of anyone the bus is held to be silent, not the nodes; for so long at most."""
MARK_BEATS = 4
TOGETHER = 0.34
"""So many of those that were alive, silent at once, share a cause: it is the network's."""


@dataclass(slots=True)
class Monitor:
    """All nodes of one federation.

    Parameters
    ----------
    interval_s
        The plan's heartbeat interval, whatever beats claim.
    stalls_from
        With so many alive or more, silence of all at once is the bus's; None for as many as count as peers.
    """

    policy: HealthPolicy
    interval_s: float
    nodes: dict[str, Node] = field(default_factory=dict)
    stalls_from: int | None = None
    bus_is_silent: bool = False
    _pasts: Pasts = field(init=False)
    _silences: Silences = field(default_factory=Silences)
    _at: dict[int, Node] = field(default_factory=dict)
    _waiting: dict[str, Vector] = field(default_factory=dict)
    _changes: list[Change] = field(default_factory=list)
    _heard_any_s: float = -math.inf
    _ticked_s: float = -math.inf
    _stalled_s: float = 0.0
    _stall_s: float = 0.0

    def __post_init__(self) -> None:
        self._pasts = Pasts(self.policy.window, self.policy.warm_up)

    def take(self, sample: Sample, now_s: float) -> None:
        """Take in a beat that was just read and is believed; those of one node in their order."""
        self._heard_any_s = now_s
        node = self.nodes.get(sample.client)
        if node is None:
            if sample.activity != FAREWELL:
                self._welcome(sample, now_s)
            return
        gap_s = now_s - node.heard_s - (self._stalled_s - node.stalled_s)
        if sample.activity == FAREWELL:
            self._take_leave(node, sample, now_s)
            return
        before, node.last = node.last, sample
        step = step_between(before, sample, gap_s, self.interval_s)
        if step is None:
            # Another life: its clock, its way and its task are others; what its machine is like is not.
            node.way.clear()
            node.pace, node.course, node.losses = Pace(), Course(), Losses()
        elif not node.is_gone:
            node.arrivals.add(gap_s / self.interval_s / step.beats)
        self._heard(node, now_s)
        delay_s = 0.0
        if step is not None:
            jump_s = step.clock_jump_s(self.policy.clock_s) or _own_jump(sample, self.policy.clock_s)
            if jump_s:
                node.way.shift(jump_s)
                node.mark(kinds.CLOCK, MARK_BEATS)
        delay_s = node.way.delay_s(now_s - sample.clock_s)
        if step is not None:
            rate = node.pace.rate(sample, now_s)
            lost = node.losses.missing(before, sample, step)
            rise = node.course.rise(sample.loss)
            self._waiting[sample.client] = readings(before, sample, step, rate, delay_s, lost, rise)

    def judged(self, client: str, refused_for_content: bool) -> None:
        """Take in a verdict on an update of a node's."""
        node = self.nodes.get(client)
        if node is not None:
            node.refusals.append(refused_for_content)

    def note(self, client: str, kind: str, note: str) -> None:
        """Take in that something shows in one moment, and how, in words: that a node's log is unusual, for one."""
        node = self.nodes.get(client)
        if node is not None:
            node.notes[kind] = note
            node.mark(kind, MARK_BEATS)

    def keep(self, active: Collection[str]) -> None:
        """Forget nodes that may no longer take part."""
        for client in [client for client in self.nodes if client not in active]:
            self.forget(client)

    def tick(self, now_s: float) -> list[Change]:
        """Let time pass up to now, every beat that came before being taken in, and return what changed."""
        self._note_stall(now_s)
        self._judge_beats()
        if not self.bus_is_silent:
            self._judge_silences(now_s)
        changes, self._changes = self._changes, []
        return changes

    def resume(self, told: Iterable[NodeHealth], now_s: float) -> None:
        """Take over the states that a predecessor reported, so that none is told twice."""
        for health in told:
            if health.client not in self.nodes:
                silent_s = now_s - health.silence_ms / 1000
                self._welcome(Sample(health.client, (-1, b""), 0, silent_s, health.activity, health.round), silent_s)
            node = self.nodes.get(health.client)
            if node is not None and node.state != LEFT:  # It left after that report.
                node.state, node.kind, node.cause, node.note = health.state, health.kind, health.cause, health.note
                self._expect(node)
        self._changes.clear()

    def to_ban(self) -> Iterator[Node]:
        """Yield the nodes that were in a state for so long that policy bans them."""
        for node in self.nodes.values():
            lasted = node.beats_in_state >= self.policy.ban_after_beats
            if node.cause in self.policy.ban and lasted and not node.is_banned:
                yield node

    def silence_s(self, node: Node, now_s: float) -> float:
        """Return how long a node was silent while the bus was not."""
        return now_s - node.heard_s - (self._stalled_s - node.stalled_s)

    def phi(self, node: Node, now_s: float) -> float:
        """Return how surprising that silence is."""
        return node.arrivals.phi(self.silence_s(node, now_s) / self.interval_s)

    def _welcome(self, sample: Sample, now_s: float) -> None:
        if len(self.nodes) >= MOST_NODES:
            return
        policy = self.policy
        arrivals = Arrivals(policy.window, policy.spread_floor)
        way = Way(policy.window)
        way.delay_s(now_s - sample.clock_s)
        place = self._pasts.open()
        node = Node(sample.client, place, arrivals, way, now_s, self._stalled_s, sample, now_s)
        self.nodes[sample.client] = self._at[place] = node
        self._expect(node)

    def forget(self, client: str) -> None:
        """Let go of a node."""
        node = self.nodes.pop(client)
        del self._at[node.place]
        self._silences.gone(node.place)
        self._pasts.close(node.place)
        self._waiting.pop(client, None)

    def _expect(self, node: Node) -> None:
        """Let the time of a node's silence run from when it was heard, or not at all where it is gone."""
        if node.is_gone:
            self._silences.gone(node.place)
        else:
            self._silences.heard(node.place, node.heard_s - node.stalled_s)

    def _heard(self, node: Node, now_s: float) -> None:
        node.heard_s, node.stalled_s = now_s, self._stalled_s
        node.beats_in_state += 1
        self._silences.heard(node.place, now_s - self._stalled_s)
        if node.state == DEAD:
            self._change(node, REJOINED, "", "", note=kinds.ALSO[kinds.RETURNED])
        elif node.state in (SUSPECT, LEFT):
            self._change(node, HEALTHY, "", "", note=kinds.ALSO[kinds.RECOVERED])

    def _take_leave(self, node: Node, sample: Sample, now_s: float) -> None:
        node.last, node.heard_s, node.stalled_s = sample, now_s, self._stalled_s
        node.marked.clear()
        self._waiting.pop(node.client, None)
        if node.state != LEFT:
            self._change(node, LEFT, "", "")

    def _note_stall(self, now_s: float) -> None:
        """Stop the clock that silences are measured by while nobody at all is heard, for a bounded time."""
        since_s, self._ticked_s = max(self._ticked_s, self._heard_any_s), now_s
        quiet_s = now_s - self._heard_any_s
        is_quiet = quiet_s > STALL_BEATS * self.interval_s
        is_stalled = is_quiet and self._silences.expected >= (self.stalls_from or self.policy.peers_least)
        self.bus_is_silent = is_stalled and self._stall_s < MOST_STALLED_BEATS * self.interval_s
        if self.bus_is_silent:
            added_s = now_s - since_s
            self._stall_s += added_s
            self._stalled_s += added_s
        elif not is_stalled:
            self._stall_s = 0.0

    def _judge_beats(self) -> None:
        """Judge all nodes that beat since the last time, at once."""
        waiting, self._waiting = self._waiting, {}
        clients = [client for client in waiting if client in self.nodes]
        if not clients:
            return
        vectors = [waiting[client] for client in clients]
        places = [self.nodes[client].place for client in clients]
        found = self._pasts.deviations(places, vectors, self.policy.peers_least)
        pace = _median_slowness(vectors, self.policy.peers_least)
        rows, scores = found.values.tolist(), found.scores.tolist()
        for client, vector, row, score in zip(clients, vectors, rows, scores, strict=True):
            self._judge_beat(self.nodes[client], vector, tuple(row), score, pace)

    def _judge_beat(self, node: Node, vector: Vector, deviations: Vector, score: float, pace: float) -> None:
        policy = self.policy
        node.readings, node.deviations, node.score = vector, deviations, score
        if max(deviations) < policy.clear_at and not node.switches and score < policy.score_at and _is_quiet(node, vector):
            self._learn(node, vector)
            self._settle(node)
            return
        found = levels(policy, vector, deviations, score, self.interval_s)
        if vector[SLOWNESS] - pace > math.log(policy.slow_factor):
            found[kinds.SLOW] = max(found[kinds.SLOW], policy.raise_at)
        on = node.feed(policy, found) | node.worn_marks()
        if self._is_refused(node):
            on.add(kinds.REFUSED)
        if not on:
            if max(found.values()) < policy.clear_at:
                self._learn(node, vector)
            self._settle(node)
            return
        if node.state == DEGRADED and node.beats_in_state >= policy.adapt_beats:
            self._learn(node, vector)  # What stays as it is becomes usual.
        news = unrelated(node.kind, on - node.on) if node.kind in on else on
        node.on = on
        if not news:
            return
        kind = explain(news, vector, deviations, policy.raise_at)
        if kind != node.kind or node.state == HEALTHY:
            self._degrade(node, kind)

    def _learn(self, node: Node, vector: Vector) -> None:
        self._pasts.learn(node.place, vector)
        node.course.learn()

    def _is_refused(self, node: Node) -> bool:
        blamed = sum(node.refusals)
        return blamed >= self.policy.blamed_least and blamed >= self.policy.blamed_share * len(node.refusals)

    def _settle(self, node: Node) -> None:
        """Let a node with nothing out of line be healthy, once it came back for good."""
        if node.state == DEGRADED or (node.state == REJOINED and node.beats_in_state >= self.policy.rejoined_beats):
            self._change(node, HEALTHY, "", "", note=kinds.ALSO[kinds.RECOVERED])

    def _degrade(self, node: Node, kind: str) -> None:
        measured = {name: value for name, value in zip(NAMES, node.readings, strict=True) if math.isfinite(value)}
        out = {f"{name}_deviation": value for name, value in zip(NAMES, node.deviations, strict=True) if value >= 3}
        evidence = evidence_of({**out, "score": node.score, **measured})
        self._change(node, DEGRADED, kind, kinds.KINDS[kind].cause, evidence=evidence, note=node.notes.get(kind, ""))

    def _judge_silences(self, now_s: float) -> None:
        policy = self.policy
        least_s = max(policy.suspect_beats * self.interval_s, policy.silence_s)
        running_s = now_s - self._stalled_s
        silent = self._silences.longer_than(least_s, running_s)
        if not len(silent):
            return
        # Those that are about to count too: one that is a moment ahead of the others is not alone.
        quiet = len(self._silences.longer_than(0.75 * least_s, running_s))
        together = quiet >= max(2, policy.peers_least // 2) and quiet > TOGETHER * self._silences.expected
        for node in [self._at[place] for place in silent.tolist()]:
            beats, phi = self.silence_s(node, now_s) / self.interval_s, self.phi(node, now_s)
            state = _silent_state(policy, beats, phi, self.interval_s)
            if state and (node.state != SUSPECT or state == DEAD):
                self._fell_silent(node, state, beats, phi, together)

    def _fell_silent(self, node: Node, state: str, beats: float, phi: float, together: bool) -> None:
        # Those that fell silent together die one by one, and still share their cause.
        was_cut_off = node.state == SUSPECT and node.kind == kinds.CUT_OFF
        kind = kinds.CUT_OFF if together or was_cut_off or _way_was_bad(node, self.policy) else kinds.SILENT
        evidence = evidence_of({"silence_beats": beats, "phi": phi})
        # One that is only late may have a slow network as well as a dead process; who was silent for longer is gone.
        cause = NETWORK if kind == kinds.CUT_OFF else NODE if state == DEAD else ""
        self._change(node, state, kind, cause, evidence=evidence)

    def _change(
        self, node: Node, state: str, kind: str, cause: str, *, evidence: tuple[tuple[str, float], ...] = (), note: str = ""
    ) -> None:
        self._changes.append(Change(node.client, node.state, state, kind, cause, evidence, note))
        if state in (DEAD, HEALTHY, LEFT):
            node.switches.clear()
            node.on = set()
        if state != node.state:
            node.beats_in_state, node.since_s = 0, node.heard_s
        node.state, node.kind, node.cause, node.note = state, kind, cause, note
        self._expect(node)


def _own_jump(sample: Sample, clock_s: float) -> float:
    """Return how far the node itself says its clock was set, where its beat came too irregularly to tell."""
    said_s = sample.measures.get("clock_step_s", 0.0)
    return said_s if abs(said_s) > clock_s else 0.0


def _is_quiet(node: Node, vector: Vector) -> bool:
    return not node.marked and not any(node.refusals) and math.inf not in vector


def _silent_state(policy: HealthPolicy, beats: float, phi: float, interval_s: float) -> str:
    least = max(policy.dead_beats, 2 * policy.silence_s / interval_s)
    if beats >= least and phi >= policy.dead_phi:
        return DEAD
    return SUSPECT if phi >= policy.suspect_phi else ""


def _way_was_bad(node: Node, policy: HealthPolicy) -> bool:
    """Whether the last that was heard of a node was that its way to the bus is bad."""
    if node.kind == kinds.LATE:
        return True
    return bool(node.deviations) and max(node.deviations[i] for i in (DELAY, LATENCY, LOST)) >= policy.raise_at


def _median_slowness(vectors: list[Vector], peers_least: int) -> float:
    """Return how slow the middle of the peers is, or infinity where there are too few to say."""
    known = sorted(vector[SLOWNESS] for vector in vectors if math.isfinite(vector[SLOWNESS]))
    return known[len(known) // 2] if len(known) >= peers_least else math.inf
