"""What a node tells of itself: measured or absent, of this beat, within two kilobytes."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refold.bus import Place
from refold.bus.clock import ManualClock, SystemClock
from refold.bus.memory import MemoryBus
from refold.bus.topics import Topics
from refold.producers._gpu import Gpus
from refold.producers.heartbeat import FAREWELL_S, HeartbeatThread
from refold.producers.measuring import Meter
from refold.producers.reporting import BEAT_BYTES, Reporter
from refold.schemas.canonical import decode
from refold.schemas.condition import MEASURES, Condition
from refold.schemas.errors import BusError, TryAgainError, UsageError
from refold.schemas.keys import HEARTBEAT_TAG, SigningKey, verify
from refold.schemas.updates import Heartbeat, heartbeat_digest
from refold.testing import eventually

KEY = SigningKey.generate()
TOPICS = Topics("toy")


@pytest.fixture
def bus() -> MemoryBus:
    made = MemoryBus()
    made.create_topics([spec for spec in TOPICS.specs(1) if spec.name == TOPICS.health])
    return made


def beating(bus: Any, tmp_path: Path, *, interval_s: float = 0.01) -> HeartbeatThread:
    session = (3, bytes(8))
    return HeartbeatThread(
        bus, TOPICS, "ann", session, KEY, interval_s=interval_s, properties=(), clock=SystemClock(), folder=tmp_path
    )


def beats(bus: MemoryBus, enough: Callable[[list[tuple[Heartbeat, int]]], bool]) -> list[tuple[Heartbeat, int]]:
    """Return the beats and their sizes, once there are enough."""
    found: list[tuple[Heartbeat, int]] = []
    with bus.consumer() as consumer:
        consumer.assign([Place(TOPICS.health, 0)])
        for _ in range(2_000):
            found += [(decode(r.value or b"", Heartbeat), len(r.value or b"")) for r in consumer.poll(0.05)]
            if enough(found):
                return found
    raise AssertionError(f"{len(found)} beats came, and not what was waited for")


def test_a_beat_tells_measures_progress_and_log_and_is_signed_and_small(bus: MemoryBus, tmp_path: Path) -> None:
    thread = beating(bus, tmp_path)
    try:
        thread.reporter.watch(logger="test_reporting")
        thread.begin("training")
        thread.reporter.progress(epoch=1, epochs=4, batch=np.int64(7), loss=np.float32(0.5))
        for n in range(300):
            logging.getLogger("test_reporting").error("%s lost its %s", "abcdefghij"[n % 10] * 90, "klmnopqrst"[n // 30] * 90)
        found = beats(bus, lambda all_: any(b.condition and b.condition.log and b.condition.log.errors == 300 for b, _ in all_))
    finally:
        thread.close()
    beat = found[-1][0]
    assert verify(KEY.public, HEARTBEAT_TAG, heartbeat_digest(beat), beat.signature)
    assert max(size for _, size in found) <= BEAT_BYTES
    condition = beat.condition
    assert condition is not None
    assert condition.progress is not None
    assert condition.log is not None
    assert (condition.progress.epoch, condition.progress.batch, condition.progress.loss) == (1, 7, 0.5)
    assert condition.progress.batches is None
    assert condition.log.templates
    assert {name for name, _ in condition.measures} <= MEASURES.keys()
    assert 0 < (condition.measure("memory_used_ratio") or 0) <= 1
    assert condition.measure("gpu_used_ratio") is None or (Path("/dev/nvidiactl").exists())
    assert logging.getLogger("test_reporting").handlers == [], "closing takes the handler away"


class Deaf:
    """A bus that refuses every so many sends."""

    def __init__(self, bus: MemoryBus, every: int) -> None:
        self._bus, self._every, self._sent = bus, every, 0

    def producer(self) -> Any:
        return self

    def send(self, *arguments: Any, **named: Any) -> None:
        self._sent += 1
        if self._sent % self._every == 0:
            raise BusError("the line is cut")
        with self._bus.producer() as producer:
            producer.send(*arguments, **named)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Everything was sent."""

    def close(self) -> None:
        """Nothing to let go of."""


