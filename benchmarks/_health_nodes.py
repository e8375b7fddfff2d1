"""Nodes for benchmarks/health.py: each a process of its own that trains, beats with Refold's own heartbeat thread, and is hurt.

A node's bus is a TCP connection to a relay, which puts what comes into a bus in the judge's memory and acknowledges it. Brokers
for twenty nodes that each have a network of their own would be twenty listeners; here it is one socket through one
`FaultProxy` a node, and the delays, stalls and thin pipes are TCP's own.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from refold.bus.clock import SystemClock
from refold.bus.topics import Topics
from refold.producers.heartbeat import HeartbeatThread
from refold.producers.measuring import Meter
from refold.schemas.errors import BusError
from refold.schemas.keys import SigningKey

HOST = "127.0.0.1"
HEAD = struct.Struct("!IH")
ACK = b"\x06"
PATIENCE_S = 4.0
BATCH, STEP_S, RATE = 32, 0.02, 0.1
MEMORY_BYTES = 160 << 20
"""Limit of a node's memory, where the machine lets us set one."""


class Relay:
    """Takes records from nodes by TCP and hands them on, in the judge's process."""

    def __init__(self, take: Callable[[bytes, bytes], None]) -> None:
        self._take = take
        self._listener = socket.create_server((HOST, 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    size, key_size = HEAD.unpack(_exactly(connection, HEAD.size))
                    data = _exactly(connection, size)
                    self._take(data[:key_size], data[key_size:])
                    connection.sendall(ACK)
            except (OSError, EOFError):
                return

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


class RelayBus:
    """As much of a bus as a heartbeat needs."""

    def __init__(self, port: int) -> None:
        self._port = port

    def producer(self) -> RelayProducer:
        """Open a connection."""
        return RelayProducer(self._port)


class RelayProducer:
    """Sends records to the relay; `flush` waits for its acknowledgements."""

    def __init__(self, port: int) -> None:
        try:
            self._socket = socket.create_connection((HOST, port), timeout=PATIENCE_S)
        except OSError as error:
            raise BusError(f"the relay does not answer: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._queued = 0

    def send(self, topic: str, value: bytes, *, key: bytes, **_: Any) -> None:
        """Send a record."""
        try:
            self._socket.sendall(HEAD.pack(len(key) + len(value), len(key)) + key + value)
        except OSError as error:
            raise BusError(f"the relay is gone: {error}") from error
        self._queued += 1

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything sent is acknowledged."""
        try:
            _exactly(self._socket, self._queued)
        except (OSError, EOFError) as error:
            raise BusError(f"the relay is gone: {error}") from error
        self._queued = 0

    def close(self) -> None:
        """Let go."""
        self._socket.close()


class SettableClock(SystemClock):
    """The system's clock, with a wall clock that can be set: one process cannot have another machine's."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def wall_ms(self) -> int:
        """Milliseconds since 1970, or what was set."""
        return max(0, super().wall_ms() + int(self.ahead_s * 1000))


class BoxedMeter(Meter):
    """Measures of a node's own box: cgroup version 1 keeps the time for which a quota held it back in another file."""

    def __init__(self, folder: Path, clock: SettableClock, box: Path) -> None:
        self._box = box
        super().__init__(folder, clock, cgroup=box)

    def _throttled(self) -> float | None:
        try:
            lines = (self._box / "cpu.stat.v1").read_text().splitlines()
            return int(dict(line.split() for line in lines)["throttled_time"]) / 1e9
        except (OSError, KeyError, ValueError):
            return super()._throttled()


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a node's process is told."""

    name: str
    seed: bytes
    port: int
    interval_s: float
    folder: str
    box: str
    rows: Any
    labels: Any
    weights: Any


def run_node(spec: NodeSpec, orders: Connection) -> None:
    """Train and beat until the process is ended; obey what is ordered meanwhile."""
    # Sockets of the ward's that a fork inherits would stay open here, and no end of theirs would be noticed.
    os.closerange(3, orders.fileno())
    os.closerange(orders.fileno() + 1, 4096)
    clock = SettableClock()
    key = SigningKey.from_seed(spec.seed)
    session = (time.time_ns() // 1_000_000_000, os.urandom(8))
    folder = Path(spec.folder)
    beats = HeartbeatThread(
        RelayBus(spec.port),  # type: ignore[arg-type]
        Topics("ward"),
        spec.name,
        session,
        key,
        interval_s=spec.interval_s,
        properties=(),
        clock=clock,
        folder=folder,
    )
    if spec.box:
        beats.reporter._meter = BoxedMeter(folder, clock, Path(spec.box))
    beats.begin("training")
    _Trainer(spec, clock, beats, orders).train()


class _Trainer:
    """Softmax regression on a share of handwritten digits, a batch at a time, with pauses: twenty share this machine."""

    def __init__(self, spec: NodeSpec, clock: SettableClock, beats: HeartbeatThread, orders: Connection) -> None:
        self._spec, self._clock, self._beats, self._orders = spec, clock, beats, orders
        self._rng = np.random.default_rng()
        self._rows, self._honest = spec.rows, spec.labels
        self._labels = spec.labels
        self._pause_s = STEP_S
        self._held: list[bytearray] = []
        self._filling = ("", 0.0)
        self._filled_s = 0.0

    def train(self) -> None:
        """Go on for ever."""
        weights = self._spec.weights.copy()  # What a node that comes back gets: the round's model.
        per_epoch, step, loss = max(1, len(self._rows) // BATCH), 0, 1.0
        round_steps = int(self._rng.integers(300, 500))
        while True:
            while self._orders.poll():
                self._obey(*self._orders.recv())
            self._fill()
            chosen = self._rng.integers(0, len(self._rows), BATCH)
            rows, labels = self._rows[chosen], self._labels[chosen]
            logits = rows @ weights
            chances = np.exp(logits - logits.max(1, keepdims=True))
            chances /= chances.sum(1, keepdims=True)
            loss += 0.1 * (float(-np.log(chances[np.arange(BATCH), labels] + 1e-9).mean()) - loss)
            chances[np.arange(BATCH), labels] -= 1
            weights -= RATE / BATCH * rows.T @ chances
            step += 1
            if step == round_steps:  # The next round begins with the federation's model.
                weights, step = self._spec.weights.copy(), 0
            self._beats.reporter.progress(epoch=step // per_epoch, batch=step % per_epoch, batches=per_epoch, loss=loss)
            time.sleep(self._pause_s)

    def _obey(self, what: str, value: float) -> None:
        match what:
            case "slow":
                self._pause_s = STEP_S * value
            case "clock":
                self._clock.ahead_s += value
            case "labels":
                self._labels = self._honest.copy()
                mixed = self._rng.random(len(self._labels)) < value
                self._labels[mixed] = self._rng.permutation(self._labels[mixed])
            case "memory" | "disk":
                self._filling, self._filled_s = (what, value), time.monotonic()
            case "heal":
                self._pause_s, self._labels, self._filling = STEP_S, self._honest, ("", 0.0)
                self._held.clear()
                (Path(self._spec.folder) / "filler").unlink(missing_ok=True)

    def _fill(self) -> None:
        """Fill memory or disk at so many bytes a second, up to 90 %."""
        what, rate = self._filling
        now_s = time.monotonic()
        if not what or now_s - self._filled_s < 0.1:
            return
        piece, self._filled_s = int(rate * (now_s - self._filled_s)), now_s
        if what == "memory":
            if sum(map(len, self._held)) + piece < 0.7 * MEMORY_BYTES:
                self._held.append(bytearray(os.urandom(4096) * (piece // 4096 + 1)))
            return
        room = os.statvfs(self._spec.folder)
        if (room.f_bavail * room.f_frsize) > 0.1 * room.f_blocks * room.f_frsize:
            with (Path(self._spec.folder) / "filler").open("ab") as file:
                file.write(bytes(piece))
