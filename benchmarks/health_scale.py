"""What it costs to watch many nodes: one health group in one process, on one processor.

Signed beats with measures, progress and a log's digest, of 10,000 clients once in two seconds each, spread evenly, lie on a bus
in memory as their time comes; the clock is moved by hand, so that nothing is late because the machine is busy.
After a while some fall silent. Counted is the processor time of the group's turns: reading, decoding, checking signatures,
judging, reports and alerts. Printed: that time a beat, beside what one signature takes in the same run (which nothing that
believes signed beats can go below); the share of one processor that the crowd takes; memory at the first quarter and at the
end; the longest turn; and who was held to be dead, rightly and wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from dataclasses import replace
from typing import Any

import numpy as np
import psutil

import refold
from refold.bus.clock import ManualClock
from refold.bus.contract import Place
from refold.bus.memory import MemoryBus
from refold.consumers.commands import signed_part
from refold.consumers.health import HealthSettings, Watcher
from refold.consumers.memory import collect_seldom, limit_arenas
from refold.consumers.standby import Seat
from refold.schemas.canonical import encode
from refold.schemas.checks import Command, EnrolClient
from refold.schemas.condition import Condition, LogDigest, Progress
from refold.schemas.keys import COMMAND_TAG, HEARTBEAT_TAG, SODIUM, SigningKey, log_key, verify_beat
from refold.schemas.updates import Heartbeat, heartbeat_digest
from refold.testing import SteppedServer

SILENT_SHARE = 0.01
BATCH_S = 0.1


def beat_of(name: str, key: SigningKey, number: int, chance: random.Random, interval_ms: int, wall_ms: int) -> bytes:
    """Return a beat as a client's program sends it, about 900 bytes."""
    measures = {
        "beat_lateness_s": 0.001 * chance.random(),
        "bus_latency_s": 0.004 * chance.lognormvariate(0, 0.3),
        "bus_latency_worst_s": 0.02,
        "bus_loss_ratio": 0.0,
        "clock_step_s": 0.0,
        "cpu_pressure_ratio": 0.1,
        "cpu_stolen_ratio": 0.0,
        "cpu_throttled_ratio": 0.0,
        "cpu_used_ratio": chance.random(),
        "disk_free_bytes": 1e11,
        "disk_used_ratio": 0.4,
        "memory_limit_bytes": 6.4e10,
        "memory_used_ratio": 0.5 + 0.005 * chance.random(),
        "process_cpu_cores": 3.0,
        "process_memory_bytes": 4e9,
        "process_open_files": 60.0,
    }
    progress = Progress(1, 5, number % 100, 100, 0.4 * chance.lognormvariate(0, 0.05), False, 20)
    log = LogDigest(bytes(8), 20 * number, 0, 0, 0, 12, False, (), tuple((bytes([n]) * 8, number) for n in range(6)), ())
    condition = Condition(tuple(sorted(measures.items())), 0, progress, log)
    made = Heartbeat(
        "crowd",
        name,
        1,
        b"session!",
        number,
        interval_ms,
        "training",
        3,
        bytes(32),
        (),
        time.time_ns() // 1_000_000,
        key.key_id,
    )
    made = replace(made, condition=condition)
    return encode(replace(made, signature=key.sign(HEARTBEAT_TAG, heartbeat_digest(made))))


def enrol(federation: refold.Federation, names: list[str], seeds: list[bytes]) -> None:
    """Enrol everyone by one write; one by one they would take longer than all that is measured."""
    operator = federation.keyring.operator()
    with federation.bus.producer() as producer:
        for name, seed in zip(names, seeds, strict=True):
            body = encode(EnrolClient(name, SigningKey.from_seed(seed).public))
            order = Command(federation.name, os.urandom(16), body, operator.key_id, bytes(64))
            order = replace(order, signature=operator.sign(COMMAND_TAG, signed_part(order)))
            producer.send(federation.topics.commands, encode(order), partition=0)


