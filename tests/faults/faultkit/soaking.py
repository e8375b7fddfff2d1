"""Faults of all kinds, one after the other and at random, under load: what a soak does to a federation.

A *deed* does something to the federation and returns when it is healed; how long the next round then takes is its recovery.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from faultkit.brokers import FLIPPING, NETWORKS, ProxiedCluster
from faultkit.buses import AFTER
from faultkit.disks import fill
from faultkit.faults import LOSE, Fault, freeze_request, note
from faultkit.points import POINTS, deaths_of
from faultkit.processes import Child, wait_until
from faultkit.world import World
from faultkit.zombies import STOOD_BACK, is_frozen
from refold.producers.lineage import LineageReader
from refold.schemas.errors import BusError, TryAgainError

PATIENCE_S = 240.0
WAVE_S = 45.0
"""How long a wave waits for the last process to reach the step that it is to die at."""
FULL = "disk behind the bus is full"
LOST_ACKNOWLEDGEMENTS = {"detection": "accepted/Commit", "aggregation": "rounds/Commit", "consistency": "checked/Checked"}


@dataclass
class Tally:
    """What was done, and how long the next round took after it."""

    deeds: Counter[str] = field(default_factory=Counter)
    recoveries_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    broker_losses: int = 0


class Soak:
    """A federation that is troubled.

    Parameters
    ----------
    servers
        The members, one a group.
    clients
        The clients that may be ended.
    send_nonsense
        Sends a record that must be quarantined.
    """

    def __init__(
        self,
        world: World,
        servers: dict[str, Child],
        clients: list[Child],
        chance: random.Random,
        send_nonsense: Callable[[], None],
    ) -> None:
        self.world = world
        self.servers = servers
        self.clients = clients
        self.chance = chance
        self.tally = Tally()
        self._send_nonsense = send_nonsense
        self._lineage = LineageReader(world.fed.bus, world.fed.topics)

    @property
    def deeds(self) -> dict[str, tuple[Callable[[], None], int]]:
        """What may be done, each with its weight."""
        deeds = {
            "deaths at durable steps": (self.wave, 6),
            "a kill at a random moment": (self.kill_one, 5),
            "two kills at once": (self.kill_two, 2),
            "a zombie": (self.zombie, 3),
            "a lost acknowledgement": (self.lose_acknowledgement, 2),
        }
        if self.world.place.disk is not None:
            deeds["a full disk"] = (self.fill_disk, 2)
        return deeds

    def trouble(self) -> None:
        """Do something at random, and wait for the next round."""
        names = list(self.deeds)
        self.do(self.chance.choices(names, [self.deeds[name][1] for name in names])[0])

    def do(self, name: str) -> None:
        """Do a deed, and wait for the next round."""
        self.deeds[name][0]()
        self.tally.deeds[name] += 1
        self.tally.recoveries_s[name].append(self.wait_for_rounds(1))

    def wait_for_rounds(self, more: int) -> float:
        """Wait for so many more rounds, starting again what was killed; return how long it took."""
        head = self.head()
        what = f"{more} rounds after {head} (after {self.tally.deeds})"
        return wait_until(lambda: self.head() >= head + more, what, timeout_s=PATIENCE_S, tend=self.world.tend, pause_s=0.03)

    def head(self) -> int:
        """Return the newest round; the last one known while the bus does not answer."""
        with suppress(BusError, TryAgainError):
            self._lineage.read_to_end()
        return self._lineage.lineage.head

    def close(self) -> None:
        """Let go of the log."""
        self._lineage.close()

    def kills(self) -> int:
        """Return how many processes were ended by SIGKILL, at a durable step or at random."""
        return sum(child.deaths for child in (*self.servers.values(), *self.clients))

    # -- processes -----------------------------------------------------------------------------------------------------------

    def kill_one(self) -> None:
        """Kill a server or a client at any moment."""
        self._wait(self.chance.uniform(0.0, 0.3))
        self.chance.choice([*self.servers.values(), *self.clients]).send(signal.SIGKILL)

    def kill_two(self) -> None:
        """Kill two processes at once."""
        self._wait(self.chance.uniform(0.0, 0.3))
        for child in self.chance.sample([*self.servers.values(), *self.clients], 2):
            child.send(signal.SIGKILL)

    def wave(self) -> None:
        """Kill a process of every group and two clients; each successor dies at the durable step that was hit least."""
        victims = [*self.servers.items(), *(("client", child) for child in self.chance.sample(self.clients, 2))]
        chosen: set[str] = set()
        for group, child in victims:
            fault = self._least_hit(group, chosen)
            chosen.add(str(fault))
            if fault.point.startswith("quarantine"):
                self._send_nonsense()
            self._give(child, [fault])
        try:
            wait_until(
                lambda: not any(child.queue for _, child in victims),
                "a wave's deaths",
                timeout_s=WAVE_S,
                tend=self._tend_and_feed,
            )
        except AssertionError:
            # Who was not the one to pass its step (a standby, a client between rounds) is relieved of it.
            for _, child in victims:
                if child.queue:
                    child.queue.clear()
                    child.send(signal.SIGKILL)

    def _tend_and_feed(self) -> None:
        if self.world.tend() and self.chance.random() < 0.5:
            self._send_nonsense()

    def _least_hit(self, group: str, chosen: set[str]) -> Fault:
        hits = self.world.faults()
        faults = [fault for fault in deaths_of(group, 1) if str(fault) not in chosen]
        self.chance.shuffle(faults)
        return min(faults, key=lambda fault: hits[str(fault)])

    def _give(self, child: Child, faults: list[Fault]) -> None:
        """End a process; its next life comes with these faults."""
        child.send(signal.SIGKILL)
        child.join()
        # The death just now is that of a life without faults: `tend` takes one from the queue for it.
        child.queue[:] = [Fault("none", AFTER), *faults]
        child.tend()

    def missed(self) -> list[str]:
        """Return the deaths at durable steps that never happened."""
        hits = self.world.faults()
        return [str(fault) for group in POINTS for fault in deaths_of(group, 1) if not hits[str(fault)]]

    def zombie(self) -> None:
        """Freeze whoever sends a commit right before it does, and let it go on when its successor has made rounds."""
        second = self.world.serve("detection")
        pair = [self.servers["detection"], second]
        stood_back = self._stood_back()
        freeze_request(self.world.place.folder).touch()
        wait_until(lambda: any(is_frozen(child) for child in pair), "a freeze", timeout_s=PATIENCE_S, tend=self.world.tend)
        zombie = next(child for child in pair if is_frozen(child))
        self.wait_for_rounds(2)
        zombie.send(signal.SIGCONT)
        wait_until(lambda: self._stood_back() > stood_back, "the late commit", timeout_s=PATIENCE_S, tend=self.world.tend)
        second.stop()
        self.world.children.remove(second)

    def _stood_back(self) -> int:
        return (self.world.place.folder / "server.log").read_text().count(STOOD_BACK)

    def lose_acknowledgement(self) -> None:
        """Lose the acknowledgements of a group's next commits."""
        group = self.chance.choice(list(LOST_ACKNOWLEDGEMENTS))
        before = self._lost()
        self._give(self.servers[group], [Fault(LOST_ACKNOWLEDGEMENTS[group], AFTER, 1, LOSE)])
        wait_until(lambda: self._lost() > before, "a lost acknowledgement", timeout_s=PATIENCE_S, tend=self.world.tend)
        self.servers[group].queue.clear()

    def _lost(self) -> int:
        return sum(count for fault, count in self.world.faults().items() if fault.startswith(LOSE))

    def fill_disk(self) -> None:
        """Take all the room there is until a server says so."""
        assert self.world.place.disk is not None
        before = self._full()
        ballast = fill(self.world.place.disk)
        try:
            wait_until(lambda: self._full() > before, "the full disk", timeout_s=PATIENCE_S, tend=self.world.tend)
        finally:
            ballast.unlink()
        note(self.world.place.diary, "full disk")

    def _full(self) -> int:
        return (self.world.place.folder / "server.log").read_text().count(FULL)

    def _wait(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= until_s, "the moment", tend=self.world.tend, pause_s=0.01)


