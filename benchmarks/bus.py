"""How fast a bus writes, reads and wakes, beside what can be had at most in the same run.

For the embedded bus that is, for writing, a plain file that gets the same bytes with one fsync for every batch; for reading,
that file read again. For Kafka it is kafka-python's own producer and consumer on the same broker. For waking it is a pipe
between two processes. Each figure is the median of several rounds, bus and peer in turn. Run it on the disk that matters::

    python benchmarks/bus.py --folder /data
    python benchmarks/bus.py --bus kafka                    # starts a broker; or kafka://HOST:PORT
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from _brokers import brokers
from _plain_kafka import read_plain, write_plain

from refold.bus import Bus, Place, TopicSpec, open_bus
from refold.bus.sqlite import SqliteBus

TOPIC = TopicSpec("bench.topic", partitions=2)
BATCH_BYTES = 16_000_000


def timed(work: Callable[[], None]) -> float:
    """Return how many seconds the work took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def batches(count: int, size: int) -> Iterator[int]:
    """Yield the number of records of each batch."""
    per_batch = max(1, BATCH_BYTES // size)
    for begin in range(0, count, per_batch):
        yield min(per_batch, count - begin)


def write_file(path: Path, values: list[bytes], count: int, size: int) -> None:
    """Write the same bytes to a plain file, fsync after each batch."""
    with path.open("wb", buffering=0) as file:
        done = 0
        for batch in batches(count, size):
            file.write(b"".join(values[(done + i) % len(values)] for i in range(batch)))
            os.fsync(file.fileno())
            done += batch


def read_file(path: Path) -> None:
    """Read the plain file by batches."""
    with path.open("rb", buffering=0) as file:
        while file.read(BATCH_BYTES):
            pass


def write_bus(bus: Bus, topic: str, values: list[bytes], count: int) -> None:
    """Send all records; the producer flushes whenever a batch is full."""
    with bus.producer(max_in_flight_bytes=BATCH_BYTES) as producer:
        for number in range(count):
            producer.send(topic, values[number % len(values)], partition=0)


def read_bus(bus: Bus, topic: str, count: int) -> None:
    """Read all records."""
    with bus.consumer(max_in_flight_bytes=BATCH_BYTES) as consumer:
        consumer.assign([Place(topic, 0)])
        read = 0
        while read < count:
            read += len(consumer.poll(10.0, max_records=2000))


Peer = dict[str, Callable[[], None]]


@contextmanager
def embedded(folder: Path, values: list[bytes], count: int) -> Iterator[tuple[Bus, str, Peer]]:
    """Yield a new bus file with its topic, and a plain file as its peer."""
    size = len(values[0])
    plain = folder / f"plain-{size}"
    with tempfile.TemporaryDirectory(dir=folder) as name, SqliteBus(Path(name) / "bus.db") as bus:
        bus.create_topics([TOPIC])
        yield bus, TOPIC.name, {"write": partial(write_file, plain, values, count, size), "read": partial(read_file, plain)}


@contextmanager
def on_kafka(url: str, values: list[bytes], count: int) -> Iterator[tuple[Bus, str, Peer]]:
    """Yield a bus on brokers with a new topic, and plain kafka-python on another topic as its peer."""
    ours, plain = (f"bench.{kind}-{os.urandom(4).hex()}" for kind in ("ours", "plain"))
    bootstrap = url.removeprefix("kafka://")
    with open_bus(f"{url}/bench") as bus:
        bus.create_topics([TopicSpec(ours), TopicSpec(plain)])
        peer = {
            "write": partial(write_plain, bootstrap, plain, values, count),
            "read": partial(read_plain, bootstrap, plain, count),
        }
        yield bus, ours, peer
        for topic in (ours, plain):
            bus.delete_records(Place(topic, 0), bus.end_offset(Place(topic, 0)))


Make = Callable[[list[bytes], int], AbstractContextManager[tuple[Bus, str, Peer]]]


def throughput(make: Make, size: int, count: int, rounds: int) -> dict[str, float]:
    """Measure one size of record."""
    values = [os.urandom(size) for _ in range(8)]
    took: list[dict[str, float]] = []
    for number in range(rounds):
        with make(values, count) as (bus, topic, peer):
            figures = {
                "write_s": timed(partial(write_bus, bus, topic, values, count)),
                "plain_write_s": timed(peer["write"]),
                "read_s": timed(partial(read_bus, bus, topic, count)),
                "plain_read_s": timed(peer["read"]),
            }
        took.append(figures)
        print(f"{size} B, round {number + 1} of {rounds}", file=sys.stderr)
    medians = {name: statistics.median(each[name] for each in took) for name in took[0]}
    return medians | {"size_bytes": size, "records": count}


def _echo_bus(url: str, topic: str, rounds: int) -> None:
    with open_bus(url) as bus, bus.producer() as producer, bus.consumer() as consumer:
        consumer.assign([Place(topic, 0)])
        for _ in range(rounds):
            [record] = consumer.poll(60.0)
            producer.send(topic, record.value, partition=1).result()


def _echo_pipe(end: Connection, rounds: int) -> None:
    for _ in range(rounds):
        end.send_bytes(end.recv_bytes())


def latency(url: str, rounds: int) -> dict[str, float]:
    """Measure commits there and back between two processes, and the same through a pipe, in milliseconds one way."""
    spawn = multiprocessing.get_context("spawn")
    topic = f"bench.latency-{os.urandom(4).hex()}"
    with open_bus(url) as bus, bus.producer() as producer, bus.consumer() as consumer:
        bus.create_topics([TopicSpec(topic, partitions=2)])
        echo = spawn.Process(target=_echo_bus, args=(url, topic, rounds))
        echo.start()
        consumer.assign([Place(topic, 1)])

        def there_and_back() -> None:
            producer.send(topic, b"x" * 200, partition=0).result()
            consumer.poll(60.0)

        trips = sorted(timed(there_and_back) / 2 for _ in range(rounds))[: rounds - 1]
        echo.join()
    near, far = spawn.Pipe()
    echo = spawn.Process(target=_echo_pipe, args=(far, rounds))
    echo.start()

    def through_the_pipe() -> None:
        near.send_bytes(b"x" * 200)
        near.recv_bytes()

    plain = sorted(timed(through_the_pipe) / 2 for _ in range(rounds))[: rounds - 1]
    echo.join()
    return {
        "p50_ms": statistics.median(trips) * 1e3,
        "p99_ms": trips[int(len(trips) * 0.99)] * 1e3,
        "plain_p50_ms": statistics.median(plain) * 1e3,
    }


def report(figures: dict[str, dict[str, float]], peer: str) -> None:
    """Print a table."""
    for name, unit, per_record in (("large", "MB/s", False), ("small", "records/s", True)):
        row = figures[name]
        amount = row["records"] if per_record else row["records"] * row["size_bytes"] / 1e6
        for way in ("write", "read"):
            ours, limit = amount / row[f"{way}_s"], amount / row[f"plain_{way}_s"]
            size = f"{int(row['size_bytes']):,} B"
            print(f"{way:5} {size:>11}: {ours:12,.0f} {unit:9} {peer} {limit:14,.0f}   ratio {ours / limit:.3f}")
    row = figures["latency"]
    print(
        f"send, commit, poll in another process: p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms;"
        f" pipe p50 {row['plain_p50_ms']:.3f} ms   ratio {row['p50_ms'] / row['plain_p50_ms']:.0f}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--megabytes", type=int, default=800, help="how much to write at 1 MB a record (default: 800)")
    parser.add_argument("--rounds", type=int, default=3, help="how often to measure (default: 3)")
    parser.add_argument("--bus", default="sqlite", help="sqlite, kafka (starts a broker) or kafka://HOST:PORT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        folder = Path(name)
        make: Make = partial(embedded, folder)
        url = f"sqlite:{folder / 'latency.db'}"
        if options.bus != "sqlite":
            bootstrap = stack.enter_context(brokers(options.bus))
            make, url = partial(on_kafka, bootstrap), f"{bootstrap}/bench"
        figures = {
            "large": throughput(make, 1_000_000, options.megabytes, options.rounds),
            "small": throughput(make, 200, options.megabytes * (250 if options.bus == "sqlite" else 50), options.rounds),
            "latency": latency(url, 300),
        }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        report(figures, "plain file" if options.bus == "sqlite" else "kafka-python")


if __name__ == "__main__":
    main()
