"""What it costs to know whether nodes hold the log's state, whatever the pace at which rounds follow each other.

Signed beats of many clients go through `Hearing`, as detection hears them, while 1, 30 and 1,000 rounds are committed between
two beats of each client; then the same with one client of a hundred telling of another state. Beside it, in the same run, how
such checks usually go: one for each version that a client passes. Last, what a divergence costs: hashing at the client, the
tree's bytes, looking at it, and naming the block; a rebuild of the round besides (benchmarks/replay.py).

    python benchmarks/agreement.py [--clients N] [--beats N] [--parameters N] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refold.bus.clock import SystemClock
from refold.bus.ledger import Entry
from refold.consumers.hearing import Hearing
from refold.consumers.liveness import Liveness
from refold.consumers.planning import plan_round
from refold.consumers.roster import Roster
from refold.plan import Plan
from refold.producers.lineage import Lineage
from refold.schemas.canonical import encode
from refold.schemas.commits import Commit, Position
from refold.schemas.digests import DigestTree, parameters_nodes
from refold.schemas.events import Defence, Genesis, Identity, RoundCommitted, SnapshotPolicy
from refold.schemas.identity import ClientEnrolled
from refold.schemas.keys import HEARTBEAT_TAG, SigningKey
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.payload import describe
from refold.schemas.state_tree import StateTree, differing, named, root_of, told_digests
from refold.schemas.updates import Heartbeat, heartbeat_digest

PACES = (1, 30, 1_000)
"""Rounds committed between two beats of a client."""

POLICY = Plan(minimum=1, heartbeat_s=1.0, seed=bytes(16)).policy()
WRONG = b"\xff" * 32


def digest_of(round_: int) -> bytes:
    return round_.to_bytes(32, "big")


def _roster(names: list[str], key: SigningKey) -> Roster:
    schema = ModelSchema((TensorSchema("w", "float32", (4,), 22, "mean"),))
    made = Roster.of(
        Genesis(
            "bench", schema, describe([b""]), bytes(32), bytes(32), POLICY, plan_round(POLICY, 1, (0,), ()), "fedavg", (),
            SnapshotPolicy(1, 1), Defence("all", ()), (key.public,), bytes(32), 0, (), Identity(True, ()),
        )
    )  # fmt: skip
    events = tuple(ClientEnrolled(name, key.public, index.to_bytes(16, "big")) for index, name in enumerate(names))
    made.fold(Entry(Commit(1, 0, bytes(32), "w", 0, Position(), len(events), (), None), bytes(32), 0, events))
    return made


def _lineage(rounds: int) -> Lineage:
    plan = plan_round(POLICY, 1, (0,), ())
    lineage = Lineage()
    for round_ in range(1, rounds + 1):
        digest = digest_of(round_)
        lineage.rounds[round_] = RoundCommitted(round_, round_ - 1, "applied", "", (), None, (), None, (), digest, digest, plan)
    lineage.head = rounds
    return lineage


def _beats(names: list[str], key: SigningKey, number: int, round_: int, astray: int) -> list[Heartbeat]:
    found = []
    for index, name in enumerate(names):
        digest = WRONG if astray and index % astray == 0 else digest_of(round_)
        beat = Heartbeat("bench", name, 3, bytes(8), number, 1000, "waiting", round_, digest, (), 0, key.key_id)
        found.append(replace(beat, signature=key.sign(HEARTBEAT_TAG, heartbeat_digest(beat))))
    return found


def beats_cost_us(clients: int, beats: int, pace: int, *, astray: int = 0) -> tuple[float, int]:
    """Return the processor microseconds of a beat that is heard, and the comparisons made in all."""
    key, names = SigningKey.generate(), [f"client-{index}" for index in range(clients)]
    roster, lineage, hearing = _roster(names, key), _lineage(pace * beats), Hearing(Liveness())
    asked = 0

    def known(round_: int) -> bytes | None:
        nonlocal asked
        asked += 1
        return lineage.parameters_digest(round_)

    spent_s = 0.0
    for number in range(beats):
        made = _beats(names, key, number, pace * (number + 1), astray)
        begun_s = time.process_time()
        hearing.take(roster, made, 100.0 + number, known)
        spent_s += time.process_time() - begun_s
    return 1e6 * spent_s / (clients * beats), asked


def peer_us(clients: int, pace: int) -> float:
    """Return the processor microseconds that a check of every version takes: each client's record of each round, looked at."""
    held = {round_: digest_of(round_) for round_ in range(pace)}
    begun_s = time.process_time()
    wrong = sum(held[round_] != digest_of(round_) for _ in range(clients) for round_ in range(pace))
    assert not wrong
    return 1e6 * (time.process_time() - begun_s) / clients


