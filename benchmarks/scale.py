"""How consistency scales with its members, and what a round of a thousand clients takes.

Clients are simulated: their updates are signed and well-formed, each with a delta of its own, and sent by one process, with no
training between. The groups are real processes. Three parts, on each bus:

1. Updates per second that 1, 2 and 4 consistency members check, of a backlog that lies there when they start; the limit beside
   it is what as many plain processes inspect of the same updates with no bus at all.
2. Rounds of all clients: seconds from the first update sent to the committed round, and from the last.
3. Lag in those rounds: the most records that consistency had still to read, and updates without a verdict.

    python benchmarks/scale.py [--bus sqlite|kafka|kafka://HOST:PORT] [--clients 1000] [--parameters 100000] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from _brokers import federation_url

import refold
from refold.bus.contract import Place, partition_for
from refold.bus.topics import chunk_headers, event_headers
from refold.consumers.inspection import Inspector
from refold.consumers.memory import limit_arenas
from refold.producers.history import History
from refold.producers.lineage import Lineage
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Checked
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import Genesis
from refold.schemas.keys import UPDATE_TAG, SigningKey
from refold.schemas.layout import Layout
from refold.schemas.payload import chunk_digest, describe
from refold.schemas.updates import TRAIN, ClientUpdate, UpdateBody, update_digest
from refold.state.delta import decode_update
from refold.testing import random_delta

MEMBERS = (1, 2, 4)
PARTITIONS = 8
ROUNDS = 3
INSPECTED = 400
LONGEST_S = 600.0


@dataclass(slots=True)
class Crowd:
    """Clients that exist as keys and deltas only.

    Parameters
    ----------
    chunks
        Each client's delta, encoded once.
    """

    federation: refold.Federation
    keys: dict[str, SigningKey]
    chunks: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    sequence: int = 0

    def prepare(self) -> None:
        """Encode every client's delta and enrol it."""
        for number, (name, key) in enumerate(self.keys.items()):
            self.chunks[name] = random_delta(self.federation.genesis.schema, seed=number)
            self.federation.enroll(name, key.public)

    def send(self, history: History) -> tuple[float, float]:
        """Send an update of every client for the open round; return when the first went out and when all were acknowledged."""
        topics, bus = self.federation.topics, self.federation.bus
        partitions = bus.topics()[topics.updates].partitions
        updates = [(name, self._update(name, history), self.chunks[name]) for name in self.keys]
        self.sequence += 1
        with bus.producer() as producer:
            began = time.perf_counter()
            for name, update, chunks in updates:
                where: dict[str, Any] = {"key": name.encode(), "partition": partition_for(name.encode(), partitions)}
                for chunk in chunks:
                    producer.send(topics.updates, chunk, headers=chunk_headers(), **where)
                headers = event_headers("ClientUpdate", source=topics.updates, subject=name, identity="", time_ms=0)
                producer.send(topics.updates, encode(update), headers=headers, **where)
            producer.flush(LONGEST_S)
            return began, time.perf_counter()

    def _update(self, name: str, history: History) -> ClientUpdate:
        lineage, schema, key = history.lineage, history.schema, self.keys[name]
        body = UpdateBody(
            self.federation.name,
            name,
            key.key_id,
            lineage.next_index,
            os.urandom(8),
            0,
            TRAIN,
            lineage.head,
            lineage.parameters_digest(lineage.head) or bytes(32),
            schema.digest,
            "grid",
            tuple(0 for _ in schema.tensors),
            10,
            (),
            describe(self.chunks[name], inline_bytes=-1),
            Layout.of(schema).size_bytes,
            "",
            0,
        )
        return ClientUpdate(body, key.sign(UPDATE_TAG, update_digest(body)))


@contextmanager
def serving(federation: refold.Federation, *groups: str, members: int = 1) -> Iterator[None]:
    """Run processes that serve these groups; end them afterwards."""
    command = [sys.executable, __file__, "--serve", federation.url, str(federation.keyring.folder), *groups]
    with ExitStack() as stack:
        running = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(members)]
        try:
            for process in running:
                assert process.stdout is not None
                process.stdout.readline()
            yield
        finally:
            for process in running:
                process.terminate()


def found(bus: str, clients: int, parameters: int) -> dict[str, Any]:
    """Measure on one bus."""
    with tempfile.TemporaryDirectory(prefix="refold-scale-") as name, federation_url(bus, Path(name), "scale") as url:
        crowd = _make(url, Path(name) / "keys", clients, parameters)
        with crowd.federation as federation:
            figures: dict[str, Any] = {"bus": bus, "clients": clients, "parameters": parameters}
            with serving(federation, "detection", "aggregation", "snapshots"), serving(federation, "consistency"):
                figures |= rounds(crowd)
            figures["checked_per_s"] = {str(members): backlog(crowd, members) for members in MEMBERS}
            figures["inspected_per_s"] = {str(processes): inspected(crowd, processes) for processes in MEMBERS}
    return figures


def _make(url: str, keys: Path, clients: int, parameters: int) -> Crowd:
    initial = {"weight": np.random.default_rng(0).normal(0, 0.05, parameters).astype(np.float32)}
    plan = refold.Plan(minimum=clients, deadline_s=None, heartbeat_s=0.5)
    snapshots = refold.SnapshotPolicy(1000, 1)
    federation = refold.create(url, initial, plan=plan, keys=keys, snapshots=snapshots, partitions=PARTITIONS)
    crowd = Crowd(federation, {f"client-{number:04d}": SigningKey.generate() for number in range(clients)})
    crowd.prepare()
    return crowd


