"""Servers killed at their durable steps: how long until the next round, and is finished work asked for again.

Each group and each client is a process. One server process after the other dies by SIGKILL right before or right after one of
its durable writes, every tenth time all of them do; a supervisor begins another life at once, which knows nothing but the log.
Timed is from the death to the next round that is committed. In the end everything is audited. A durable step at which nobody
died fails the run, and so does a client that was asked again for work that it had finished.

    python benchmarks/failover.py [--kills 100] [--bus sqlite|kafka] [--seed N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))

import numpy as np
from faultkit.buses import AFTER, BEFORE
from faultkit.faults import Fault
from faultkit.points import PATCHES, POINTS, busy_model
from faultkit.processes import Child, wait_until
from faultkit.world import GROUPS, World

import refold
from refold.producers.lineage import LineageReader

CLIENTS = 3
SESSION_S = 2.0
"""How long a group waits for a member on a broker that does not say whether it lives."""
ALL_EVERY = 10
PATIENCE_S = 240.0
AIMS_S = {"p50": 3.0, "p99": 10.0}

Points = dict[str, tuple[str, ...]]


def main() -> int:
    """Kill, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="100 on SQLite and 30 on Kafka, unless given")
    parser.add_argument("--bus", choices=("sqlite", "kafka"), default="sqlite")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    kills = options.kills or (100 if options.bus == "sqlite" else 30)
    with tempfile.TemporaryDirectory(prefix="refold-failover-") as folder, place(options.bus, Path(folder)) as world:
        found = failover(world, kills, random.Random(options.seed))
    found |= {"bus": options.bus, "seed": options.seed}
    print(json.dumps(found, indent=2) if options.json else told(found))
    return 0 if found["sound"] else 1


@contextmanager
def place(bus: str, folder: Path) -> Iterator[World]:
    """Yield a federation's folder, on a broker of its own if asked to."""
    if bus == "sqlite":
        with World(folder) as world:
            yield world
        return
    from refold.testing.kafka import Cluster

    with Cluster(1) as cluster, World(folder, f"{cluster.url}/failover-{os.urandom(3).hex()}") as world:
        world.tell(session_timeout_s=SESSION_S)
        yield world


def failover(world: World, kills: int, chance: random.Random, points: Points | None = None) -> dict[str, Any]:
    """Kill so many times at these points, all the servers' if None, and return what was found."""
    points = points or {group: POINTS[group] for group in GROUPS}
    world.tell(patches=PATCHES)
    world.found(clients=CLIENTS, model=busy_model(420), deadline_s=3.0, snapshots=refold.SnapshotPolicy(1, 1))
    run = Run(world, {group: world.serve(group) for group in GROUPS}, chance)
    for name in world.clients:
        world.train(name)
    try:
        run.wait_for_round(2)
        for number, (group, fault) in enumerate(_spread(points, kills, chance), 1):
            run.kill(group, fault, everyone=number % ALL_EVERY == 0)
            print(f"{number} {fault}: {run.seconds[-1]:.2f} s", file=sys.stderr)
        return report(run, points, finish(run))
    finally:
        run.close()


def _spread(points: Points, kills: int, chance: random.Random) -> Iterator[tuple[str, Fault]]:
    """Yield deaths: every point once, in any order, before any comes again; the sides in turns."""
    every = [(group, point) for group, held in points.items() for point in held]
    for number in range(kills):
        turn, at = divmod(number, len(every))
        if at == 0:
            chance.shuffle(every)
        group, point = every[at]
        yield group, Fault(point, (BEFORE, AFTER)[(turn + at) % 2])


