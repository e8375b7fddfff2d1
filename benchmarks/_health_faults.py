"""The ward of benchmarks/health.py: twenty nodes' processes, their networks and boxes, and who hurts them when.

It runs in a process of its own. The judge knows nothing of it but the keys; what was done to whom, and when, is compared
afterwards, by the clock that all processes of a machine share.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from _health_nodes import MEMORY_BYTES, NodeSpec, run_node

from refold.testing.proxy import FaultProxy, Network

CGROUPS = Path("/sys/fs/cgroup")
DISK_BYTES = 16 << 20
EXPECTED = {
    "killed": "node",
    "frozen": "node",
    "starved": "node",
    "memory": "node",
    "disk": "node",
    "network": "network",
    "clock": "node",
    "labels": "data",
    "slow": "straggler",
}
"""Fault → the cause that has to be named."""

LASTS_BEATS, REST_BEATS = (7.0, 10.0), (10.0, 22.0)
HOG = "while True: pass"


@dataclass(frozen=True, slots=True)
class Injection:
    """What was done: to whom, from when to when, and how badly."""

    client: str
    fault: str
    from_s: float
    until_s: float
    severity: str


@dataclass(slots=True)
class Box:
    """A node's share of the machine: a file system of its own, and cgroups where we may make them."""

    name: str
    folder: Path
    view: Path | None = None
    groups: tuple[Path, ...] = ()
    is_mounted: bool = False

    @classmethod
    def make(cls, name: str, folder: Path) -> Box:
        """Make what this machine lets us make."""
        folder.mkdir(parents=True)
        box = cls(name, folder)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        with suppress(OSError):
            box.is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        groups = tuple(CGROUPS / kind / f"refold-{os.getpid()}-{name}" for kind in ("cpu", "memory"))
        try:
            for group in groups:
                group.mkdir()
            (groups[1] / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
        except OSError:
            return box
        box.groups, box.view = groups, folder.with_name(f"{name}.view")
        box.view.mkdir()
        for link, target in (
            ("memory.max", groups[1] / "memory.limit_in_bytes"),
            ("memory.current", groups[1] / "memory.usage_in_bytes"),
            ("memory.stat", groups[1] / "memory.stat"),
            ("cpu.stat.v1", groups[0] / "cpu.stat"),
        ):
            (box.view / link).symlink_to(target)
        return box

    def add(self, pid: int) -> None:
        """Put a process into the box."""
        for group in self.groups:
            (group / "cgroup.procs").write_text(str(pid))

    def limit_cpu(self, share: float | None) -> None:
        """Give the box so much of one processor; all that there is if None."""
        micros = -1 if share is None else max(1000, int(100_000 * share))
        (self.groups[0] / "cpu.cfs_quota_us").write_text(str(micros))

    def remove(self) -> None:
        """Take the box apart once nothing runs in it."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)
        for group in self.groups:
            for _ in range(50):
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.02)


@dataclass(slots=True)
class Bed:
    """One node: its process, its network, its box, and what is done to it."""

    spec: NodeSpec
    box: Box
    proxy: FaultProxy
    next_s: float
    process: Any = None
    orders: Connection | None = None
    fault: str = ""
    severity: str = ""
    from_s: float = 0.0
    hogs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start the node's process."""
        context = get_context("fork")
        theirs, self.orders = context.Pipe(duplex=False)
        self.process = context.Process(target=run_node, args=(self.spec, theirs), daemon=True)
        self.process.start()
        self.box.add(self.process.pid)

    def order(self, what: str, value: float = 0.0) -> None:
        """Tell the node's process to hurt itself."""
        assert self.orders is not None
        self.orders.send((what, value))

    def stop(self) -> None:
        """End everything."""
        for hog in self.hogs:
            hog.kill()
            hog.wait()
        self.hogs.clear()
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.join()


class Ward:
    """All beds, and the hand that hurts."""

    def __init__(
        self,
        clients: int,
        seed: int,
        port: int,
        keys: dict[str, bytes],
        interval_s: float,
        folder: Path,
        only: Collection[str] = tuple(EXPECTED),
    ) -> None:
        self._chance = random.Random(seed)
        self._interval_s = interval_s
        self.done: list[Injection] = []
        rows, labels = _digits(seed)
        now_s = time.monotonic()
        weights = _trained(rows, labels)
        self._beds: list[Bed] = []
        for number, (name, key) in enumerate(keys.items()):
            box = Box.make(name, folder / name)
            proxy = FaultProxy(port, seed=seed + number).__enter__()
            mine = slice(number * len(labels) // clients, (number + 1) * len(labels) // clients)
            view = str(box.view or "")
            spec = NodeSpec(name, key, proxy.port, interval_s, str(box.folder), view, rows[mine], labels[mine], weights)
            bed = Bed(spec, box, proxy, now_s + interval_s * (14 + self._chance.uniform(0, 24)))
            bed.start()
            self._beds.append(bed)
        self.faults = [fault for fault in EXPECTED if fault in only and self._is_possible(fault)]
        self._bag: list[str] = []
        self._burst_s = now_s + 10

    def _is_possible(self, fault: str) -> bool:
        box = self._beds[0].box
        return {"disk": box.is_mounted, "memory": bool(box.groups), "starved": bool(box.groups)}.get(fault, True)

    def run(self, wanted: int, *, quiet_s: float = 0.0) -> list[Injection]:
        """Hurt nodes until so many injections were made and undone; go on for so long at least."""
        until_s = time.monotonic() + quiet_s
        while len(self.done) < wanted or any(bed.fault for bed in self._beds) or time.monotonic() < until_s:
            now_s = time.monotonic()
            for bed in self._beds:
                if now_s >= bed.next_s:
                    if bed.fault:
                        self._heal(bed)
                    elif len(self.done) + sum(bool(b.fault) for b in self._beds) < wanted:
                        self._hurt(bed)
            if now_s >= self._burst_s:
                self._burst()
            time.sleep(0.02)
        time.sleep(self._interval_s * 6)
        return self.done

    def _hurt(self, bed: Bed) -> None:
        if not self._bag:
            self._bag = self.faults.copy()
            self._chance.shuffle(self._bag)
        bed.fault = self._bag.pop()
        bed.severity = getattr(self, f"_{bed.fault}")(bed)
        bed.from_s = time.monotonic()
        bed.next_s = bed.from_s + self._interval_s * self._chance.uniform(*LASTS_BEATS)

    def _killed(self, bed: Bed) -> str:
        os.kill(bed.process.pid, signal.SIGKILL)
        return "SIGKILL"

    def _frozen(self, bed: Bed) -> str:
        os.kill(bed.process.pid, signal.SIGSTOP)
        return "SIGSTOP"

    def _starved(self, bed: Bed) -> str:
        share, hogs = self._chance.uniform(0.03, 0.12), self._chance.randint(2, 4)
        for _ in range(hogs):
            hog = subprocess.Popen([sys.executable, "-S", "-c", HOG])
            bed.box.add(hog.pid)
            bed.hogs.append(hog)
        bed.box.limit_cpu(share)
        return f"{hogs} hogs in {share:.0%} of a processor"

    def _memory(self, bed: Bed) -> str:
        share = self._chance.uniform(0.05, 0.25)
        bed.order("memory", share * MEMORY_BYTES)
        return f"{share:.0%} of its memory a second"

    def _disk(self, bed: Bed) -> str:
        share = self._chance.uniform(0.03, 0.20)
        bed.order("disk", share * DISK_BYTES)
        return f"{share:.0%} of its disk a second"

    def _network(self, bed: Bed) -> str:
        match self._chance.randrange(3):
            case 0:
                low = self._chance.uniform(0.1, 0.3)
                high = low + self._chance.uniform(0.05, 0.3)
                bed.proxy.network = Network(delay_s=(low * self._interval_s, high * self._interval_s))
                return f"{low:.2f} to {high:.2f} intervals each way"
            case 1:
                rate = self._chance.uniform(1200, 3500) / self._interval_s
                bed.proxy.network = Network(bytes_per_s=rate)
                return f"{rate:.0f} bytes a second"
            case _:
                up, down = self._chance.uniform(0.5, 1.2), self._chance.uniform(0.3, 0.9)
                bed.proxy.flap(up * self._interval_s, down * self._interval_s)
                return f"there {up:.1f}, away {down:.1f} intervals"

    def _clock(self, bed: Bed) -> str:
        jump_s = self._chance.choice((-1, 1)) * 10 ** self._chance.uniform(0.7, 8.5)
        bed.order("clock", jump_s)
        return f"{jump_s:+.0f} s"

    def _labels(self, bed: Bed) -> str:
        share = self._chance.uniform(0.5, 1.0)
        bed.order("labels", share)
        return f"{share:.0%} of its labels"

    def _slow(self, bed: Bed) -> str:
        factor = self._chance.uniform(4, 15)
        bed.order("slow", factor)
        return f"{factor:.1f} times slower"

    def _heal(self, bed: Bed) -> None:
        now_s = time.monotonic()
        match bed.fault:
            case "killed":
                bed.process.join()
                bed.start()
            case "frozen":
                os.kill(bed.process.pid, signal.SIGCONT)
            case "starved":
                bed.box.limit_cpu(None)
                for hog in bed.hogs:
                    hog.kill()
                    hog.wait()
                bed.hogs.clear()
            case "network":
                bed.proxy.heal()
            case _:
                bed.order("heal")
        self.done.append(Injection(bed.spec.name, bed.fault, bed.from_s, now_s, bed.severity))
        bed.fault = ""
        bed.next_s = now_s + self._interval_s * self._chance.uniform(*REST_BEATS)

    def _burst(self) -> None:
        """Load the machine for a moment, as other work does."""
        seconds = self._chance.uniform(0.3, 1.5)
        for _ in range(3):
            subprocess.Popen([sys.executable, "-S", "-c", f"import time\nt=time.time()+{seconds}\nwhile time.time()<t: pass"])
        self._burst_s = time.monotonic() + self._chance.uniform(8, 20)

    def close(self) -> None:
        """End all nodes."""
        for bed in self._beds:
            bed.stop()
        for bed in self._beds:
            bed.proxy.__exit__()
            bed.box.remove()


def _digits(seed: int) -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return (rows[order] / 16).astype(np.float32), labels[order].astype(np.int64)


def _trained(rows: Any, labels: Any) -> Any:
    """Return a model as a federation has after some rounds."""
    weights = np.zeros((rows.shape[1], 10), np.float32)
    for _ in range(60):
        chances = np.exp(rows @ weights)
        chances /= chances.sum(1, keepdims=True)
        chances[np.arange(len(labels)), labels] -= 1
        weights -= 0.5 / len(labels) * rows.T @ chances
    return weights


def run_ward(
    clients: int,
    seed: int,
    port: int,
    keys: dict[str, bytes],
    interval_s: float,
    folder: str,
    wanted: int,
    quiet_s: float,
    only: Collection[str],
    end: Any,
) -> None:
    """Run a ward in this process and tell at the end what was done."""
    ward = Ward(clients, seed, port, keys, interval_s, Path(folder), only)
    try:
        done = ward.run(wanted, quiet_s=quiet_s)
        left_out = sorted(set(only) - set(ward.faults))
        end.send(([asdict(one) for one in done], left_out))
    finally:
        ward.close()
        shutil.rmtree(folder, ignore_errors=True)