def rounds(crowd: Crowd) -> dict[str, Any]:
    """Send whole rounds, one after the other, and return the median's figures."""
    federation = crowd.federation
    history = federation.history()
    watch = Watch(federation)
    took = []
    try:
        _until(lambda: _lineage(history).opened is not None)
        for _ in range(ROUNDS):
            open_round = history.lineage.head + 1
            with watch:
                began, sent = crowd.send(history)
                _until(partial(_reached, history, open_round))
            ended = time.perf_counter()
            took.append({"round_s": ended - began, "sending_s": sent - began, "after_last_s": ended - sent})
            print(f"round {open_round}: {ended - began:.1f} s", file=sys.stderr)
    finally:
        history.close()
    middle = sorted(took, key=lambda one: one["round_s"])[len(took) // 2]
    return middle | {"most_lag": watch.most_lag, "most_unjudged": watch.most_unjudged}


class Watch:
    """Samples, while entered, how far the groups are behind."""

    def __init__(self, federation: refold.Federation) -> None:
        self._federation = federation
        self.most_lag = self.most_unjudged = 0

    def __enter__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        topics = self._federation.topics
        with refold.connect(self._federation.url, keys=self._federation.keyring.folder) as federation:
            checked, group = Place(topics.checked, 0), f"{topics.federation}.consistency"
            while not self._stop.wait(0.1):
                self.most_lag = max(self.most_lag, sum(federation.bus.lag(group).values()))
                waiting = federation.bus.end_offset(checked) - federation.bus.begin_offset(checked)
                self.most_unjudged = max(self.most_unjudged, waiting)


def backlog(crowd: Crowd, members: int) -> float:
    """Return the updates per second that some members check of a backlog, from the first result to the last."""
    federation = crowd.federation
    checked = Place(federation.topics.checked, 0)
    history = federation.history()
    try:
        crowd.send(history)
    finally:
        history.close()
    before = federation.bus.end_offset(checked)
    times: list[float] = []
    with federation.bus.consumer() as consumer:
        consumer.assign([checked])
        consumer.seek(checked, before)
        with serving(federation, "consistency", members=members):
            while len(times) < len(crowd.keys):
                now = time.perf_counter()
                times += [now for record in consumer.poll(10.0) if _is_result(record.value)]
    # Nobody judged them: the next part's members begin where the log says, so what is there now is put out of the way.
    _forget(crowd)
    return (len(times) - 1) / (times[-1] - times[0])


def _is_result(value: bytes | None) -> bool:
    try:
        decode(value or b"", Checked)
    except InvalidRecord:
        return False
    return True


def _forget(crowd: Crowd) -> None:
    """Let a server judge what lies there, so that the next backlog is the only one."""
    federation = crowd.federation
    history = federation.history()
    try:
        wanted = history.lineage.head + 1
        with serving(federation, "consistency", "detection", "aggregation"):
            _until(partial(_reached, history, wanted))
    finally:
        history.close()


def inspected(crowd: Crowd, processes: int) -> float:
    """Return the updates per second that plain processes inspect in memory: the limit for as many members."""
    genesis, secret = crowd.federation.genesis, crowd.federation.keyring.secret()
    names = list(crowd.keys)[:INSPECTED]
    parts = [(genesis, secret, [crowd.chunks[name] for name in names[part::processes]]) for part in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(_inspect, [(genesis, secret, chunks[:1]) for genesis, secret, chunks in parts])
        began = time.perf_counter()
        pool.map(_inspect, parts, chunksize=1)
        return len(names) / (time.perf_counter() - began)


def _inspect(work: tuple[Genesis, bytes, list[tuple[bytes, ...]]]) -> None:
    genesis, secret, updates = work
    inspector = Inspector.of(genesis, secret)
    exponents = tuple(0 for _ in genesis.schema.tensors)
    for chunks in updates:
        features = inspector.extractor.start()
        for chunk in chunks:
            chunk_digest(chunk)
        for block, integers in decode_update("grid", exponents, chunks, genesis.schema):
            features.add(block, integers, 2.0 ** -genesis.schema.tensors[block.tensor].exponent)
        features.finish()


def _lineage(history: History) -> Lineage:
    history.refresh()
    return history.lineage


def _reached(history: History, round_: int) -> bool:
    return _lineage(history).head >= round_


def _until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + LONGEST_S
    while not holds():
        if time.monotonic() > until_s:
            raise SystemExit("it did not get so far in time")
        time.sleep(0.02)


def serve(url: str, keys: str, groups: list[str]) -> None:
    """Run groups as `refold serve` does; say when they are up."""
    limit_arenas()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with refold.connect(url, keys=keys) as federation, federation.serve(groups) as server:
        print("up", flush=True)
        server.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bus", action="append", help="sqlite, kafka (starts a broker) or kafka://…; may be repeated")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for bus in options.bus or ("sqlite", "kafka"):
        figures = found(bus, options.clients, options.parameters)
        if options.json:
            print(json.dumps(figures))
        else:
            tell(figures)


def tell(figures: dict[str, Any]) -> None:
    """Print one bus's figures."""
    print(f"{figures['bus']}: {figures['clients']} clients of {figures['parameters']:,} parameters")
    print(
        f"  a round      {figures['round_s']:.1f} s, of which sending {figures['sending_s']:.1f} s;"
        f" {figures['after_last_s']:.1f} s after the last update"
    )
    print(
        f"  lag          at most {figures['most_lag']} records of `updates`, {figures['most_unjudged']} of `checked` not judged"
    )
    for members, rate in figures["checked_per_s"].items():
        limit = figures["inspected_per_s"][members]
        print(f"  {members} members    check {rate:.0f} updates/s; in memory {limit:.0f}   ratio {rate / limit:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
