"""Mixed faults under load, then an audit of the whole log: nothing lost, nothing doubled, no wrong state, or exit code 1.

Each group and each of four clients is a process. They are killed at random moments and at every durable step (a step that was
never hit fails the run), frozen and thawed late, robbed of acknowledgements and of disk space; on Kafka (three brokers, a fault
proxy in front of each) brokers are lost and frozen and networks are bad, too. The same federation undisturbed, in the same
program just before, is what throughput is compared with. The log is audited every few minutes and at the end, by the checker
that knows nothing of what wrote it, by `refold verify`'s audit, and by rebuilding rounds.

    python benchmarks/soak.py [--minutes 2] [--bus sqlite|kafka] [--seed N] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))

import numpy as np
from faultkit.brokers import ProxiedCluster
from faultkit.disks import mount_small_disk, unmount
from faultkit.points import PATCHES, busy_model
from faultkit.processes import wait_until
from faultkit.soaking import BrokerSoak, Soak
from faultkit.world import GROUPS, World

import refold
from refold.bus.ledger import read_all
from refold.schemas.events import UpdateAccepted

CLIENTS = 4
SESSION_S = 3.0
QUIET_SHARE, LEAST_QUIET_ROUNDS = 0.1, 5
AUDIT_EVERY_S = 120.0
DISK_BYTES_PER_MINUTE = 128 << 20
REBUILT = 12
SETTLE_S = 600.0


def main() -> int:
    """Soak, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of faults; steps not hit by then are hit after it")
    parser.add_argument("--bus", choices=("sqlite", "kafka"), default="sqlite")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="refold-soak-") as folder, place(options, Path(folder)) as (world, brokers):
        found = soak(world, brokers, options)
    found |= {"bus": options.bus, "seed": options.seed}
    print(json.dumps(found) if options.json else told(found))
    return 0 if found["sound"] else 1


@contextmanager
def place(options: argparse.Namespace, folder: Path) -> Iterator[tuple[World, ProxiedCluster | None]]:
    """Yield a federation's folder, on a small disk of its own where that is permitted, or on brokers behind proxies."""
    if options.bus == "kafka":
        with ProxiedCluster(options.seed) as brokers, brokers.new_world(folder) as world:
            yield world, brokers
        return
    disk = folder / "disk"
    has_disk = mount_small_disk(disk, max(512 << 20, int(options.minutes * DISK_BYTES_PER_MINUTE)))
    try:
        with World(folder) as world:
            if has_disk:
                world.tell(disk=disk)
            yield world, None
    finally:
        if has_disk:
            unmount(disk)


def soak(world: World, brokers: ProxiedCluster | None, options: argparse.Namespace) -> dict[str, Any]:
    """Run a federation, undisturbed and then not, and return what was found."""
    chance = random.Random(options.seed)
    world.tell(session_timeout_s=SESSION_S, patches=PATCHES)
    world.found(clients=CLIENTS, model=busy_model(420), deadline_s=3.0, snapshots=refold.SnapshotPolicy(1, 1))
    servers = {group: world.serve(group) for group in GROUPS}
    clients = [world.train(name) for name in world.clients]
    given = (world, servers, clients, chance, nonsense(world, chance))
    run = Soak(*given) if brokers is None else BrokerSoak(brokers, *given)
    failures: list[str] = []
    found: dict[str, Any] = {}
    try:
        found = {"undisturbed_rounds_per_s": undisturbed(run, options.minutes * 60 * QUIET_SHARE)}
        found |= disturbed(run, options.minutes * 60)
        found |= finish(run)
    except AssertionError as error:
        failures.append(f"{str(error)[:1000]} … {str(error)[-3000:]}")
    finally:
        run.close()
    if "disturbed_rounds_per_s" in found:
        found["ratio_to_undisturbed"] = found["disturbed_rounds_per_s"] / found["undisturbed_rounds_per_s"]
    missed = run.missed()
    failures += [f"durable steps never hit: {', '.join(missed)}"] if missed else []
    return found | report(run, brokers) | {"failures": failures, "sound": not failures}


def nonsense(world: World, chance: random.Random) -> Callable[[], None]:
    """Return what sends a record that is no update and too large to be quarantined in one event."""

    def send() -> None:
        with world.fed.bus.producer() as producer:
            value = chance.randbytes(4) * 20_000
            producer.send(world.fed.topics.updates, value, key=b"nobody", partition=chance.randrange(2))

    return send


