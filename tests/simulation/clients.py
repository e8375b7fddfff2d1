"""Honest clients: the real client, a model of a few numbers, training that takes simulated time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from refold.producers.client import Client
from refold.producers.enrolment import read_token, request_key
from refold.producers.task import Task
from refold.schemas.errors import StorageFullError, TryAgainError
from refold.schemas.events import Receipt
from refold.schemas.keys import SigningKey
from tests.simulation.bus import SimBus
from tests.simulation.disk import Disk, SimOutbox
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class Notes:
    """What clients saw and did: all that the checker believes beside the topics.

    Parameters
    ----------
    shown
        Receipts as they were shown: client, digest, outcome.
    sent
        Digests of updates that a client kept and meant to send.
    asked
        Tasks in order: client, round, kind.
    kept
        Answers that were safe on disk: client, round, kind → digests. Work that is kept is never asked for again.
    again
        Tasks that were asked for although their answers were kept: client, round, kind, and those answers.
    twice
        Clients of which two processes were at work at once, with a disk each: either may be asked.
    """

    shown: list[tuple[str, bytes, str]] = field(default_factory=list)
    sent: set[bytes] = field(default_factory=set)
    kept: dict[tuple[str, int, str], set[bytes]] = field(default_factory=dict)
    again: list[tuple[str, int, str, frozenset[bytes]]] = field(default_factory=list)
    twice: set[str] = field(default_factory=set)
    tasks: int = 0

    def asked(self, client: str, task: Task) -> None:
        """Take note of a task."""
        self.tasks += 1
        what = (client, task.round, kind_of(task))
        if what in self.kept and client not in self.twice:
            self.again.append((*what, frozenset(self.kept[what])))

    def answered(self, client: str, task: Task, digest: bytes) -> None:
        """Take note of an answer that is kept."""
        self.kept.setdefault((client, task.round, kind_of(task)), set()).add(digest)

    def forget(self, client: str) -> None:
        """Take note that a client's disk is gone, or that it has two: it may be asked for anything again."""
        self.kept = {what: digests for what, digests in self.kept.items() if what[0] != client}


def kind_of(task: Task) -> str:
    """Return what a task asks for."""
    return "evaluate" if task.evaluate else "train"


class WatchedClient(Client):
    """The real client; what it is shown is written down."""

    notes: Notes

    def _take_receipt(self, receipt: Receipt) -> None:
        if receipt.client == self.name:
            self.notes.shown.append((self.name, receipt.digest, receipt.outcome))
        super()._take_receipt(receipt)


class WatchedOutbox(SimOutbox):
    """The disk; what is put there is written down."""

    notes: Notes

    def put(self, parcel: Any) -> None:
        """Keep an update, of which the world will hear."""
        super().put(parcel)
        self.notes.sent.add(parcel.digest)


@dataclass
class Life:
    """One life of a client's process."""

    world: World
    process: Process
    name: str
    disk: Disk
    training_s: float
    chance: random.Random
    reports: bool = True

    def run(self) -> None:
        """Take part until the federation ends."""
        world = self.world
        outbox = WatchedOutbox(world, self.process, self.disk)
        outbox.notes = world.notes
        key = world.kit.key(self.name)
        self._enrol()
        client = WatchedClient(SimBus(world, self.process), world.topics, self.name, key, outbox)  # type: ignore[arg-type]
        client.notes = world.notes
        with client:
            for task in client.tasks():
                if self.reports:
                    world.notes.asked(self.name, task)
                self._answer(client, task)

    def _enrol(self) -> None:
        """Ask for the key by the token, if this client was given one; every life does so again."""
        world = self.world
        if not world.token or self.name != world.scenario.clients[0]:
            return
        said = read_token(world.token)
        bus = SimBus(world, self.process)
        key, clock = world.kit.key(self.name), world.scheduler.clock
        request_key(bus, world.topics, self.name, SigningKey.from_seed(said.seed), key, clock=clock)  # type: ignore[arg-type]
        world.rare["enrolled by a token"] += 1

    def _answer(self, client: WatchedClient, task: Task) -> None:
        scheduler = self.world.scheduler
        if self.training_s:
            scheduler.sleep(self.chance.uniform(0.5, 1.5) * self.training_s)
        while True:
            try:
                receipt = self._submit(task)
                break
            except StorageFullError:
                self.world.rare["outbox full"] += 1
                scheduler.sleep(0.2)
        if self.reports:
            self.world.notes.answered(self.name, task, receipt.digest)
        if self.chance.random() < 0.3:
            try:
                receipt.wait(self.chance.choice((0.3, 3.0)))
            except TryAgainError:
                self.world.rare["receipt awaited in vain"] += 1

    def _submit(self, task: Task) -> Any:
        if task.evaluate:
            return task.evaluated(loss=self.chance.random())
        if self.chance.random() < 0.04:
            return task.decline("nothing to train on")
        local = task.numpy()
        random_numbers = np.array([self.chance.gauss(0.0, 0.1) for _ in range(local["w"].size)], "f4")
        local["w"] = local["w"] + random_numbers.reshape(local["w"].shape)
        local["b"] = local["b"] + np.float32(self.chance.gauss(0.0, 0.1))
        if self.world.scenario.grows:
            local["b"] = local["b"] + np.float32(45 * self.chance.uniform(0.3, 1.0))
        local["n"] = np.minimum(local["n"].astype(np.int64) + self.chance.randint(0, 9), 127).astype("i1")
        return task.submit(local, num_examples=self.chance.randint(1, 40), metrics={"loss": 1.0})
