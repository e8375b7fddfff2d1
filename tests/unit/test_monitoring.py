"""Which node fails, and why: the failure detector, the outliers and the causes, by a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from refold.consumers.monitoring import kinds
from refold.consumers.monitoring.arrivals import Arrivals
from refold.consumers.monitoring.hysteresis import Switch
from refold.consumers.monitoring.monitor import Monitor
from refold.consumers.monitoring.node import Change
from refold.consumers.monitoring.outliers import Pasts
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.monitoring.readings import Sample
from refold.schemas.errors import UsageError
from refold.schemas.health import CAUSES, STATES

NODES = tuple(f"n{number}" for number in range(8))
VICTIM = "n3"
Fault = Callable[[Sample], Sample | None]


class Ward:
    """Nodes that beat once a second, of which one may be ill."""

    def __init__(self, rng: np.random.Generator, nodes: tuple[str, ...] = NODES) -> None:
        self.rng, self.nodes = rng, nodes
        self.monitor = Monitor(HealthPolicy(), 1.0)
        self.now_s = 1000.0
        self.beat = 0
        self.steps = dict.fromkeys(nodes, 0.0)

    def run(self, beats: int, fault: Fault | None = None, *, late_s: float = 0.0, speed: float = 1.0) -> list[Change]:
        changes = []
        for _ in range(beats):
            for client in self.nodes:
                self.steps[client] += 20 * (speed if client == VICTIM else 1.0)
                sample = self._sample(client)
                ill = fault(sample) if fault and client == VICTIM else sample
                if ill is not None:
                    self.monitor.take(ill, self.now_s + (late_s if client == VICTIM else self.rng.uniform(0, 0.02)))
            self.beat += 1
            for _ in range(4):
                self.now_s += 0.25
                changes += self.monitor.tick(self.now_s)
        return changes

    def _sample(self, client: str) -> Sample:
        measures = {
            "bus_latency_s": 0.004 * self.rng.lognormal(0, 0.2),
            "beat_lateness_s": 0.001,
            "memory_used_ratio": 0.3 + self.rng.normal(0, 0.002),
            "disk_used_ratio": 0.5,
        }
        loss = 0.4 * self.rng.lognormal(0, 0.05)
        return Sample(client, (1, b"s"), self.beat, self.now_s, "training", 3, measures, steps=self.steps[client], loss=loss)


@pytest.fixture
def ward(rng: np.random.Generator) -> Ward:
    made = Ward(rng)
    assert made.run(30) == [], "healthy nodes are not told of"
    return made


def measuring(**measures: float) -> Fault:
    return lambda sample: replace(sample, measures={**sample.measures, **measures})


@pytest.mark.parametrize(
    ("fault", "kind", "cause"),
    [
        (measuring(memory_used_ratio=0.45), "memory", "node"),
        (measuring(disk_used_ratio=0.62), "disk", "node"),
        (measuring(cpu_throttled_ratio=0.8, beat_lateness_s=0.2, bus_latency_s=0.1), "starved", "node"),
        (measuring(bus_latency_s=0.4), "late", "network"),
        (lambda sample: replace(sample, left_out=sample.beat), "late", "network"),
        (lambda sample: replace(sample, loss=2.3), "loss", "data"),
        (lambda sample: replace(sample, loss=float("inf")), "loss", "data"),
        (lambda sample: replace(sample, clock_s=sample.clock_s + 3600), "clock", "node"),
        (lambda sample: replace(sample, clock_s=sample.clock_s - 3e8), "clock", "node"),
        (lambda sample: replace(sample, errors=10 * sample.beat), "log", "node"),
    ],
)
def test_what_is_wrong_with_a_node_is_named_within_two_beats(ward: Ward, fault: Fault, kind: str, cause: str) -> None:
    if kind == "log":
        ward.run(20, lambda sample: replace(sample, errors=0))
    if kind == "starved":
        ward.run(20, measuring(cpu_throttled_ratio=0.0))
    changes = ward.run(3, fault)
    assert [(change.client, change.kind, change.cause) for change in changes] == [(VICTIM, kind, cause)]
    assert changes[0].state == "degraded"
    assert len(changes[0].evidence) > 2
    assert [(change.client, change.state) for change in ward.run(10)] == [(VICTIM, "healthy")]


def test_a_node_that_falls_silent_is_suspect_then_dead_then_back(ward: Ward) -> None:
    changes = ward.run(8, lambda _: None)
    assert [(change.client, change.state, change.cause) for change in changes] == [
        (VICTIM, "suspect", ""),
        (VICTIM, "dead", "node"),
    ]
    restarted: Fault = lambda sample: replace(sample, session=(2, b"t"))  # noqa: E731
    assert [change.state for change in ward.run(6, restarted)] == ["rejoined", "healthy"]


def test_beats_that_were_made_and_never_came_were_lost_on_the_way(ward: Ward) -> None:
    ward.run(8, lambda _: None)
    assert [(change.state, change.cause) for change in ward.run(4)] == [("rejoined", ""), ("degraded", "network")]


def test_a_node_that_was_slowed_down_alone_is_a_straggler(ward: Ward) -> None:
    changes = ward.run(5, speed=0.1)
    assert [(change.kind, change.cause) for change in changes] == [("slow", "straggler")]


def test_a_federation_that_is_slow_altogether_blames_nobody(ward: Ward) -> None:
    ward.nodes, all_ill = NODES, measuring(bus_latency_s=0.5, beat_lateness_s=0.3)
    plain = ward._sample

    def slow(client: str) -> Sample:
        ill = all_ill(plain(client))
        assert ill is not None
        return ill

    ward._sample = slow  # type: ignore[method-assign]
    assert ward.run(10) == []


def test_silence_after_a_bad_way_is_the_networks(ward: Ward) -> None:
    ward.run(3, measuring(bus_latency_s=0.9))
    assert [(c.state, c.kind, c.cause) for c in ward.run(2, lambda _: None)] == [("suspect", "cut-off", "network")]


def test_those_that_fall_silent_together_share_their_cause_to_the_end(ward: Ward) -> None:
    ward.nodes = NODES[:4]
    changes = ward.run(8)
    assert {(change.state, change.cause) for change in changes} == {("suspect", "network"), ("dead", "network")}
    assert len(changes) == 8


def test_beats_that_are_longer_on_the_way_are_late_whatever_the_node_says_of_its_network(ward: Ward) -> None:
    changes = ward.run(3, late_s=0.9)
    assert {(change.kind, change.cause) for change in changes} == {("late", "network")}


def test_nobody_is_blamed_where_the_bus_itself_is_silent(ward: Ward) -> None:
    ward.nodes = ()
    assert ward.run(6) == []
    assert ward.monitor.bus_is_silent
    ward.nodes = NODES
    assert ward.run(4) == []
    assert not ward.monitor.bus_is_silent


def test_a_bus_that_stays_silent_is_no_excuse_for_ever(ward: Ward) -> None:
    ward.nodes = ()
    assert {(change.state, change.cause) for change in ward.run(25)} == {("suspect", "network"), ("dead", "network")}


def test_verdicts_outweigh_what_a_node_says(ward: Ward) -> None:
    for _ in range(3):
        ward.monitor.judged(VICTIM, True)
    assert [(change.kind, change.cause) for change in ward.run(2)] == [("refused", "data")]
    assert ward.run(3, measuring(memory_used_ratio=0.1)) == [], "that it feels well is no answer"
    for _ in range(8):
        ward.monitor.judged(VICTIM, False)
    assert [change.state for change in ward.run(4)] == ["healthy"]


def test_f40_a_node_can_accuse_nobody_but_itself(ward: Ward) -> None:
    def forged(sample: Sample) -> Sample:
        worst = dict.fromkeys(sample.measures, 1e308) | {"endless": 1.0, "bus_latency_s": -1e308, "clock_step_s": 1e300}
        return replace(sample, measures=worst, loss=float("-inf"), steps=-1e300, clock_s=9e15, left_out=2**62)

    assert {change.client for change in ward.run(8, forged)} == {VICTIM}


def test_f29_no_clock_of_a_nodes_makes_it_dead_or_keeps_it_alive(ward: Ward) -> None:
    chance: Iterator[float] = iter(ward.rng.uniform(-1e9, 1e9, 100).tolist())
    states = {change.state for change in ward.run(20, lambda sample: replace(sample, clock_s=sample.clock_s + next(chance)))}
    assert "dead" not in states
    assert "suspect" not in states


def test_one_that_flickers_does_not_flap(ward: Ward) -> None:
    ill = measuring(memory_used_ratio=0.40)
    changes = ward.run(30, lambda sample: ill(sample) if sample.beat % 2 else sample)
    assert len(changes) <= 2


def test_a_second_trouble_of_another_sort_is_told_of_and_a_mere_consequence_is_not(ward: Ward) -> None:
    bad_data: Fault = lambda sample: replace(sample, loss=2.3)  # noqa: E731
    both: Fault = lambda sample: replace(sample, loss=2.3, measures={**sample.measures, "bus_latency_s": 0.6})  # noqa: E731
    assert [change.kind for change in ward.run(4, bad_data)] == ["loss"]
    assert [change.kind for change in ward.run(3, both)] == ["late"]
    assert [change.kind for change in ward.run(3, both, speed=0.1)] == []


def test_phi_grows_with_silence_and_learns_how_a_node_beats() -> None:
    regular, jerky = Arrivals(48, 0.15), Arrivals(48, 0.15)
    for number in range(48):
        regular.add(1.0)
        jerky.add(0.2 if number % 2 else 1.8)
    values = [regular.phi(silence) for silence in (0.5, 1.0, 2.0, 4.0, 1000.0)]
    assert values == sorted(values)
    assert values[2] > 8 > jerky.phi(2.0)
    assert Arrivals(48, 0.15).phi(1.0) < 1, "before anything is known, the plan's interval is no surprise"


def test_a_switch_is_set_by_a_run_or_by_one_severe_value_and_left_by_a_run() -> None:
    switch = Switch(5, 3, 10, 2, 3)
    assert [switch.feed(value) for value in (6, 0, 6, 6, 4, 2, 2, 4, 2, 2, 2)] == [
        False, False, False, True, True, True, True, True, True, True, False,
    ]  # fmt: skip
    assert switch.feed(11)


def test_pasts_are_forgotten_with_their_nodes_and_their_places_used_again() -> None:
    pasts = Pasts(16, 2)
    places = [pasts.open() for _ in range(100)]
    for place in places:
        pasts.close(place)
    size = len(pasts._kept)
    for _ in range(1000):
        pasts.close(pasts.open())
    assert len(pasts._kept) == size


def test_moved_together_is_less_of_an_outlier_than_moved_against_each_other(rng: np.random.Generator) -> None:
    pasts = Pasts(48, 8)
    place = pasts.open()
    base = [0.0] * 10
    for _ in range(48):
        both = float(rng.normal())
        pasts.learn(place, (*base[:5], 0.3 + 0.1 * both, 0.5 + 0.1 * both, *base[7:]))
    usual = pasts.deviations([place], [(*base[:5], 0.55, 0.75, *base[7:])], 4).scores[0]
    odd = pasts.deviations([place], [(*base[:5], 0.55, 0.5, *base[7:])], 4).scores[0]
    assert odd > usual - 0.5


def test_every_kind_has_a_known_cause_and_every_state_is_one() -> None:
    assert {kind.cause for kind in kinds.KINDS.values()} == set(CAUSES)
    assert len(STATES) == 6


def test_settings_are_read_by_name_and_refused_where_they_contradict() -> None:
    assert HealthPolicy.of(["dead-phi=12", "ban=data+straggler"]) == HealthPolicy(dead_phi=12, ban=("data", "straggler"))
    for words in (["death=1"], ["window=x"], ["clear-at=9"], ["ban=weather"], ["window=3"]):
        with pytest.raises(UsageError):
            HealthPolicy.of(words)