@pytest.mark.parametrize("is_orderly", [True, False])
def test_the_last_beat_of_an_orderly_close_says_so_signed(bus: MemoryBus, tmp_path: Path, is_orderly: bool) -> None:
    thread = beating(bus, tmp_path, interval_s=60.0)
    try:
        beats(bus, lambda all_: len(all_) == 1)
    finally:
        thread.leaves_in_order = is_orderly
        thread.close()
    found = beats(bus, lambda all_: len(all_) == 1 + is_orderly)
    assert [(beat.activity, beat.beat) for beat, _ in found] == [("waiting", 0), ("left", 1)][: len(found)]
    assert all(verify(KEY.public, HEARTBEAT_TAG, heartbeat_digest(beat), beat.signature) for beat, _ in found)


class Away(Deaf):
    """A bus that takes one beat and then does not answer."""

    def __init__(self, bus: MemoryBus) -> None:
        super().__init__(bus, 100)
        self.waits: list[float] = []

    def flush(self, timeout_s: float = 30.0) -> None:
        """Take the first, and no other."""
        self.waits.append(timeout_s)
        if len(self.waits) > 1:
            raise TryAgainError("the bus does not answer")


def test_a_farewell_that_the_bus_does_not_take_holds_up_no_close(bus: MemoryBus, tmp_path: Path) -> None:
    away = Away(bus)
    thread = beating(away, tmp_path, interval_s=60.0)
    eventually(lambda: len(away.waits) == 1)
    thread.close()
    assert away.waits == [30.0, FAREWELL_S]
    quick = beating(Deaf(bus, 1), tmp_path, interval_s=60.0)
    quick.close()
    assert quick.failure is None, "where the last beat was not taken none is tried"


def test_loss_is_of_the_beats_own_sends_and_latency_of_their_acknowledgements(bus: MemoryBus, tmp_path: Path) -> None:
    thread = beating(Deaf(bus, 4), tmp_path)
    try:
        found = beats(bus, lambda all_: len(all_) > 40)
    finally:
        thread.close()
    numbers = [beat.beat for beat, _ in found]
    last = found[-1][0].condition
    assert last is not None
    assert last.measure("bus_loss_ratio") == pytest.approx(0.25, abs=0.04)
    assert last.left_out == numbers[-1] + 1 - len(numbers), "what was left out has numbers too"
    assert 0 < (last.measure("bus_latency_s") or 0) <= (last.measure("bus_latency_worst_s") or 0)


def conditions(**said: Any) -> Condition:
    reporter = Reporter(ManualClock())
    reporter.progress(**said)
    return reporter.condition(0.0, 1000)


def test_a_loss_that_is_not_finite_is_told_as_diverged() -> None:
    for loss in (math.nan, math.inf, np.float32("nan")):
        progress = conditions(epoch=0, loss=loss).progress
        assert progress is not None
        assert (progress.loss, progress.diverged) == (None, True)


@pytest.mark.parametrize("said", [{"epoch": -1}, {"batch": 1.5}, {"loss": "low"}, {"epoch": 2**63}])
def test_progress_that_is_none_is_refused_where_it_is_said(said: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="progress"):
        Reporter(ManualClock()).progress(**said)


def test_progress_gets_old_and_another_task_begins_without_any() -> None:
    clock = ManualClock()
    reporter = Reporter(clock)
    reporter.progress(batch=3)
    clock.advance(7.5)
    progress = reporter.condition(0.0, 1000).progress
    assert progress is not None
    assert progress.age_ms == 7500
    reporter.forget_progress()
    assert reporter.condition(0.0, 1000).progress is None


def test_who_measures_nothing_tells_nothing_of_the_machine() -> None:
    reporter = Reporter(ManualClock())
    assert [name for name, _ in reporter.condition(0.25, 1000).measures] == ["beat_lateness_s"]
    reporter.lost()
    assert dict(reporter.condition(0.0, 1000).measures) == {"beat_lateness_s": 0.0, "bus_loss_ratio": 1.0}


