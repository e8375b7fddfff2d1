"""Seconds for a round: clients submit, all groups work, the next round begins. No local training.

Ten clients (one process, a thread each) send deltas of a normal distribution; all groups run in one other process, whose CPU
time and memory are measured. The peer, in the same run, is the least that federated averaging can do on this disk: each
client's float32 parameters written to a file and synced, read back and averaged, with no log, checks, signatures or digests.

    python benchmarks/round.py [--parameters 1000000] [--clients 10] [--rounds 8] [--bus sqlite|kafka|kafka://…] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import psutil
from _brokers import federation_url

import refold
from refold.consumers.memory import limit_arenas

AIMS_S = {("sqlite", 1_000_000): 0.45, ("sqlite", 10_000_000): 3.0, ("kafka", 1_000_000): 0.6, ("kafka", 10_000_000): 3.5}
"""Bus and parameters → the aim for a round of ten clients on two cores; other sizes have none."""

AIM_MODELS = 8.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bus", default="sqlite", help="sqlite, kafka (starts a broker) or kafka://HOST:PORT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refold-bench-") as folder:
        with federation_url(options.bus, Path(folder)) as url:
            found = measure(options, url, Path(folder))
        found["peer_round_s"] = naive_round(Path(folder), options.parameters, options.clients)
    found["ratio_to_peer"] = found["round_s"] / found["peer_round_s"]
    kind = "kafka" if options.bus.startswith("kafka") else "sqlite"
    aim_s = AIMS_S.get((kind, options.parameters)) if options.clients == 10 else None
    found |= {"bus": kind, "ratio_to_aim": found["round_s"] / aim_s if aim_s else None}
    if options.json:
        print(json.dumps(found))
        return
    print(f"{kind}: {options.clients} clients × {options.parameters:,} parameters, {found['rounds']} rounds measured")
    of_aim = f"   ({found['ratio_to_aim']:.2f} of the aim)" if aim_s else ""
    print(f"  a round            {found['round_s']:.3f} s{of_aim}")
    print(f"  the peer's round   {found['peer_round_s']:.3f} s   (ratio {found['ratio_to_peer']:.2f})")
    print(f"  server CPU         {found['server_cpu_s']:.3f} s a round; clients {found['client_cpu_s']:.3f} s")
    print(f"  server memory      {found['server_models']:.1f} × the model above idle (aim {AIM_MODELS:g})")
    print(f"  sent a round       {found['sent_bytes'] / 1e6:.2f} MB ({found['compression']:.1f} times smaller than float32)")


def measure(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    """Run a federation for a few rounds and return the figures of a middle round."""
    rng = np.random.default_rng(0)
    initial = {"weight": rng.normal(0, 0.05, options.parameters).astype(np.float32)}
    plan = refold.Plan(minimum=options.clients, deadline_s=None, rounds=options.rounds + 2, heartbeat_s=0.5)
    keys = folder / "keys"
    with refold.create(url, initial, plan=plan, keys=keys, snapshots=refold.SnapshotPolicy(1000, 1)) as federation:
        names = [f"client-{number}" for number in range(options.clients)]
        for name in names:
            key = refold.SigningKey.load_or_create(folder / f"{name}.pem")
            federation.enroll(name, key.public)
        server = subprocess.Popen([sys.executable, __file__, "--serve", url, str(keys)], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            idle_bytes = int(server.stdout.readline())
            return _train(federation, folder, names, server.pid, idle_bytes, options.parameters)
        finally:
            server.terminate()
            server.wait()


def _train(
    federation: refold.Federation, folder: Path, names: list[str], server_pid: int, idle_bytes: int, parameters: int
) -> dict[str, Any]:
    began: dict[int, float] = {}
    cpu: dict[int, tuple[float, float]] = {}
    sent: list[int] = []
    server = psutil.Process(server_pid)
    peak = [idle_bytes]
    lock = threading.Lock()

    def one(number: int, name: str) -> None:
        rng = np.random.default_rng(number)
        noise = rng.normal(0, 1e-3, parameters).astype(np.float32)
        with federation.client(name, key=folder / f"{name}.pem") as client:
            for task in client.tasks():
                with lock:
                    if task.round not in began:
                        began[task.round] = time.perf_counter()
                        times = server.cpu_times()
                        cpu[task.round] = (times.user + times.system, time.process_time())
                local = task.numpy()
                local["weight"] += np.roll(noise, task.round * 7919)
                task.submit(local, num_examples=100)

    def watch(stop: threading.Event) -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], server.memory_info().rss)

    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop,), daemon=True)
    watcher.start()
    threads = [threading.Thread(target=one, args=(number, name), daemon=True) for number, name in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    history = federation.history()
    history.close()
    for _, event in _accepted(federation):
        sent.append(event)
    first, last = min(began) + 2, max(began)
    rounds = last - first
    return {
        "clients": len(names),
        "parameters": parameters,
        "rounds": rounds,
        "round_s": (began[last] - began[first]) / rounds,
        "server_cpu_s": (cpu[last][0] - cpu[first][0]) / rounds,
        "client_cpu_s": (cpu[last][1] - cpu[first][1]) / rounds,
        "server_models": (peak[0] - idle_bytes) / (4 * parameters),
        "server_idle_bytes": idle_bytes,
        "sent_bytes": sum(sent[-len(names) * rounds :]) / rounds,
        "compression": 4 * parameters * len(names) * rounds / sum(sent[-len(names) * rounds :]),
    }


def _accepted(federation: refold.Federation) -> list[tuple[int, int]]:
    from refold.bus.ledger import read_all
    from refold.schemas.events import UpdateAccepted

    found = []
    for entry in read_all(federation.bus, federation.topics.accepted):
        for index, event in entry.indexed():
            if isinstance(event, UpdateAccepted) and event.payload is not None:
                found.append((index, event.payload.size_bytes))
    return found


def naive_round(folder: Path, parameters: int, clients: int) -> float:
    """Return the seconds of a round that writes float32 files, syncs, reads and averages them."""
    arrays = [np.random.default_rng(number).normal(0, 1, parameters).astype(np.float32) for number in range(clients)]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for number, array in enumerate(arrays):
            with (folder / f"naive-{number}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        total = np.zeros(parameters, np.float32)
        for number in range(clients):
            total += np.load(folder / f"naive-{number}.npy")
        total /= clients
        times.append(time.perf_counter() - start)
    return min(times)


def serve(url: str, keys: str) -> None:
    """Run all groups as `refold serve` does; print the idle memory once the federation is open and has its genesis snapshot."""
    limit_arenas()
    with refold.connect(url, keys=keys) as federation, federation.serve() as server:
        history = federation.history()
        while 0 not in history.snapshots:
            server.wait(0.05)
            history.refresh()
        history.close()
        print(psutil.Process().memory_info().rss, flush=True)
        server.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3])
    else:
        main()
