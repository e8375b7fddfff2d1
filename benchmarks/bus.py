"""How fast the embedded bus writes, reads and wakes, beside what the disk and the machine allow in the same run.

The limit for writing is a plain file that gets the same bytes with one fsync for every batch; for reading, that file read
again; for waking, a pipe between two processes. Each figure is the median of several rounds, bus and file in turn. Run it on
the disk that matters: ``python benchmarks/bus.py --folder /data``.
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
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from refold.bus import Place, TopicSpec
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


def write_bus(bus: SqliteBus, values: list[bytes], count: int) -> None:
    """Send all records; the producer flushes whenever a batch is full."""
    with bus.producer(max_in_flight_bytes=BATCH_BYTES) as producer:
        for number in range(count):
            producer.send(TOPIC.name, values[number % len(values)])


def read_bus(bus: SqliteBus, count: int) -> None:
    """Read all records."""
    with bus.consumer(max_in_flight_bytes=BATCH_BYTES) as consumer:
        consumer.assign([Place(TOPIC.name, 0)])
        read = 0
        while read < count:
            read += len(consumer.poll(10.0, max_records=2000))


def throughput(folder: Path, size: int, count: int, rounds: int) -> dict[str, float]:
    """Measure one size of record."""
    values = [os.urandom(size) for _ in range(8)]
    plain = folder / f"plain-{size}"
    took: list[dict[str, float]] = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as name, SqliteBus(Path(name) / "bus.db") as bus:
            bus.create_topics([TOPIC])
            figures = {
                "write_s": timed(partial(write_bus, bus, values, count)),
                "read_s": timed(partial(read_bus, bus, count)),
                "plain_write_s": timed(partial(write_file, plain, values, count, size)),
                "plain_read_s": timed(partial(read_file, plain)),
            }
        took.append(figures)
        print(f"{size} B, round {number + 1} of {rounds}", file=sys.stderr)
    medians = {name: statistics.median(each[name] for each in took) for name in took[0]}
    return medians | {"size_bytes": size, "records": count}


def _echo_bus(path: str, rounds: int) -> None:
    with SqliteBus(path) as bus, bus.producer() as producer, bus.consumer() as consumer:
        consumer.assign([Place(TOPIC.name, 0)])
        for _ in range(rounds):
            [record] = consumer.poll(60.0)
            producer.send(TOPIC.name, record.value, partition=1).result()


def _echo_pipe(end: Connection, rounds: int) -> None:
    for _ in range(rounds):
        end.send_bytes(end.recv_bytes())


def latency(folder: Path, rounds: int) -> dict[str, float]:
    """Measure commits there and back between two processes, and the same through a pipe, in milliseconds one way."""
    spawn = multiprocessing.get_context("spawn")
    path = folder / "latency.db"
    with SqliteBus(path) as bus, bus.producer() as producer, bus.consumer() as consumer:
        bus.create_topics([TOPIC])
        echo = spawn.Process(target=_echo_bus, args=(str(path), rounds))
        echo.start()
        consumer.assign([Place(TOPIC.name, 1)])

        def there_and_back() -> None:
            producer.send(TOPIC.name, b"x" * 200, partition=0).result()
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


def report(figures: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    for name, unit, per_record in (("large", "MB/s", False), ("small", "records/s", True)):
        row = figures[name]
        amount = row["records"] if per_record else row["records"] * row["size_bytes"] / 1e6
        for way in ("write", "read"):
            ours, limit = amount / row[f"{way}_s"], amount / row[f"plain_{way}_s"]
            size = f"{int(row['size_bytes']):,} B"
            print(f"{way:5} {size:>11}: {ours:12,.0f} {unit:9} plain file {limit:14,.0f}   ratio {ours / limit:.3f}")
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        figures = {
            "large": throughput(folder, 1_000_000, options.megabytes, options.rounds),
            "small": throughput(folder, 200, options.megabytes * 250, options.rounds),
            "latency": latency(folder, 300),
        }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        report(figures)


if __name__ == "__main__":
    main()