class BrokerSoak(Soak):
    """The same on three brokers, which are troubled too."""

    def __init__(self, brokers: ProxiedCluster, *args: Any) -> None:
        super().__init__(*args)
        self._brokers = brokers
        for child in (*self.servers.values(), *self.clients):
            # One that is started while too few brokers run says so and ends; its supervisor starts it again.
            child.begins_again_after |= {BusError.exit_code, TryAgainError.exit_code}

    @property
    def deeds(self) -> dict[str, tuple[Callable[[], None], int]]:
        """What may be done, each with its weight."""
        return super().deeds | {
            "one broker lost": (self.lose_one, 5),
            "two brokers lost": (self.lose_two, 2),
            "a broker frozen": (self.freeze, 1),
            "connections reset": (self.reset, 2),
            "a bad network": (self.bad_network, 2),
            "a flapping network": (self.flap, 1),
            "flipped bits": (self.flip, 1),
        }

    def lose_one(self) -> None:
        """Kill a broker; it comes back once work went on without it."""
        node = self.chance.choice(self._brokers.ids)
        self._brokers.cluster.kill(node)
        self.tally.broker_losses += 1
        self.tally.recoveries_s["while one broker is gone"].append(self.wait_for_rounds(1))
        self._brokers.cluster.start(node)

    def lose_two(self) -> None:
        """Kill two brokers and start them again."""
        nodes = self.chance.sample(self._brokers.ids, 2)
        for node in nodes:
            self._brokers.cluster.kill(node)
        self.tally.broker_losses += 2
        self._wait(self.chance.uniform(1.0, 5.0))
        self._brokers.restore()

    def freeze(self) -> None:
        """Freeze a broker past its session."""
        node = self.chance.choice(self._brokers.ids)
        self._brokers.cluster.freeze(node)
        self._wait(self.chance.uniform(3.0, 8.0))
        self._brokers.cluster.thaw(node)

    def reset(self) -> None:
        """Cut every connection there is."""
        for proxy in self._brokers.proxies.values():
            proxy.reset()

    def bad_network(self) -> None:
        """Have late, thin, one-way or stalled networks for a while."""
        name, network = self.chance.choice(list(NETWORKS.items()))
        note(self.world.place.diary, f"network {name}")
        self._brokers.have(network, [self.chance.choice(self._brokers.ids)])
        self._wait(self.chance.uniform(1.0, 6.0))
        self._brokers.heal()

    def flap(self) -> None:
        """Have networks that come and go."""
        for proxy in self._brokers.proxies.values():
            proxy.flap(self.chance.uniform(0.3, 1.0), self.chance.uniform(0.1, 0.5))
        self._wait(4.0)
        self._brokers.heal()

    def flip(self) -> None:
        """Change bits of records on the way, until some were."""
        before = self._brokers.flips
        self._brokers.have(FLIPPING)
        wait_until(
            lambda: self._brokers.flips >= before + 3, "flipped bits", timeout_s=PATIENCE_S, tend=self.world.tend, pause_s=0.1
        )
        self._brokers.heal()
