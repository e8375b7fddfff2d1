"""A client's process: ``python -m refold.demo.client SETTINGS NAME``. Trains what it is asked, and does wrong on schedule."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import refold
from refold.bus import open_bus
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.demo.data import Examples, load
from refold.demo.faults import NAN, SCALED, SIGN_FLIP, STALE, FaultFile, Schedule, client_name
from refold.demo.injection import Injector, troubled
from refold.demo.network import Weights, train
from refold.demo.processes import say_ready
from refold.producers.client import Client
from refold.producers.lineage import LineageReader
from refold.producers.task import Task
from refold.schemas.codec import encode_floats
from refold.schemas.layout import Layout
from refold.schemas.updates import TRAIN

SCALE = {SCALED: 100.0, SIGN_FLIP: -5.0}
LARGEST = np.float32(50.0)
"""Most that one parameter is changed: nearly what the lattice takes. Only a model that is ruined already asks for more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What every process of a run is told."""

    url: str
    federation: str
    folder: str
    data: str
    seed: int
    clients: int
    rounds: int
    faults: bool

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read them."""
        return cls(**json.loads(path.read_text()))

    @property
    def schedule(self) -> Schedule:
        """The run's faults."""
        return Schedule(self.seed, self.clients, self.rounds, self.faults)

    @property
    def fault_file(self) -> FaultFile:
        """Where injectors announce what they do."""
        return FaultFile(Path(self.folder) / "faults.jsonl")


class Worker:
    """One client at work."""

    def __init__(self, settings: Settings, name: str, bus: Bus, injector: Injector) -> None:
        self._name = name
        self._number = [client_name(i) for i in range(settings.clients)].index(name)
        self._examples: Examples = load(Path(settings.data), self._number)
        self._seed = settings.seed
        self._schedule = settings.schedule
        self._bus = bus
        self._topics = Topics(settings.federation)
        self._injector = injector

    def answer(self, client: Client, task: Task) -> None:
        """Train, and submit what comes of it, or what the schedule makes of it."""
        base = task.numpy()
        trained = self._train(base, task)
        kind = self._fault(task.round)
        if kind == STALE:
            self._wait_for_round(task.round)
        if kind == NAN:
            self._submit_nan(client, task)
        else:
            told = _scaled(base, trained, SCALE[kind]) if kind in SCALE else trained
            task.submit(told, num_examples=len(self._examples))

    def _fault(self, round_: int) -> str:
        """Return what to do wrong with the update of a round; what is to be stale in the next one begins in this."""
        if self._schedule.fault(self._name, round_ + 1) == STALE:
            return self._injector.arm(STALE, round_ + 1)
        kind = self._schedule.fault(self._name, round_)
        return self._injector.arm("" if kind == STALE else kind, round_)

    def _train(self, base: Weights, task: Task) -> Weights:
        config = task.config
        rng = np.random.default_rng([self._seed, 3, self._number, task.round])
        epochs, rate, batch = int(config["epochs"]), float(config["rate"]), int(config["batch"])
        return train(base, self._examples, epochs=epochs, rate=rate, batch=batch, rng=rng)

    def _wait_for_round(self, round_: int) -> None:
        """Hold still until the round is over without this client, as a machine that sleeps would."""
        reader = LineageReader(self._bus, self._topics)
        try:
            while reader.lineage.head < round_ and reader.lineage.ended is None:
                reader.poll(0.25)
        finally:
            reader.close()

    def _submit_nan(self, client: Client, task: Task) -> None:
        """Send what the library would refuse to send: floats that are none, in the codec for foreign clients, well signed."""
        schema = task.state.schema
        arrays: list[Any] = [np.full(tensor.size, np.nan, np.float32) for tensor in schema.tensors]
        chunks = tuple(encode_floats(arrays, Layout.of(schema)))
        body = client.body(task, TRAIN, len(self._examples), {}, chunks, (0,) * len(schema.tensors), "")
        client.submit(task, replace(body, codec="float32"), chunks)
        task.answered = True


def _scaled(base: Weights, trained: Weights, factor: float) -> Weights:
    """Return the trained weights as if every change were this many times as large, as far as an update may ask for it."""
    changes = {name: np.clip(np.float32(factor) * (trained[name] - base[name]), -LARGEST, LARGEST) for name in base}
    return {name: base[name] + change for name, change in changes.items()}


def main() -> None:
    """Work until the federation ends."""
    settings, name = Settings.load(Path(sys.argv[1])), sys.argv[2]
    injector = Injector(name, Topics(settings.federation), settings.fault_file)
    bus = troubled(open_bus(settings.url, create=False), injector)
    with refold.connect(settings.url, bus=bus) as federation:
        worker = Worker(settings, name, bus, injector)
        say_ready()
        with federation.client(name, key=Path(settings.folder) / "clients" / f"{name}.pem") as client:
            for task in client.tasks():
                worker.answer(client, task)


if __name__ == "__main__":
    main()
