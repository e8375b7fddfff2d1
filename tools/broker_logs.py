"""Real logs of a Kafka cluster at work and under faults, for the log analysis to be shown on.

::

    python tools/broker_logs.py OUT.jsonl.xz [--lines 100000] [--faults 4]
    python tools/broker_logs.py OUT.jsonl.xz --thin IN.jsonl.xz      the sample in tests/data

starts three brokers, gives them ordinary work (topics made and deleted, records, consumer groups that come and go) until they
have written so many lines, and then kills, freezes and restarts brokers in turn. Each line of OUT is ``[node, phase, text]``:
phase is ``work`` or what was done to a broker just before (``kill``, ``freeze``, ``start``), text is what the broker wrote,
with this machine's paths replaced. Thinned, the first lines of each kind stay and one in 24 of the others: short, with all that
is rare in it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from refold.testing.kafka.cluster import Cluster

PARTITIONS = 24
PAUSE_S = 8.0
FIRST, ONE_IN = 3, 24
SETTINGS = {
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "log.retention.check.interval.ms": "2000",
}


class Collected:
    """Lines in the order in which they were read, with what was going on then."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._read = dict.fromkeys(cluster.ids, 0)
        self.lines: list[tuple[int, str, str]] = []

    def take(self, phase: str) -> None:
        """Take what every node wrote since the last time."""
        for node in self._cluster.ids:
            written = self._cluster.log(node).splitlines()
            fresh = written[self._read[node] :]
            self._read[node] = len(written)
            self.lines += [(node, phase, cleaned(line)) for line in fresh]


def cleaned(line: str) -> str:
    """Return a line without what tells of this machine."""
    line = re.sub(r"/tmp/refold-kafka-[0-9a-f]+", "/data", line)
    return re.sub(r"(/[\w.+-]+)+/(jars|\.cache)/[\w./+-]*", "/jars", line)


def work(cluster: Cluster, turn: int) -> None:
    """Let the brokers do once what brokers do."""
    names = [f"ward-{turn}.{what}" for what in ("updates", "rounds", "steps")]
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap, request_timeout_ms=60_000)
    admin.create_topics([NewTopic(name, PARTITIONS, 3) for name in names])
    producer = KafkaProducer(bootstrap_servers=cluster.bootstrap, acks="all")
    for number in range(200):
        producer.send(names[number % 3], value=b"%d" % number, partition=number % PARTITIONS)
    producer.close()
    consumers = [KafkaConsumer(*names, bootstrap_servers=cluster.bootstrap, group_id=f"group-{turn}") for _ in range(2)]
    for consumer in consumers:
        consumer.poll(timeout_ms=500)
    for consumer in consumers:
        consumer.close()
    admin.delete_topics(names)
    admin.close()


def trouble(cluster: Cluster, collected: Collected, turn: int) -> None:
    """Kill, or freeze and thaw, a broker, and bring it back."""
    node = cluster.ids[turn % 3]
    deeds: list[tuple[str, Callable[[int], None]]] = [("kill", cluster.kill), ("start", cluster.start)]
    if turn % 2:
        deeds = [("freeze", cluster.freeze), ("start", cluster.thaw)]
    for phase, deed in deeds:
        deed(node)
        time.sleep(PAUSE_S)
        collected.take(phase)


def thinned(lines: Iterable[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
    """Yield the first lines of each kind, by node and phase, and a part of the rest."""
    seen = Counter[tuple[int, str, str]]()
    for at, (node, phase, text) in enumerate(lines):
        kind = (node, phase, re.sub(r"[\w-]*\d[\w.-]*", "#", text)[:80])
        seen[kind] += 1
        if seen[kind] <= FIRST or at % ONE_IN == 0:
            yield node, phase, text


def write(path: Path, lines: Iterable[tuple[int, str, str]]) -> None:
    """Write lines to a file."""
    with lzma.open(path, "wt", preset=9) as out:
        out.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--faults", type=int, default=4)
    parser.add_argument("--thin", type=Path, metavar="IN")
    options = parser.parse_args()
    if options.thin:
        with lzma.open(options.thin, "rt") as file:
            write(options.out, thinned(map(json.loads, file)))
        return
    with Cluster(3, settings=SETTINGS) as cluster:
        collected = Collected(cluster)
        turn = 0
        while len(collected.lines) < options.lines:
            work(cluster, turn)
            collected.take("work")
            turn += 1
            print(f"{len(collected.lines):,} lines", file=sys.stderr)
        for fault in range(options.faults):
            trouble(cluster, collected, fault)
    write(options.out, collected.lines)


if __name__ == "__main__":
    main()
