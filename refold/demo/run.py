"""One run of the demonstration: a federation, its server and its clients as processes, watched until it ends."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import refold
from refold.bus.contract import Place
from refold.bus.ledger import LedgerReader, read_all
from refold.bus.topics import Topics
from refold.demo.buses import Buses
from refold.demo.client import Settings
from refold.demo.data import Examples
from refold.demo.faults import BROKER_KILLED, SERVER_KILLED, Fault, client_name
from refold.demo.names import BUS_FILE
from refold.demo.network import BATCH, EPOCHS, RATE, Weights, accuracy
from refold.demo.processes import Processes
from refold.federation import Federation
from refold.jsonable import event_json
from refold.producers.history import History
from refold.schemas.errors import TryAgainError
from refold.schemas.keys import SigningKey
from refold.state.model_state import ModelState

HEARTBEAT_S, DEADLINE_S = 0.2, 1.0
WATCH_S = 0.05
LONGEST_S = 300.0
"""A run that takes longer has a fault of its own."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the four runs."""

    name: str
    title: str
    defence: str
    faults: bool
    kills_a_broker: bool = False


KINDS = (
    Kind("all", "faults, all defences on", "all", True, kills_a_broker=True),
    Kind("none", "faults, nothing on", "none", True),
    Kind("consistency", "faults, consistency only", "consistency", True),
    Kind("clean", "no faults, all defences on", "all", False),
)

Told = Callable[[str, int, float], None]
"""Called with a run's name, a round and the test accuracy at it."""


@dataclass(slots=True)
class Outcome:
    """What a run left behind.

    Parameters
    ----------
    accuracy
        On the test examples, for round 0 and every round after it.
    log
        The events of `accepted` and `rounds` as ``refold log --json`` prints them.
    faults
        What the injectors said.
    kept
        URL of the bus that is left when the demonstration is over.
    """

    kind: Kind
    url: str
    accuracy: list[float] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    server_kills: int = 0
    broker_kills: int = 0
    kept: str = ""


