"""What heartbeats cost their node: processor time and bytes a beat, with everything on, beside what is asked for.

A client's heartbeat thread beats on a SQLite bus, signed, with all measures, progress told for every batch, and a log that is
watched. Three nodes: one that tells nothing of itself, one that tells all and has a quiet log, and one whose program logs 200
lines a second, errors among them. Processor time is the whole process's, less what it takes to log the lines without a watch.
Beats are made at ``--interval`` for ``--seconds`` and reckoned to one in 2 s; lines are reckoned by the second.

    python benchmarks/heartbeat.py [--seconds S] [--interval S] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from refold.bus import Place, open_bus
from refold.bus.clock import SystemClock
from refold.bus.topics import Topics
from refold.producers import reporting
from refold.producers.heartbeat import HeartbeatThread
from refold.schemas.canonical import decode
from refold.schemas.keys import SigningKey
from refold.schemas.updates import Heartbeat

INTERVAL_S, CORE_SHARE, BEAT_BYTES = 2.0, 0.01, 2_000
"""The plan's own interval, and what is asked for."""

LINES_PER_S = 200
BATCHES_PER_S = 50
PROPERTIES = (("gpus", 1), ("rows", 12_000), ("site", "north wing"))


def beat_for(folder: Path, seconds: float, interval_s: float, *, tells: bool, lines_per_s: int) -> dict[str, Any]:
    """Let a node beat, and return what that took."""
    topics = Topics("bench")
    bus = open_bus(f"sqlite:{folder}/bench.db")
    bus.create_topics([spec for spec in topics.specs(1) if spec.name == topics.health])
    logger = logging.getLogger("bench")
    logger.propagate, logger.level = False, logging.INFO
    logger.addHandler(logging.NullHandler())
    logging_s = _work(logger, None, seconds, lines_per_s)
    thread = HeartbeatThread(
        bus,
        topics,
        "ward-7",
        (1, bytes(8)),
        SigningKey.generate(),
        interval_s=interval_s,
        properties=PROPERTIES,
        clock=SystemClock(),
        folder=folder if tells else None,
    )
    if tells:
        thread.reporter.watch(logger="bench")
    before = _cpu_s()
    _work(logger, thread if tells else None, seconds, lines_per_s)
    spent_s = _cpu_s() - before - logging_s
    thread.close()
    beats = _read(bus, topics)
    bus.close()
    per_beat_s = spent_s / len(beats)
    return {
        "beats": len(beats),
        "bytes_mean": round(sum(size for _, size in beats) / len(beats)),
        "bytes_most": max(size for _, size in beats),
        "cpu_ms_a_beat": round(per_beat_s * 1000, 2),
        "core_share": round(per_beat_s / INTERVAL_S, 5),
    }


def _work(logger: logging.Logger, thread: HeartbeatThread | None, seconds: float, lines_per_s: int) -> float:
    """Log lines and tell progress, as a program does; return the processor time that took."""
    rng = random.Random(5)
    before, end_s, batch = _cpu_s(), time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        batch += 1
        if thread is not None:
            thread.reporter.progress(epoch=1, epochs=3, batch=batch, batches=10_000, loss=1 / batch)
        for _ in range(lines_per_s // BATCHES_PER_S):
            if rng.random() < 0.01:
                logger.error(
                    "cannot read shard %d of %s: token=%x", rng.randrange(99), "abcdefgh"[rng.randrange(8)], rng.getrandbits(64)
                )
            else:
                logger.info("batch %d took %.3f s, %d rows", batch, rng.random(), rng.randrange(1000))
        time.sleep(1 / BATCHES_PER_S)
    return _cpu_s() - before


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _read(bus: Any, topics: Topics) -> list[tuple[Heartbeat, int]]:
    found = []
    with bus.consumer() as consumer:
        consumer.assign([Place(topics.health, 0)])
        while records := consumer.poll(0.1):
            found += [(decode(record.value or b"", Heartbeat), len(record.value or b"")) for record in records]
    return found


def measure(seconds: float, interval_s: float) -> dict[str, Any]:
    """Return all figures. Beats that come faster than a second would tell old measures: here each measures anew."""
    reporting.MEASURE_S = 0.0
    found: dict[str, Any] = {}
    for name, tells, lines_per_s in (("bare", False, 0), ("tells all", True, 0), ("logs much", True, LINES_PER_S)):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = beat_for(Path(folder), seconds, interval_s, tells=tells, lines_per_s=lines_per_s)
    # Lines come at their own rate, whatever the interval: what they add is by the second, not by the beat.
    quiet, busy = found["tells all"], found["logs much"]
    lines_s = (busy["cpu_ms_a_beat"] - quiet["cpu_ms_a_beat"]) / 1000 * busy["beats"]
    busy["core_share"] = round(quiet["core_share"] + max(0.0, lines_s) / seconds, 5)
    return found


def main() -> None:
    """Print what was measured, beside what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--interval", type=float, default=0.25)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.seconds, options.interval)
    if options.json:
        print(json.dumps(found))
        return
    print(f"asked for: at most {CORE_SHARE:.0%} of a core at a beat in {INTERVAL_S:g} s, {BEAT_BYTES:,} bytes a beat")
    for name, of in found.items():
        share, size = of["core_share"], of["bytes_most"]
        print(
            f"{name:10} {of['cpu_ms_a_beat']:7.2f} ms a beat  {share:7.3%} of a core ({share / CORE_SHARE:.2f} of the limit)"
            f"  {of['bytes_mean']:5} bytes, at most {size} ({size / BEAT_BYTES:.2f} of the limit)"
        )


if __name__ == "__main__":
    main()