def run(clients: int, interval_s: float, beats: int) -> dict[str, Any]:
    """Let everyone beat so often, and return the figures."""
    names = [f"client-{number:05}" for number in range(clients)]
    seeds = [os.urandom(32) for _ in names]
    clock = ManualClock(1_800_000_000.0)
    with MemoryBus(clock=clock.monotonic_s) as bus, tempfile.TemporaryDirectory() as folder:
        plan = refold.Plan(minimum=2, heartbeat_s=interval_s, deadline_s=3600.0)
        federation = refold.create("memory:crowd", {"w": np.zeros(4, "f4")}, plan=plan, keys=folder, partitions=4, bus=bus)
        enrol(federation, names, seeds)
        with SteppedServer(federation, clock=clock) as server:
            server.settle()
        return _watched(federation, clock, names, seeds, interval_s, beats)


def _watched(
    federation: refold.Federation, clock: ManualClock, names: list[str], seeds: list[bytes], interval_s: float, beats: int
) -> dict[str, Any]:
    chance = random.Random(1)
    keys = [SigningKey.from_seed(seed) for seed in seeds]
    silent = set(chance.sample(range(len(names)), max(1, int(SILENT_SHARE * len(names)))))
    secret = federation.keyring.secret(federation.genesis.secret_digest)
    watcher = Watcher(
        Seat(federation.bus, federation.topics, federation.genesis, "one", clock, log_key(secret)), HealthSettings()
    )
    process, topic = psutil.Process(), federation.topics.health
    busy_s, turns, memory, sent, place = 0.0, [], [], 0, 0
    steps = int(beats * interval_s / BATCH_S)
    with federation.bus.producer() as producer:
        for step in range(steps):
            clock.advance(BATCH_S)
            due = round((step + 1) * BATCH_S / interval_s * len(names))
            for number in range(place, due):
                client = number % len(names)
                if step < 0.5 * steps or client not in silent:
                    about = (number // len(names), chance, int(interval_s * 1000), clock.wall_ms())
                    producer.send(topic, beat_of(names[client], keys[client], *about), key=names[client].encode())
                    sent += 1
            place = due
            producer.flush()
            before_s = time.process_time()
            while watcher.turn() and any(watcher.position(p) < federation.bus.end_offset(p) for p in _places(federation)):
                pass
            turns.append(time.process_time() - before_s)
            busy_s += turns[-1]
            _forget(federation, watcher)
            memory.append(process.memory_info().rss)
    dead = {name for name, node in watcher.monitor.nodes.items() if node.state == "dead"}
    gone = {names[client] for client in silent}
    us_a_beat = 1e6 * busy_s / sent
    signature_us = _signature_us(keys[0])
    watcher.close()
    return {
        "clients": len(names),
        "beats": sent,
        "processor_us_a_beat": round(us_a_beat, 1),
        "signature_us": round(signature_us, 1),
        "signatures_by": "openssl" if SODIUM is None else "libsodium",
        "times_a_signature": round(us_a_beat / signature_us, 2),
        "share_of_a_processor": round(us_a_beat * len(names) / interval_s / 1e6, 3),
        "memory_first_quarter_bytes": memory[len(memory) // 4],
        "memory_end_bytes": memory[-1],
        "longest_turn_s": round(max(turns), 3),
        "not_believed": dict(watcher.listener.ignored),
        "silent": len(gone),
        "silent_found_dead": len(dead & gone),
        "false_dead": len(dead - gone),
    }


def _signature_us(key: SigningKey) -> float:
    """Return the processor time of checking one signature, here and now."""
    message, times = bytes(32), 2000
    signature = key.sign(HEARTBEAT_TAG, message)
    before_s = time.process_time()
    for _ in range(times):
        verify_beat(key.public, HEARTBEAT_TAG, message, signature)
    return 1e6 * (time.process_time() - before_s) / times


def _places(federation: refold.Federation) -> list[Place]:
    topic = federation.topics.health
    return [Place(topic, number) for number in range(federation.bus.topics()[topic].partitions)]


def _forget(federation: refold.Federation, watcher: Watcher) -> None:
    """Let the bus drop what was read, so that memory is the group's."""
    for place in _places(federation):
        federation.bus.delete_records(place, watcher.position(place))


def main() -> None:
    """Run it once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--beats", type=int, default=20, help="of each client")
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args()
    limit_arenas()
    collect_seldom()  # As `refold serve` does.
    found = run(said.clients, said.interval, said.beats)
    if said.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<28}{value}")


if __name__ == "__main__":
    main()