class Run:
    """A run, from nothing to its outcome.

    Parameters
    ----------
    test
        Examples that no client has, for the accuracy of every round.
    stop
        Ends the run with an error when set.
    """

    def __init__(
        self, kind: Kind, settings: Settings, initial: Weights, test: Examples, buses: Buses, stop: threading.Event
    ) -> None:
        self._stop = stop
        self._buses = buses
        self._kind = kind
        self._settings = settings
        self._test = test
        self._initial = initial
        self._folder = Path(settings.folder)
        self._outcome = Outcome(kind, settings.url)
        self._state: ModelState | None = None
        self._arrived_before = -1

    def go(self, told: Told) -> Outcome:
        """Run to the end and return what came of it."""
        with self._create() as federation, Processes(self._folder / "stderr") as processes:
            self._start(processes)
            history = federation.history()
            try:
                self._watch(federation, history, processes, told)
            finally:
                history.close()
            self._settle(federation, processes)
            processes.stop("server")
            self._outcome.log = log_of(federation)
            self._outcome.kept = self._buses.keep(self._settings.url, self._folder)
        self._outcome.faults = self._settings.fault_file.read()
        return self._outcome

    def _create(self) -> Federation:
        settings = self._settings
        plan = refold.Plan(
            minimum=max(1, settings.clients // 3),
            deadline_s=DEADLINE_S,
            rounds=settings.rounds,
            heartbeat_s=HEARTBEAT_S,
            config={"epochs": EPOCHS, "rate": RATE, "batch": BATCH},
            seed=settings.seed.to_bytes(16, "little"),
        )
        snapshots = refold.SnapshotPolicy(every_rounds=4, keep_last=8)
        federation = refold.create(
            settings.url, self._initial, plan=plan, snapshots=snapshots, defence=self._kind.defence, keys=self._keys
        )
        for index in range(settings.clients):
            name = client_name(index)
            key = SigningKey.load_or_create(self._folder / "clients" / f"{name}.pem")
            federation.enroll(name, key.public)
        return federation

    @property
    def _keys(self) -> Path:
        """The server's keys, where the bus file that is left looks for them."""
        return (self._folder / BUS_FILE).with_suffix(".keys")

    def _start(self, processes: Processes) -> None:
        """Start the clients, and once all are ready the server: so the first round is everyone's, however slow the start."""
        file = self._folder / "settings.json"
        self._settings.save(file)
        all_ready, ready = os.pipe()
        try:
            for index in range(self._settings.clients):
                name = client_name(index)
                processes.start(name, "refold.demo.client", str(file), name, ready=ready)
        finally:
            os.close(ready)
        # Readable when the last client has closed its end, be it by dying: `_watch` finds that out.
        select.select([all_ready], [], [], LONGEST_S)
        os.close(all_ready)
        serve = ("serve", "--bus", self._settings.url, "--keys", str(self._keys), "--member", "server")
        processes.start("server", "refold", *serve)

    def _watch(self, federation: Federation, history: History, processes: Processes, told: Told) -> None:
        """Follow the rounds, kill the server in the middle of one, and start again whoever was killed."""
        until_s = time.monotonic() + LONGEST_S
        while processes.running(but="server"):
            self._check(until_s)
            history.rounds.poll(WATCH_S)
            processes.revive()
            if history.lineage.opened is None:
                continue
            self._measure(history, told)
            if not self._outcome.server_kills:
                self._kill_in_the_middle(federation, history.lineage.head + 1, processes)
            self._kill_a_broker(history.lineage.head + 1)
        history.rounds.read_to_end()
        self._measure(history, told)

    def _measure(self, history: History, told: Told) -> None:
        """Compute the accuracy of every round that is new, from its rebuilt model."""
        while len(self._outcome.accuracy) <= history.lineage.head:
            round_ = len(self._outcome.accuracy)
            self._state = history.rebuild(round_, held=self._state, slots=False)
            self._outcome.accuracy.append(accuracy(self._state.numpy(), self._test))
            told(self._kind.name, round_, self._outcome.accuracy[-1])

    def _kill_in_the_middle(self, federation: Federation, open_round: int, processes: Processes) -> None:
        """Kill the server once some of the round's updates, not all, have arrived."""
        due = self._settings.schedule.server_dies_in
        if not due or open_round < due:
            return
        arrived = _arrived(federation)
        if self._arrived_before < 0:
            self._arrived_before = arrived
        if arrived > self._arrived_before:
            self._settings.fault_file.add(Fault(SERVER_KILLED, "", open_round))
            processes.kill("server")
            self._outcome.server_kills += 1

    def _kill_a_broker(self, open_round: int) -> None:
        """Kill one of several brokers at the half; it stays dead."""
        if not self._kind.kills_a_broker or not self._buses.brokers or self._outcome.broker_kills:
            return
        if self._settings.faults and open_round > self._settings.rounds // 2:
            self._settings.fault_file.add(Fault(BROKER_KILLED, "", open_round))
            self._buses.kill_a_broker()
            self._outcome.broker_kills += 1

    def _settle(self, federation: Federation, processes: Processes) -> None:
        """Wait until every update that was sent has its verdict."""
        until_s = time.monotonic() + LONGEST_S
        accepted = LedgerReader(federation.bus, federation.topics.accepted)
        try:
            while not _all_judged(federation, accepted):
                self._check(until_s)
                processes.revive()
                accepted.poll(WATCH_S)
        finally:
            accepted.close()

    def _check(self, until_s: float) -> None:
        if self._stop.is_set():
            raise TryAgainError(f"the run {self._kind.name!r} was stopped")
        if time.monotonic() > until_s:
            raise TryAgainError(f"the run {self._kind.name!r} did not end", hint=f"see {self._folder / 'stderr'}")


def _arrived(federation: Federation) -> int:
    """Return how many records `updates` has had."""
    partitions = federation.bus.topics()[federation.topics.updates].partitions
    return sum(federation.bus.end_offset(Place(federation.topics.updates, partition)) for partition in range(partitions))


def _all_judged(federation: Federation, accepted: LedgerReader) -> bool:
    for part in accepted.chain.position.updates:
        if part.next_offset < federation.bus.end_offset(Place(federation.topics.updates, part.partition)):
            return False
    return bool(accepted.chain.position.updates)


def log_of(federation: Federation) -> list[dict[str, Any]]:
    """Return both logs of a federation, as ``refold log --json`` prints their events."""
    topics = Topics(federation.name)
    return [
        event_json(name, entry, index, event)
        for name in ("accepted", "rounds")
        for entry in read_all(federation.bus, getattr(topics, name))
        for index, event in entry.indexed()
    ]
