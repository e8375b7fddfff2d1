"""What trust costs: updates per second with signatures, chain and checks, beside the same federation with all of it off.

Each run is a process of its own that holds all groups and the clients' threads; runs of both kinds alternate, and the ratio is
that of their medians. "Off" replaces, in that process alone: signing and verifying, the hash that chains commits and the
comparison with it, the digests of chunks, payloads, updates and states (by a few of their bytes), the comparison with canonical
encoding, and the checks of what a manifest claims. Codecs, statistics and the bus are the same in both.

    python benchmarks/trust.py [--runs 5] [--rounds 8] [--shape CLIENTSxPARAMETERS …] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

AIM = 0.85
SHAPES = ("10x1000000", "20x2400")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each kind, alternating")
    parser.add_argument("--rounds", type=int, default=8, help="measured in each run")
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), metavar="CLIENTSxPARAMETERS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [compare(shape, options.runs, options.rounds) for shape in options.shape]
    if options.json:
        print(json.dumps(found))
        return
    for one in found:
        print(f"{one['clients']} clients × {one['parameters']:,} parameters, {options.runs} runs of each kind")
        print(f"  on    {one['on_per_s']:9.1f} updates/s   {one['on_cpu_ms']:7.2f} ms of CPU an update")
        print(f"  off   {one['off_per_s']:9.1f} updates/s   {one['off_cpu_ms']:7.2f} ms of CPU an update")
        print(f"  ratio {one['ratio']:9.2f} (aim {AIM})      {one['cpu_ratio']:7.2f} by CPU time")


def compare(shape: str, runs: int, rounds: int) -> dict[str, Any]:
    """Run both kinds in turn and return medians and their ratios: above 1, trust would be free."""
    clients, parameters = map(int, shape.split("x"))
    kinds: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    for _ in range(runs):
        for kind, measured in kinds.items():
            command = [sys.executable, __file__, "--one", kind, str(clients), str(parameters), str(rounds)]
            measured.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    per_s = {kind: statistics.median(one["per_s"] for one in measured) for kind, measured in kinds.items()}
    cpu_ms = {kind: statistics.median(one["cpu_ms"] for one in measured) for kind, measured in kinds.items()}
    return {
        "clients": clients,
        "parameters": parameters,
        "on_per_s": per_s["on"],
        "off_per_s": per_s["off"],
        "ratio": per_s["on"] / per_s["off"],
        "on_cpu_ms": cpu_ms["on"],
        "off_cpu_ms": cpu_ms["off"],
        "cpu_ratio": cpu_ms["off"] / cpu_ms["on"],
    }


def run_one(kind: str, clients: int, parameters: int, rounds: int) -> dict[str, float]:
    """Run one federation in this process and return its updates per second, and CPU per update."""
    import numpy as np

    import refold
    import refold.federation

    if kind == "off":
        trust_everything()
    with tempfile.TemporaryDirectory(prefix="refold-trust-") as name:
        folder = Path(name)
        initial = {"weight": np.random.default_rng(0).normal(0, 0.05, parameters).astype(np.float32)}
        plan = refold.Plan(minimum=clients, deadline_s=None, rounds=rounds + 2, heartbeat_s=5.0)
        snapshots = refold.SnapshotPolicy(1000, 1)
        with refold.create(f"sqlite:{folder}/trust.db", initial, plan=plan, snapshots=snapshots) as federation:
            keys = [refold.SigningKey.load_or_create(folder / f"{number}.pem") for number in range(clients)]
            for number, key in enumerate(keys):
                federation.enroll(f"client-{number}", key.public)
            with federation.serve():
                return _trained(federation, keys, folder, parameters)


def _trained(federation: Any, keys: list[Any], folder: Path, parameters: int) -> dict[str, float]:
    """Train to the end, and return the figures of all rounds but the first, in which processes warm up, and the last."""
    import numpy as np

    began: dict[int, tuple[float, float]] = {}
    lock = threading.Lock()

    def work(number: int) -> None:
        noise = np.random.default_rng(number).normal(0, 1e-3, parameters).astype(np.float32)
        with federation.client(f"client-{number}", key=keys[number], outbox=folder / f"{number}.outbox") as client:
            for task in client.tasks():
                with lock:
                    began.setdefault(task.round, (time.perf_counter(), _cpu_s()))
                local = task.numpy()
                local["weight"] += np.roll(noise, task.round * 7919)
                task.submit(local, num_examples=100)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, last = min(began) + 1, max(began)
    updates = (last - first) * len(keys)
    return {
        "per_s": updates / (began[last][0] - began[first][0]),
        "cpu_ms": 1000 * (began[last][1] - began[first][1]) / updates,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def trust_everything() -> None:
    """Switch off, in this process, all that Refold does so as not to trust anyone."""
    from refold.consumers.inspection import Inspector
    from refold.schemas import canonical, commits, digests, keys, payload, updates

    everywhere(keys.verify, lambda *_: True)
    keys.SigningKey.sign = lambda self, tag, message: bytes(64)  # type: ignore[method-assign]
    everywhere(commits.commit_hash, some_bytes)
    commits.Chain._extends = lambda self, commit: True  # type: ignore[method-assign]
    everywhere(payload.chunk_digest, some_bytes)
    everywhere(payload.payload_root, lambda chunks, lengths: b"".join(chunks)[:32].ljust(32, b"\0"))
    payload.Payload.__post_init__ = lambda self: None  # type: ignore[method-assign]
    everywhere(updates.update_digest, _named)
    everywhere(digests.digest, lambda data, domain: some_bytes(data))
    Inspector.check_claims = lambda self, body: None  # type: ignore[method-assign]
    everywhere(canonical._unpack_record, _unpacked)


def some_bytes(data: bytes | memoryview) -> bytes:
    """Return 32 of the bytes and their count: enough to tell honest values apart, and next to free."""
    middle = len(data) // 2
    return (len(data).to_bytes(4, "little") + bytes(data[middle : middle + 14]) + bytes(data[-14:])).ljust(32, b"\0")


def _named(body: Any) -> bytes:
    """Return what tells an update from every other, and no digest of what it says."""
    numbers = body.base_round.to_bytes(4, "big") + body.sequence.to_bytes(4, "big")
    return (numbers + body.session_nonce + body.client.encode()[-16:]).ljust(32, b"\0")


def _unpacked(data: bytes | memoryview) -> Any:
    import msgpack

    return msgpack.unpackb(data, use_list=False, raw=False)


def everywhere(function: Callable[..., Any], instead: Callable[..., Any]) -> None:
    """Put one function in place of another in every module of Refold that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "refold" and getattr(module, function.__name__, None) is function:
            setattr(module, function.__name__, instead)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(run_one(sys.argv[2], *map(int, sys.argv[3:6]))))
    else:
        main()