def test_a_clock_that_is_set_shows_once(tmp_path: Path) -> None:
    clock = Jumping()
    meter = Meter(tmp_path, clock)
    assert dict(meter.measure())["clock_step_s"] == pytest.approx(0.0, abs=0.002)
    clock.ahead_ms = 3_600_000
    assert dict(meter.measure())["clock_step_s"] == pytest.approx(3600.0, abs=0.002)
    assert dict(meter.measure())["clock_step_s"] == pytest.approx(0.0, abs=0.002)


class Jumping(ManualClock):
    """A wall clock that somebody sets."""

    ahead_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


def test_a_containers_limit_counts_in_place_of_the_machines_memory(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("1000000\n")
    (cgroup / "memory.current").write_text("800000\n")
    (cgroup / "memory.stat").write_text("anon 5\ninactive_file 300000\n")
    (cgroup / "cpu.stat").write_text("usage_usec 9\nthrottled_usec 1000000\n")
    clock = ManualClock()
    meter = Meter(tmp_path, clock, cgroup=cgroup)
    clock.advance(2.0)
    (cgroup / "cpu.stat").write_text("usage_usec 9\nthrottled_usec 2500000\n")
    found = dict(meter.measure())
    assert (found["memory_limit_bytes"], found["memory_used_ratio"]) == (1e6, 0.5)
    assert found["cpu_throttled_ratio"] == 0.75


def test_what_the_system_does_not_tell_is_absent(tmp_path: Path) -> None:
    pressure = tmp_path / "pressure"
    pressure.mkdir()
    (pressure / "cpu").write_text("some avg10=12.50 avg60=0.00 avg300=0.00 total=1\n")
    (pressure / "io").write_text("nonsense\n")
    found = dict(Meter(tmp_path, ManualClock(), cgroup=tmp_path / "none", pressure=pressure).measure())
    assert found["cpu_pressure_ratio"] == 0.125
    assert found.keys() & {"memory_pressure_ratio", "disk_pressure_ratio", "cpu_throttled_ratio"} == set()


def test_a_watched_file_that_turns_into_something_else_ends_its_watch_and_not_the_beats(tmp_path: Path) -> None:
    path, reporter = tmp_path / "train.log", Reporter(ManualClock())
    path.write_text("")
    reporter.watch(path)
    path.write_text("INFO begun\n")
    assert reporter.condition(0.0, 1000).log
    path.unlink()
    path.mkdir()
    digest = reporter.condition(0.0, 1000).log
    assert digest is not None
    assert digest.lines == 1
    reporter.close()


def test_heartbeats_keep_to_their_bytes_with_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run of benchmarks/heartbeat.py; what it costs in time is for the benchmark to say."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import heartbeat as benchmark

    monkeypatch.setattr(benchmark.reporting, "MEASURE_S", 0.0)
    found = benchmark.measure(0.6, 0.05)
    assert found["tells all"]["bytes_mean"] > found["bare"]["bytes_mean"] + 300
    assert found["logs much"]["bytes_mean"] > found["tells all"]["bytes_mean"]
    assert found["logs much"]["bytes_most"] <= benchmark.BEAT_BYTES


class Nvml:
    """Stands in for NVML with two GPUs, of which one tells no temperature."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """Not supported."""

    def __init__(self, count: int) -> None:
        self._count = count

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._count:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self._count

    def nvmlDeviceGetHandleByIndex(self, at: int) -> int:  # noqa: N802
        return at

    def nvmlDeviceGetUtilizationRates(self, at: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=(20, 90)[at])

    def nvmlDeviceGetMemoryInfo(self, at: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=(3, 1)[at], total=4)

    def nvmlDeviceGetTemperature(self, at: int, _which: int) -> int:  # noqa: N802
        if at == 1:
            raise self.NVMLError("not supported")
        return 55


def test_of_several_gpus_the_largest_measure_is_told_and_without_a_driver_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(2))
    assert dict(Gpus().measure()) == {"gpu_used_ratio": 0.9, "gpu_memory_used_ratio": 0.75, "gpu_temperature_celsius": 55.0}
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(0))
    assert dict(Gpus().measure()) == {}