def undisturbed(run: Soak, seconds: float) -> float:
    """Return rounds per second while nothing is done to anyone."""
    run.wait_for_rounds(2)
    head, began_s = run.head(), time.monotonic()
    wait_until(
        lambda: time.monotonic() - began_s >= seconds and run.head() >= head + LEAST_QUIET_ROUNDS,
        "undisturbed rounds",
        timeout_s=seconds + 300,
        tend=run.world.tend,
        pause_s=0.1,
    )
    return (run.head() - head) / (time.monotonic() - began_s)


def disturbed(run: Soak, seconds: float) -> dict[str, Any]:
    """Trouble the federation for so long, and then until every durable step was hit, for a bounded time."""
    head, began_s, audited_s = run.head(), time.monotonic(), time.monotonic()
    audits = 0
    for name in run.deeds:
        run.do(name)
    while time.monotonic() - began_s < seconds:
        run.trouble()
        if time.monotonic() - audited_s >= AUDIT_EVERY_S:
            violations = run.world.check(folds=False).violations
            assert not violations, f"in the middle: {violations}"
            audits, audited_s = audits + 1, time.monotonic()
            print(f"{audited_s - began_s:.0f} s: round {run.head()}, {run.kills()} kills", file=sys.stderr)
    took_s = time.monotonic() - began_s
    rounds_per_s = (run.head() - head) / took_s
    while run.missed() and time.monotonic() - began_s < 2 * seconds + 600:
        run.do("deaths at durable steps")
    return {"minutes": took_s / 60, "disturbed_rounds_per_s": rounds_per_s, "audits_on_the_way": audits}


def finish(run: Soak) -> dict[str, Any]:
    """End the federation and audit all of it."""
    world = run.world
    world.fed.end("the soak is over")
    wait_until(
        lambda: all(client.exit_code == 0 for client in run.clients), "the clients' end", timeout_s=SETTLE_S, tend=world.tend
    )
    wait_until(lambda: world.check(folds=False).settled, "a verdict for all", timeout_s=SETTLE_S, tend=world.tend, pause_s=1.0)
    world.stop()
    lost = world.lost()
    twice = accepted_twice(world)
    findings = world.assert_sound(most_rebuilt=REBUILT)
    assert not lost, f"{len(lost)} updates were lost"
    assert not twice, f"{len(twice)} updates were accepted twice"
    return {
        "rounds": findings.rounds,
        "updates": findings.updates,
        "accepted": findings.accepted,
        "refused": dict(findings.reasons),
        "stale_commits": findings.stale,
        "lost": len(lost),
        "accepted_twice": len(twice),
        "rounds_rebuilt_and_equal": min(REBUILT, len(findings.states)),
        "tracebacks": len(world.tracebacks()),
    }


def accepted_twice(world: World) -> set[bytes]:
    """Return the updates that were accepted more than once."""
    events = [event for entry in read_all(world.fed.bus, world.fed.topics.accepted) for event in entry.events]
    counts = Counter(event.origin.digest for event in events if isinstance(event, UpdateAccepted))
    return {digest for digest, count in counts.items() if count > 1}


def report(run: Soak, brokers: ProxiedCluster | None) -> dict[str, Any]:
    """Return what was done and how long the federation took to go on."""
    steps = Counter(
        {fault.split(" ", 1)[1].rpartition(" ")[0]: n for fault, n in run.world.faults().items() if fault.startswith("kill")}
    )
    every = sorted(seconds for of_deed in run.tally.recoveries_s.values() for seconds in of_deed)
    return {
        "kills": run.kills(),
        "kills_per_durable_step": dict(sorted(steps.items())),
        "deeds": dict(run.tally.deeds),
        "broker_losses": run.tally.broker_losses,
        "flipped_bits": brokers.flips if brokers else 0,
        "recovery_p50_s": percentile(every, 50),
        "recovery_p99_s": percentile(every, 99),
        "recovery_p50_s_by_deed": {name: percentile(found, 50) for name, found in run.tally.recoveries_s.items()},
    }


def percentile(values: list[float], q: float) -> float | None:
    """Return a percentile, None of nothing."""
    return round(float(np.percentile(values, q)), 3) if values else None


def told(found: dict[str, Any]) -> str:
    """Return the findings for people."""
    lines = [f"{name}: {value}" for name, value in found.items() if name != "kills_per_durable_step"]
    lines += [f"  died {step}: {count}" for step, count in found["kills_per_durable_step"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
