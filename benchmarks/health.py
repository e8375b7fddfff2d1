"""How well and how fast the health group says which node fails, and why; against a fixed time-out and fixed thresholds.

Twenty processes train and beat; another process hurts them at random times, in random ways and to a random degree, and
loads the machine in bursts. The judge is Refold's own `Watcher`, which sees signed beats on a bus and nothing else. Its
thresholds are the defaults of `HealthPolicy`, which no run of this program changes. The same beats, as they arrived, are then
played to the other judges.

Every fault is a real one but three: the clock is set in the node's own clock object (a process has no clock of its own), what
"slow" means is longer pauses between batches, and shuffled labels are shuffled where they lie. Memory, disk and processor are
those of a cgroup and a small file system of the node's own; where this machine does not let us make them, they are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from _health_faults import EXPECTED, Injection, run_ward
from _health_judge import FixedThresholds, FixedTimeout, Said, Score, of_monitor, replay, score
from _health_nodes import Relay

import refold
from refold.bus.clock import SystemClock
from refold.bus.memory import MemoryBus
from refold.consumers.health import HealthSettings, Watcher
from refold.consumers.monitoring.readings import Sample
from refold.consumers.standby import Seat
from refold.schemas.keys import SigningKey, log_key
from refold.testing import SteppedServer

LOOK_S = 0.05
CAUSES = ("node", "network", "straggler", "data", "")


def judge_live(
    clients: int, faults: int, seed: int, interval_s: float, *, quiet_s: float = 0.0, only: Collection[str] = tuple(EXPECTED)
) -> dict[str, Any]:
    """Run a ward with the group beside it; return injections, the group's words, and the trace."""
    seeds = {f"ward-{number:02}": os.urandom(32) for number in range(clients)}
    with MemoryBus() as bus, tempfile.TemporaryDirectory() as folder:
        plan = refold.Plan(minimum=2, heartbeat_s=interval_s, deadline_s=600.0)
        federation = refold.create("memory:ward", {"w": np.zeros(4, "f4")}, plan=plan, keys=folder + "/keys", bus=bus)
        for name, key in seeds.items():
            federation.enroll(name, SigningKey.from_seed(key).public)
        with SteppedServer(federation) as server:
            server.settle()
        lock, topic = threading.Lock(), federation.topics.health
        producer = bus.producer()

        def relayed(key: bytes, value: bytes) -> None:
            with lock:
                producer.send(topic, value, key=key)
                producer.flush()

        relay = Relay(relayed)
        context = get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        about = (clients, seed, relay.port, seeds, interval_s, folder + "/beds", faults, quiet_s, only, theirs)
        ward = context.Process(target=run_ward, args=about)
        ward.start()
        secret = federation.keyring.secret(federation.genesis.secret_digest)
        watcher = Watcher(
            Seat(bus, federation.topics, federation.genesis, "judge", SystemClock(), log_key(secret)), HealthSettings()
        )
        said, trace = _watch(watcher, ours)
        done, left_out = ours.recv()
        ward.join()
        relay.close()
        watcher.close()
        producer.close()
    return {"done": [Injection(**one) for one in done], "left_out": left_out, "said": said, "trace": trace}


def _watch(watcher: Watcher, end: Any) -> tuple[list[Said], list[tuple[float, Sample]]]:
    """Let the group take turns until the ward has ended, and write down what it hears and says."""
    said: list[Said] = []
    trace: list[tuple[float, Sample]] = []
    monitor = watcher.monitor
    take, tick = monitor.take, monitor.tick

    def heard(sample: Sample, now_s: float) -> None:
        trace.append((now_s, sample))
        take(sample, now_s)

    def ticked(now_s: float) -> Any:
        changes = tick(now_s)
        said.extend(Said(time.monotonic(), c.client, c.state, c.cause, c.kind) for c in changes)
        return changes

    watcher.monitor = _Overheard(monitor, heard, ticked)  # type: ignore[assignment]
    while not end.poll():
        watcher.turn()
        time.sleep(LOOK_S)
    return said, trace


class _Overheard:
    """The monitor, with somebody listening."""

    def __init__(self, monitor: Any, take: Any, tick: Any) -> None:
        self._monitor, self.take, self.tick = monitor, take, tick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_monitor", "take", "tick"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._monitor, name, value)


def scores_of(run: dict[str, Any], clients: int, interval_s: float) -> dict[str, Score]:
    """Return every judge's score over one run."""
    trace, done = run["trace"], run["done"]
    span_s = (trace[0][0], trace[-1][0])
    timeout, thresholds = FixedTimeout(interval_s), FixedThresholds(interval_s)
    words = {
        "refold": run["said"] or of_monitor(trace, interval_s),
        "fixed time-out": replay(trace, timeout.take, timeout.tick),
        "fixed thresholds": replay(trace, thresholds.take, thresholds.tick),
    }
    return {name: score(said, done, interval_s, clients, span_s) for name, said in words.items()}