class Run:
    """A federation whose servers are killed one after the other.

    Parameters
    ----------
    seconds
        From each death to the next round.
    died_at
        How often at which point.
    """

    def __init__(self, world: World, servers: dict[str, Child], chance: random.Random) -> None:
        self.world = world
        self.seconds: list[float] = []
        self.died_at: Counter[str] = Counter()
        self._servers = servers
        self._chance = chance
        self._lineage = LineageReader(world.fed.bus, world.fed.topics)

    def head(self) -> int:
        self._lineage.read_to_end()
        return self._lineage.lineage.head

    def wait_for_round(self, round_: int) -> float:
        """Wait for a round, starting again what was killed; return how long it took."""
        return wait_until(
            lambda: self.head() >= round_, f"round {round_}", timeout_s=PATIENCE_S, tend=self.world.tend, pause_s=0.005
        )

    def kill(self, group: str, fault: Fault, *, everyone: bool) -> None:
        """Let a group's process die at a point, and wait for the next round."""
        victim = self._servers[group]
        victim.stop()
        victim.queue[:] = [fault]
        victim.start()
        wait_until(
            lambda: victim.exit_code is not None, f"{fault}", timeout_s=PATIENCE_S, tend=self._feed(fault), pause_s=0.002
        )
        assert victim.exit_code == -signal.SIGKILL, f"{group} ended with {victim.exit_code}\n{self.world.logs()}"
        if everyone:
            for server in self._servers.values():
                server.send(signal.SIGKILL)
        self.seconds.append(self.wait_for_round(self.head() + 1))
        self.died_at[fault.point] += 1
        wait_until(lambda: self._is_up(), "all servers", timeout_s=PATIENCE_S, tend=self.world.tend)

    def _is_up(self) -> bool:
        return all(server.exit_code is None for server in self._servers.values())

    def _feed(self, fault: Fault) -> Callable[[], None]:
        """Return what makes the point be passed: what is no update, for quarantine."""
        if not fault.point.startswith("quarantine"):
            return lambda: None
        return self._send_nonsense

    def _send_nonsense(self) -> None:
        if self._chance.random() < 0.02:
            with self.world.fed.bus.producer() as producer:
                value = self._chance.randbytes(4) * 20_000
                producer.send(self.world.fed.topics.updates, value, key=b"nobody", partition=self._chance.randrange(2))

    def close(self) -> None:
        self._lineage.close()


def finish(run: Run) -> dict[str, Any]:
    """End the federation and audit all of it."""
    world = run.world
    world.fed.end("enough were killed")
    clients = [child for child in world.children if child.name in world.clients]
    wait_until(
        lambda: all(child.exit_code == 0 for child in clients), "the clients' end", timeout_s=PATIENCE_S, tend=world.tend
    )
    world.wait_until_settled(timeout_s=PATIENCE_S)
    world.stop()
    findings = world.assert_sound(most_rebuilt=6)
    repeated = 0
    try:
        tasks = world.assert_not_asked_again(findings)
    except AssertionError as error:
        print(error, file=sys.stderr)
        tasks, repeated = 0, 1
    return {"rounds": findings.rounds, "accepted": findings.accepted, "tasks": tasks, "repeated": repeated}


def report(run: Run, points: Points, finished: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured, and whether it is sound."""
    missed = sorted({point for held in points.values() for point in held} - run.died_at.keys())
    found = {name: round(float(np.percentile(run.seconds, q)), 3) for name, q in (("p50", 50), ("p99", 99), ("most", 100))}
    return {
        "kills": len(run.seconds),
        "seconds": found,
        "each_s": [round(value, 3) for value in run.seconds],
        "aims": {name: found[name] <= aim for name, aim in AIMS_S.items()},
        "died_at": dict(sorted(run.died_at.items())),
        "never_died_at": missed,
        **finished,
        "sound": not missed and not finished["repeated"],
    }


def told(found: dict[str, Any]) -> str:
    """Return the findings for people."""
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in found["seconds"].items())
    lines = [f"{found['bus']}, {found['kills']} kills: from death to the next round {seconds}"]
    lines.append(f"{found['rounds']} rounds, {found['accepted']} accepted, finished work asked for again: {found['repeated']}")
    lines += [f"  died at {point}: {count}" for point, count in found["died_at"].items()]
    lines += [f"  NEVER died at {point}" for point in found["never_died_at"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