def divergence_cost(parameters: int) -> dict[str, float]:
    """Return what one divergence costs: milliseconds, and bytes of the tree."""
    schema = ModelSchema((TensorSchema("w", "float32", (parameters,), 22, "mean"),))
    values = np.random.default_rng(1).integers(-(2**20), 2**20, parameters).astype(np.int32)
    truth = DigestTree(parameters_nodes(schema, [values]))
    values[parameters // 2] ^= 1
    tree, hash_ms = _timed(lambda: DigestTree(parameters_nodes(schema, [values])))
    depth, digests = told_digests(tree)
    told = StateTree("bench", "ann", 0, bytes(8), 0, 1, tree.parameters_digest, depth, digests, bytes(8), bytes(64))
    where, named_ms = _timed(lambda: named(schema, differing(told, schema, truth)))
    root, root_ms = _timed(lambda: root_of(told, schema))
    assert root == tree.parameters_digest
    assert where.startswith("w, block"), where
    return {"hash_ms": hash_ms, "tree_bytes": len(encode(told)), "check_tree_ms": root_ms, "name_ms": named_ms}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    clock, found, times = SystemClock(), None, []
    for _ in range(3):
        begun_s = clock.monotonic_s()
        found = work()
        times.append(1000 * (clock.monotonic_s() - begun_s))
    return found, statistics.median(times)


def measure(clients: int, beats: int, parameters: int) -> dict[str, Any]:
    """Return all figures; every pace is measured in turn, three times, and the least counts."""
    beats_cost_us(clients, 2, 1)
    runs = [{pace: beats_cost_us(clients, beats, pace) for pace in PACES} for _ in range(3)]
    costs = {pace: min(run[pace][0] for run in runs) for pace in PACES}
    paces = {
        str(pace): {"us_per_beat": costs[pace], "comparisons_per_beat": runs[0][pace][1] / (clients * beats)} for pace in PACES
    }
    peers = {str(pace): peer_us(clients, pace) for pace in PACES}
    return {
        "clients": clients,
        "beats": beats,
        "paces": paces,
        "cost_at_1000_over_cost_at_1": costs[1_000] / costs[1],
        "astray_us_per_beat": beats_cost_us(clients, beats, 1, astray=100)[0],
        "every_version_us_per_beat": peers,
        "every_version_at_1000_over_at_1": peers["1000"] / peers["1"],
        "parameters": parameters,
        "divergence": divergence_cost(parameters),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--beats", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args()
    found = measure(said.clients, said.beats, said.parameters)
    if said.json:
        print(json.dumps(found))
        return
    for pace, cost in found["paces"].items():
        version = found["every_version_us_per_beat"][pace]
        print(
            f"{pace:>5} rounds an interval: {cost['us_per_beat']:6.1f} µs a beat, "
            f"{cost['comparisons_per_beat']:.1f} look-ups; a check of every version {version:8.1f} µs"
        )
    print(
        f"at 1,000 rounds an interval a beat costs {found['cost_at_1000_over_cost_at_1']:.2f} times what it costs at 1 "
        f"(a check of every version {found['every_version_at_1000_over_at_1']:.0f} times); "
        f"with one client of a hundred astray {found['astray_us_per_beat']:.1f} µs"
    )
    once = found["divergence"]
    print(
        f"a divergence, {found['parameters']:,} parameters: hashing {once['hash_ms']:.0f} ms at the client, a tree of "
        f"{once['tree_bytes']:,.0f} bytes, {once['check_tree_ms']:.1f} ms to check it, {once['name_ms']:.1f} to name the block"
    )


if __name__ == "__main__":
    main()
