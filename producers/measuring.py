"""What a node measures of its machine and of itself. What cannot be measured here is absent, never zero.

Sources: psutil; the container's own limits from Linux cgroups (version 2, else 1 for memory), since the machine's figures mean
nothing inside one; pressure stall information from ``/proc/pressure``; NVML for GPUs, where ``nvidia-ml-py`` is installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from refold.bus.clock import Clock
from refold.producers._gpu import Gpus

Measured = Iterator[tuple[str, float]]

CGROUP = Path("/sys/fs/cgroup")
PRESSURE = Path("/proc/pressure")
UNLIMITED = 1 << 60
"""Version 1 writes about 2^63 where there is no limit."""

GONE = (OSError, ValueError, psutil.Error, AttributeError, NotImplementedError)
"""What a missing measure looks like on some system or other."""


class Meter:
    """Takes all measures; those over time are of the time since it was last asked.

    Parameters
    ----------
    folder
        A folder on the file system whose room matters.
    """

    def __init__(self, folder: str | Path, clock: Clock, *, cgroup: Path = CGROUP, pressure: Path = PRESSURE) -> None:
        self._folder = str(folder)
        self._clock = clock
        self._cgroup = cgroup
        self._pressure = pressure
        self._process = psutil.Process()
        self._gpus = Gpus()
        self._at_s = clock.monotonic_s()
        self._offset_s = self._wall_offset_s()
        self._cpu = _cpu_times()
        self._own_cpu_s = self._own_cpu()
        self._throttled_s = self._throttled()

    def measure(self) -> tuple[tuple[str, float], ...]:
        """Return name and value of everything that there is here, sorted by name."""
        now_s = self._clock.monotonic_s()
        past_s, self._at_s = max(now_s - self._at_s, 1e-3), now_s
        found: dict[str, float] = {}
        parts: tuple[Callable[[float], Measured], ...] = (
            self._processors,
            self._memory,
            self._disk,
            self._pressures,
            self._own,
            self._wall_clock,
            lambda _: self._gpus.measure(),
        )
        for part in parts:
            # One that fails half-way keeps what it had, and the others theirs.
            with suppress(*GONE):
                found.update(part(past_s))
        return tuple(sorted(found.items()))

    def _processors(self, past_s: float) -> Measured:
        before, self._cpu = self._cpu, _cpu_times()
        total = sum(self._cpu) - sum(before)
        busy, idle, stolen = (now - then for now, then in zip(self._cpu, before, strict=True))
        if total > 0 and busy >= 0 and idle >= 0:
            yield "cpu_used_ratio", busy / total
            yield "cpu_stolen_ratio", max(stolen, 0.0) / total
        before_s, self._throttled_s = self._throttled_s, self._throttled()
        if before_s is not None and self._throttled_s is not None:
            yield "cpu_throttled_ratio", min(1.0, max(0.0, self._throttled_s - before_s) / past_s)

    def _memory(self, _past_s: float) -> Measured:
        machine = psutil.virtual_memory()
        limit, used = self._container_memory()
        if limit is not None and used is not None and limit < machine.total:
            yield "memory_limit_bytes", float(limit)
            yield "memory_used_ratio", used / limit
        else:
            yield "memory_limit_bytes", float(machine.total)
            yield "memory_used_ratio", 1 - machine.available / machine.total
        swap = psutil.swap_memory()
        if swap.total:
            yield "swap_used_ratio", swap.used / swap.total

    def _container_memory(self) -> tuple[int | None, int | None]:
        """Return limit and use of the container's memory; what the kernel would drop at need (file cache) is no use."""
        limit, used, stat = (self._number(name) for name in ("memory.max", "memory.current", "memory.stat:inactive_file"))
        if limit is None:
            names = ("limit_in_bytes", "usage_in_bytes", "stat:total_inactive_file")
            limit, used, stat = (self._number(f"memory/memory.{name}") for name in names)
        if limit is None or used is None or limit >= UNLIMITED:
            return None, None
        return limit, max(0, used - (stat or 0))

    def _throttled(self) -> float | None:
        """Return the seconds for which the container's processor limit held it back, or None where it has none."""
        micros = self._number("cpu.stat:throttled_usec")
        return None if micros is None else micros / 1e6

    def _number(self, name: str) -> int | None:
        """Return the number in a file of the cgroup, or the one that stands after a word in it: ``FILE:WORD``."""
        file, _, word = name.partition(":")
        try:
            text = (self._cgroup / file).read_text()
            if word:
                text = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)[word]
            return int(text)
        except (OSError, ValueError, KeyError):
            return None

    def _disk(self, _past_s: float) -> Measured:
        if hasattr(os, "statvfs"):
            about = os.statvfs(self._folder)
            if about.f_blocks:
                yield "disk_used_ratio", 1 - about.f_bavail / max(about.f_blocks - about.f_bfree + about.f_bavail, 1)
                yield "disk_free_bytes", float(about.f_bavail * about.f_frsize)
            return
        usage = psutil.disk_usage(self._folder)
        yield "disk_used_ratio", usage.percent / 100
        yield "disk_free_bytes", float(usage.free)

    def _pressures(self, _past_s: float) -> Measured:
        for file, name in (("cpu", "cpu"), ("memory", "memory"), ("io", "disk")):
            with suppress(OSError, ValueError, IndexError):
                first = (self._pressure / file).read_text().split("\n", 1)[0]
                yield f"{name}_pressure_ratio", float(first.split("avg10=", 1)[1].split(" ", 1)[0]) / 100

    def _own(self, past_s: float) -> Measured:
        before_s, self._own_cpu_s = self._own_cpu_s, self._own_cpu()
        yield "process_cpu_cores", max(0.0, self._own_cpu_s - before_s) / past_s
        yield "process_memory_bytes", float(self._process.memory_info().rss)
        yield "process_open_files", float(self._process.num_fds())

    def _own_cpu(self) -> float:
        times = os.times()
        return times.user + times.system

    def _wall_clock(self, _past_s: float) -> Measured:
        before_s, self._offset_s = self._offset_s, self._wall_offset_s()
        yield "clock_step_s", self._offset_s - before_s

    def _wall_offset_s(self) -> float:
        return self._clock.wall_ms() / 1000 - self._clock.monotonic_s()


def _cpu_times() -> tuple[float, float, float]:
    """Return the machine's busy, idle and stolen processor seconds so far."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    stolen = getattr(times, "steal", 0.0)
    # Linux counts guests' time inside user's, so that the sum of all fields would count it twice.
    busy = times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
    return busy, idle, stolen
