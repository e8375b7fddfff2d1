"""Fault 1 with the real programs: `refold serve` killed and started again, `refold verify` afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from faultkit.processes import wait_until
from faultkit.world import GROUPS, Clients, World


def test_f01_servers_started_from_the_command_line_are_killed_and_replaced(world: World):
    world.found(clients=3, deadline_s=3.0)
    world.tell(archives=False)
    with Programs(world) as programs, Clients(world, world.clients):
        for group in GROUPS:
            programs.start(group)
        world.wait_for_round(2)
        recoveries = {group: programs.replace(group) for group in GROUPS}
        world.fed.end("the test is over")
    print("from a kill to the second round after it: " + ", ".join(f"{g} {s:.2f} s" for g, s in recoveries.items()))
    assert refold_verify(world).returncode == 0


class Programs:
    """`refold serve` for each group, ended with the test."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._log = (world.place.folder / "server.log").open("ab")

    def start(self, group: str) -> None:
        """Start a group's server."""
        command = [sys.executable, "-m", "refold", "serve", "--bus", self._world.place.url, group]
        self._running[group] = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def replace(self, group: str) -> float:
        """Kill a group's server, start another, and return how long two more rounds took."""
        with self._world.following() as lineage:
            head = lineage().head
            began_s = time.monotonic()
            self._running[group].send_signal(signal.SIGKILL)
            self._running[group].wait()
            self.start(group)
            wait_until(lambda: lineage().head >= head + 2, f"rounds after {group} was killed", tend=self._world.tend)
            wait_until(lambda: f"-{self._running[group].pid}-" in self._world.logs(), f"the start of {group}")
        return time.monotonic() - began_s

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in self._running.values()]
        self._log.close()
        assert exc[0] is not None or codes == [0] * len(GROUPS), f"{codes}\n{self._world.logs()}"


def refold_verify(world: World) -> subprocess.CompletedProcess[bytes]:
    """Run the audit as an operator does."""
    return subprocess.run(
        [sys.executable, "-m", "refold", "verify", "--bus", world.place.url], capture_output=True, check=False
    )