def added(scores: list[Score]) -> Score:
    """Return several runs' scores as one."""
    named = {fault: sum((one.named[fault] for one in scores), Counter()) for fault in EXPECTED}
    which = {fault: sum((one.kinds[fault] for one in scores), Counter()) for fault in EXPECTED}
    return Score(
        named,
        which,
        [value for one in scores for value in one.after_beats],
        [value for one in scores for value in one.right_after_beats],
        sum(one.false_dead for one in scores),
        sum(one.false_alarms for one in scores),
        sum(one.healthy_beats for one in scores),
    )


def summary(found: Score) -> dict[str, Any]:
    """Return a score as an object."""
    return {
        "faults": sum(sum(counter.values()) for counter in found.named.values()),
        "cause_right": round(found.right, 4),
        "seen": len(found.after_beats),
        "seen_p50_beats": _rounded(found.detected(0.5)),
        "seen_p99_beats": _rounded(found.detected(0.99)),
        "named_p50_beats": _rounded(found.named_right(0.5)),
        "named_p99_beats": _rounded(found.named_right(0.99)),
        "false_dead": found.false_dead,
        "false_alarms": found.false_alarms,
        "healthy_beats": round(found.healthy_beats),
        "named": {fault: dict(counter) for fault, counter in found.named.items()},
        "kinds": {fault: dict(counter) for fault, counter in found.kinds.items()},
    }


def _rounded(beats: float) -> float | None:
    """Return a time as JSON can hold it; None is never."""
    return round(beats, 2) if math.isfinite(beats) else None


def table_of(found: Score) -> str:
    """Return the confusion table."""
    lines = [f"{'fault':<10}{'cause':<11}" + "".join(f"{cause or 'not seen':>11}" for cause in CAUSES) + "   as"]
    for fault, counter in found.named.items():
        kinds = ", ".join(f"{kind or '-'} {count}" for kind, count in found.kinds[fault].most_common())
        lines.append(f"{fault:<10}{EXPECTED[fault]:<11}" + "".join(f"{counter[cause]:>11}" for cause in CAUSES) + f"   {kinds}")
    return "\n".join(lines)


def save(run: dict[str, Any], path: Path) -> None:
    """Keep a run, to play it again."""
    samples = [(at_s, {**asdict(s), "session": [s.session[0], s.session[1].hex()]}) for at_s, s in run["trace"]]
    said = [asdict(word) for word in run["said"]]
    done = [asdict(one) for one in run["done"]]
    path.write_text(json.dumps({"done": done, "left_out": run["left_out"], "said": said, "trace": samples}))


def load(path: Path) -> dict[str, Any]:
    """Return a run that was kept."""
    kept = json.loads(path.read_text())
    trace = [(at_s, Sample(**{**s, "session": (s["session"][0], bytes.fromhex(s["session"][1]))})) for at_s, s in kept["trace"]]
    return {
        "done": [Injection(**one) for one in kept["done"]],
        "left_out": kept["left_out"],
        "said": [Said(**word) for word in kept["said"]],
        "trace": trace,
    }


def main() -> None:
    """Run wards, or play kept ones again, and print how everyone did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--faults", type=int, default=100, help="injections a run")
    parser.add_argument("--seeds", default="1,2", help="one run each")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--quiet", type=float, default=0.0, metavar="SECONDS", help="go on for so long at least")
    parser.add_argument("--only", default=",".join(EXPECTED), metavar="FAULTS", help="these alone; all if not given")
    parser.add_argument("--save", metavar="FOLDER", help="keep the traces")
    parser.add_argument("--replay", metavar="FILE", nargs="*", help="play kept traces to the judges instead")
    parser.add_argument("--again", action="store_true", help="with --replay: let the monitor of today judge, too")
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args()
    runs = []
    if said.replay:
        runs = [load(Path(path)) for path in said.replay]
        for run in runs if said.again else ():
            run["said"] = []
    else:
        for seed in map(int, said.seeds.split(",")):
            only = said.only.split(",")
            runs.append(judge_live(said.clients, said.faults, seed, said.interval, quiet_s=said.quiet, only=only))
            if said.save:
                save(runs[-1], Path(said.save) / f"health-{seed}.json")
    by_run = [scores_of(run, said.clients, said.interval) for run in runs]
    total = {name: added([scores[name] for scores in by_run]) for name in by_run[0]}
    if said.json:
        print(json.dumps({name: summary(found) for name, found in total.items()}))
        return
    if runs[0]["left_out"]:
        print(f"left out, since this machine does not let us: {', '.join(runs[0]['left_out'])}")
    for name, found in total.items():
        short = summary(found)
        print(f"\n{name}: {short['faults']} faults, cause right {short['cause_right']:.1%}, ", end="")
        print(f"{short['seen']} seen after p50 {short['seen_p50_beats']} and p99 {short['seen_p99_beats']} intervals, ", end="")
        print(f"named right after {short['named_p50_beats']} and {short['named_p99_beats']}; ", end="")
        print(f"{short['false_dead']} false dead, {short['false_alarms']} false alarms in {short['healthy_beats']:,} intervals")
    print(f"\n{table_of(total['refold'])}")


if __name__ == "__main__":
    main()
