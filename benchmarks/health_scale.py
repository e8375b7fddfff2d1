"""What it costs to watch many nodes: one health group in one process, on one processor, on the embedded bus.

Another process writes signed beats with measures, progress and a log's digest, of 10,000 clients once in two seconds each,
spread evenly. After a while some fall silent. Printed: the share of one processor that the group took, its memory after the
first quarter and at the end, how far it ever was behind, and whom it held to be dead, rightly and wrongly.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import refold
from refold.bus.clock import SystemClock
from refold.bus.contract import Place
from refold.consumers.commands import signed_part
from refold.consumers.health import HealthSettings, Watcher
from refold.schemas.canonical import encode
from refold.schemas.checks import Command, EnrolClient
from refold.schemas.condition import Condition, LogDigest, Progress
from refold.schemas.keys import COMMAND_TAG, HEARTBEAT_TAG, SigningKey, log_key
from refold.schemas.updates import Heartbeat, heartbeat_digest
from refold.testing import SteppedServer

SILENT_SHARE = 0.01
BATCH_S = 0.1


def beat_of(name: str, key: SigningKey, number: int, chance: random.Random, interval_ms: int) -> bytes:
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


def feed(
    url: str, names: list[str], seeds: list[bytes], interval_s: float, seconds: float, silent_from_s: float, end: Any
) -> None:
    """Beat for everyone; after `silent_from_s` for all but the silent."""
    chance = random.Random(1)
    keys = [SigningKey.from_seed(seed) for seed in seeds]
    silent = set(chance.sample(range(len(names)), max(1, int(SILENT_SHARE * len(names)))))
    sent = behind_s = 0
    with refold.connect(url) as federation, federation.bus.producer() as producer:
        began_s, number, topic = time.monotonic(), 0, federation.topics.health
        while (now_s := time.monotonic() - began_s) < seconds:
            due = int(now_s / interval_s * len(names))
            for place in range(number, due):
                client = place % len(names)
                if now_s < silent_from_s or client not in silent:
                    value = beat_of(names[client], keys[client], place // len(names), chance, int(interval_s * 1000))
                    producer.send(topic, value, key=names[client].encode())
                    sent += 1
            number = due
            producer.flush()
            behind_s = max(behind_s, time.monotonic() - began_s - now_s)
            time.sleep(max(0.0, BATCH_S - (time.monotonic() - began_s - now_s)))
    end.send((sent, behind_s, [names[client] for client in silent]))


def enrol(federation: refold.Federation, names: list[str], seeds: list[bytes]) -> None:
    """Enrol everyone by one write; one by one they would take longer than all that is measured."""
    operator = federation.keyring.operator()
    with federation.bus.producer() as producer:
        for name, seed in zip(names, seeds, strict=True):
            body = encode(EnrolClient(name, SigningKey.from_seed(seed).public))
            order = Command(federation.name, os.urandom(16), body, operator.key_id, bytes(64))
            order = replace(order, signature=operator.sign(COMMAND_TAG, signed_part(order)))
            producer.send(federation.topics.commands, encode(order), partition=0)


def run(clients: int, interval_s: float, seconds: float) -> dict[str, Any]:
    """Run the crowd and the group, and return the figures."""
    names = [f"client-{number:05}" for number in range(clients)]
    seeds = [os.urandom(32) for _ in names]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:{folder}/crowd.db?federation=crowd"
        plan = refold.Plan(minimum=2, heartbeat_s=interval_s, deadline_s=3600.0)
        with refold.create(url, {"w": np.zeros(4, "f4")}, plan=plan, partitions=4) as federation:
            enrol(federation, names, seeds)
            with SteppedServer(federation) as server:
                server.settle()
            ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
            about = (url, names, seeds, interval_s, seconds, 0.6 * seconds, theirs)
            feeder = multiprocessing.get_context("fork").Process(target=feed, args=about)
            feeder.start()
            found = _watch(federation, ours)
            sent, behind_s, silent = found.pop("fed")
            feeder.join()
            size_bytes = (Path(folder) / "crowd.db").stat().st_size
    dead = set(found.pop("dead"))
    return {
        "clients": clients,
        "beats_per_s": round(sent / seconds),
        **found,
        "feeder_behind_s": round(behind_s, 2),
        "silent": len(silent),
        "silent_found_dead": len(dead & set(silent)),
        "false_dead": len(dead - set(silent)),
        "bus_bytes": size_bytes,
    }


def _watch(federation: refold.Federation, end: Any) -> dict[str, Any]:
    secret = federation.keyring.secret(federation.genesis.secret_digest)
    clock = SystemClock()
    watcher = Watcher(federation.bus, federation.topics, federation.genesis, "one", clock, log_key(secret), HealthSettings())
    process, topic = psutil.Process(), federation.topics.health
    places = [Place(topic, number) for number in range(federation.bus.topics()[topic].partitions)]
    began_s, began_cpu_s, memory, lags, turns = time.monotonic(), time.process_time(), [], [], []
    while not end.poll():
        turn_s = time.monotonic()
        watcher.turn()
        turns.append(time.monotonic() - turn_s)
        lags.append(sum(federation.bus.end_offset(place) - watcher.position(place) for place in places))
        memory.append(process.memory_info().rss)
        time.sleep(0.05)
    busy = (time.process_time() - began_cpu_s) / (time.monotonic() - began_s)
    dead = [name for name, node in watcher.monitor.nodes.items() if node.state == "dead"]
    ignored = dict(watcher.listener.ignored)
    watcher.close()
    return {
        "fed": end.recv(),
        "dead": dead,
        "processor_share": round(busy, 3),
        "memory_first_quarter_bytes": memory[len(memory) // 4],
        "memory_end_bytes": memory[-1],
        "most_behind_beats": max(lags),
        "longest_turn_s": round(max(turns), 2),
        "not_believed": ignored,
    }


def main() -> None:
    """Run it once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args()
    found = run(said.clients, said.interval, said.seconds)
    if said.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<28}{value}")


if __name__ == "__main__":
    main()
