"""One update of 100 M float32 parameters through a default broker: seconds, bytes, and the memory of server and client.

Server and client are processes of their own, whose highest resident memory the kernel keeps (VmHWM, so Linux only). The change
is random over a range that leaves codecs little to save: `exact` sends 3.2 bytes a parameter, `float32` 3.6. The limit: the
server stays below idle + 8 × model (below 10 M parameters the buffers of constant size outweigh that). Exits with 1 where it
does not, or where the rebuilt round is not the recorded one.

    python benchmarks/large_update.py [--parameters 100000000] [--codec exact|float32] [--rounds 1] [--bus sqlite|kafka] …
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import psutil
from _brokers import federation_url

import refold
from refold.consumers.memory import limit_arenas

LIMIT_MODELS = 8.0
CLIENT = "large"
BLOCK = 1 << 20
WAIT_S = 600.0


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--codec", choices=["exact", "float32"], default="exact")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bus", default="sqlite", help="sqlite, kafka (starts a broker) or kafka://HOST:PORT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refold-bench-") as folder, federation_url(options.bus, Path(folder)) as url:
        found = measure(options, url, Path(folder))
    holds = found["server_models"] <= LIMIT_MODELS and found["rebuilt_equal"] and found["outcome"] == "accepted"
    if options.json:
        print(json.dumps(found))
        return 0 if holds else 1
    print(f"{found['bus']}: one client, {options.parameters:,} parameters, codec {options.codec}, {options.rounds} round(s)")
    print(f"  the update         {found['sent_bytes'] / 1e6:.0f} MB of {found['model_bytes'] / 1e6:.0f} MB of float32")
    print(f"  made and sent      {found['submit_s']:.1f} s; {found['outcome']} {found['receipt_s']:.1f} s after that")
    print(f"  server memory      {found['server_models']:.1f} × the model above idle (limit {LIMIT_MODELS:g}), ", end="")
    print(f"{found['server_peak_bytes'] / 1e6:.0f} MB at most; idle {found['server_idle_bytes'] / 1e6:.0f} MB")
    print(f"  client memory      {found['client_models']:.1f} × the model, {found['client_peak_bytes'] / 1e6:.0f} MB at most")
    print(
        f"  rebuilt            {found['rebuild_s']:.1f} s, {'equal to' if found['rebuilt_equal'] else 'NOT'} what is recorded"
    )
    return 0 if holds else 1


def measure(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    """Run the rounds with a server and a client of their own and return the figures of the last one."""
    keys, pem, model_bytes = folder / "keys", folder / f"{CLIENT}.pem", 4 * options.parameters
    plan = refold.Plan(minimum=1, deadline_s=None, rounds=options.rounds, heartbeat_s=0.5, codec=options.codec)
    initial = {"weight": np.random.default_rng(0).normal(0, 0.05, options.parameters).astype(np.float32)}
    with refold.create(url, initial, plan=plan, keys=keys, partitions=1, defence="consistency") as federation:
        del initial
        federation.enroll(CLIENT, refold.SigningKey.load_or_create(pem).public)
        with _role("serve", url, keys) as server:
            idle_bytes = _told(server)["idle_bytes"]
            with _role("train", url, pem) as client:
                sent = [_told(client) for _ in range(options.rounds)][-1]
            peak_bytes = peak_of(server.pid)
        began_s = time.perf_counter()
        state = federation.rebuild(options.rounds, start=0, verify=False)
        took_s = time.perf_counter() - began_s
        recorded = _recorded(federation, options.rounds)
        return sent | {
            "bus": url.partition(":")[0],
            "parameters": options.parameters,
            "model_bytes": model_bytes,
            "sent_bytes": _update_bytes(federation),
            "server_idle_bytes": idle_bytes,
            "server_peak_bytes": peak_bytes,
            "server_models": (peak_bytes - idle_bytes) / model_bytes,
            "client_models": sent["client_peak_bytes"] / model_bytes,
            "rebuild_s": took_s,
            "rebuilt_equal": state.digest == recorded,
        }


def serve(url: str, keys: str) -> None:
    """Run all groups as `refold serve` does; say the idle memory once the federation is open and has its genesis snapshot."""
    limit_arenas()
    with refold.connect(url, keys=keys) as federation:
        _say(idle_bytes=psutil.Process().memory_info().rss)
        with federation.serve() as server:
            server.wait()


def train(url: str, pem: str) -> None:
    """Answer every task with a random change, and say of each how long it took."""
    limit_arenas()
    rng = np.random.default_rng(1)
    with refold.connect(url) as federation, federation.client(CLIENT, key=pem, open_timeout_s=WAIT_S) as client:
        for task in client.tasks():
            local = task.numpy()
            _shake(local["weight"], rng)
            began_s = time.perf_counter()
            receipt = task.submit(local, num_examples=100)
            del local
            sent_s = time.perf_counter()
            outcome = receipt.wait(WAIT_S)
            took = {"submit_s": sent_s - began_s, "receipt_s": time.perf_counter() - sent_s}
            _say(**took, outcome=outcome, client_peak_bytes=peak_of(os.getpid()))


def _shake(weights: np.ndarray[Any, np.dtype[np.float32]], rng: np.random.Generator) -> None:
    """Add a uniform change in place, block by block: a training's own memory is not what is measured."""
    for start in range(0, len(weights), BLOCK):
        part = weights[start : start + BLOCK]
        part += (rng.random(len(part), np.float32) - np.float32(0.5)) * np.float32(8)


def peak_of(pid: int) -> int:
    """Return the most resident memory a process has had since its program was loaded (Linux).

    Not `ru_maxrss`, which begins with what the process that started it held.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def _role(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run this program in another role, and end it."""
    with subprocess.Popen([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _say(**figures: float | str) -> None:
    print(json.dumps(figures), flush=True)


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process ended too early, with {process.wait()}")
    told: dict[str, Any] = json.loads(line)
    return told


def _recorded(federation: refold.Federation, round_: int) -> bytes | None:
    history = federation.history()
    try:
        return history.lineage.state_digest(round_)
    finally:
        history.close()


def _update_bytes(federation: refold.Federation) -> int:
    from refold.schemas.events import UpdateAccepted

    payloads = [event.payload for event, _ in federation.log() if isinstance(event, UpdateAccepted)]
    return max(payload.size_bytes for payload in payloads if payload is not None)


if __name__ == "__main__":
    roles = {"serve": serve, "train": train}
    if sys.argv[1:2] and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())
