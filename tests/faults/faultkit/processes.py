"""Servers and clients as processes of their own, that may be ended at any instruction, and who starts them again.

They are forked from one server process that has loaded Refold already: a start takes milliseconds, so that a run sees many
deaths. `test_command_line.py` ends real `refold serve` processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

import refold
from faultkit.archive import archiver
from faultkit.buses import HookedBus
from faultkit.faults import KILL, Fault, Faulty, note
from faultkit.outboxes import hook_outboxes
from refold.bus import open_bus
from refold.bus.sqlite import SqliteBus
from refold.schemas.errors import RefoldError

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["refold.federation", "refold.consumers.server", "refold.producers.client", "refold.bus.sqlite", "refold.bus.kafka"]
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a federation lies, and what its processes are told."""

    folder: Path
    bus: str = ""
    """The bus's URL with the federation's name, where it is no file."""
    disk: Path | None = None
    """The folder of the bus's file, where it is not `folder`."""
    archives: bool = True
    max_size_bytes: int | None = None
    session_timeout_s: float | None = None
    patches: tuple[tuple[str, str, Any], ...] = ()
    """Constants that the processes see with other values: module, name, value."""

    @property
    def file(self) -> Path:
        """The bus's file."""
        return (self.disk or self.folder) / "fed.db"

    @property
    def url(self) -> str:
        """The bus's URL."""
        return self.bus or f"sqlite:{self.file}"

    @property
    def keys(self) -> Path:
        """The server's keys."""
        return self.folder / "fed.keys"

    @property
    def archive(self) -> Path:
        """Where the deleted updates are kept for the checker."""
        return self.folder / "archive.db"

    @property
    def diary(self) -> Path:
        """Where the faults that happened are written down."""
        return self.folder / "faults.txt"

    @property
    def tasks(self) -> Path:
        """Where clients write down what they were asked and what they kept."""
        return self.folder / "tasks.txt"

    def key(self, client: str) -> Path:
        """A client's key file."""
        return self.folder / f"{client}.pem"

    def open(self, faults: tuple[Fault, ...] = (), drop: Callable[[str, bytes | None], bool] | None = None) -> HookedBus:
        """Open the bus as its processes see it."""
        kept = archiver(self.archive) if self.archives else lambda _bus, _place, _before: None
        return HookedBus(
            open_bus(self.bus) if self.bus else SqliteBus(self.file, max_size_bytes=self.max_size_bytes),
            Faulty(faults, self.diary),
            drop=drop or (lambda _point, _value: False),
            on_delete=kept,
            session_timeout_s=self.session_timeout_s,
        )


def serve(place: Place, groups: tuple[str, ...], member: str, faults: tuple[Fault, ...] = ()) -> None:
    """Run members of groups until told to stop; what a child process does."""
    stop = _told_to_stop()
    with _as_a_program(place, member or "+".join(groups), f"{place.folder}/server.log"):
        bus = place.open(faults)
        federation = refold.connect(place.url, bus=bus, keys=place.keys)
        with federation.serve(groups, member=member) as server:
            while not stop.is_set() and not server.wait(0.1):
                pass
        federation.close()


def train(place: Place, name: str, faults: tuple[Fault, ...] = (), seed: int = 0) -> None:
    """Be a client until the federation ends; what a child process does."""
    with _as_a_program(place, name, f"{place.folder}/clients.log"):
        hook_outboxes(Faulty(tuple(fault for fault in faults if fault.point.startswith("outbox/")), place.diary))
        work(place, name, place.open(faults), np.random.default_rng([seed, os.getpid()]))


def work(place: Place, name: str, bus: Any, rng: np.random.Generator, *, outbox: Path | None = None) -> None:
    """Answer tasks until the federation ends, writing down what was asked and what is kept."""
    federation = refold.connect(place.url, bus=bus)
    with federation.client(name, key=place.key(name), outbox=outbox) as client:
        for task in client.tasks():
            kind = "evaluate" if task.evaluate else "train"
            note(place.tasks, f"asked {name} {task.round} {kind}")
            if task.evaluate:
                receipt = task.evaluated(loss=float(rng.random()))
            else:
                receipt = task.submit(moved(task.numpy(), rng), num_examples=int(rng.integers(1, 50)))
            note(place.tasks, f"kept {name} {task.round} {kind} {receipt.digest.hex()}")
    federation.close()


def moved(state: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return what training makes of a state: floats move a little, counters count."""
    return {
        name: array + rng.normal(0.001, 0.01, array.shape).astype(array.dtype) if array.dtype.kind == "f" else array + 1
        for name, array in state.items()
    }


def _told_to_stop() -> threading.Event:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


@contextmanager
def _as_a_program(place: Place, who: str, log: str) -> Iterator[None]:
    """Log to a file, take the patches, and end with an error's exit code."""
    logging.basicConfig(filename=log, level=logging.WARNING, format=f"%(asctime)s {who} %(process)d %(message)s", force=True)
    for module, name, value in place.patches:
        setattr(import_module(module), name, value)
    try:
        yield
    except BaseException as error:
        told = str(error) if isinstance(error, RefoldError) else "".join(traceback.format_exception(error))
        logging.error("ends with %s", told)
        logging.shutdown()
        os._exit(error.exit_code if isinstance(error, RefoldError) else 1)


@dataclass
class Child:
    """A process that is started again whenever it ended, until told otherwise.

    Parameters
    ----------
    queue
        Faults to come: each life gets the first, which is done with once the life ended by it; those that are survived come all
        in one life.
    begins_again_after
        The exit codes after which another life begins, as a supervisor would begin one.
    deaths, failures
        Lives that were ended by SIGKILL, and those that ended otherwise and were followed by another.
    """

    name: str
    target: Callable[..., None]
    args: tuple[Any, ...]
    queue: list[Fault] = field(default_factory=list)
    begins_again_after: frozenset[int] = frozenset({-signal.SIGKILL})
    deaths: int = 0
    failures: int = 0
    exits: list[int] = field(default_factory=list)
    started_s: float = 0.0
    _process: BaseProcess | None = None

    def start(self) -> None:
        """Start a life."""
        deadly = bool(self.queue) and self.queue[0].action == KILL
        faults = tuple(self.queue[:1] if deadly else self.queue)
        self._process = FORKS.Process(target=self.target, args=(*self.args, faults), name=self.name, daemon=True)
        self._process.start()
        self.started_s = time.monotonic()

    @property
    def pid(self) -> int:
        """The process id of this life."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How this life ended, or None while it lasts."""
        return None if self._process is None else self._process.exitcode

    def send(self, number: int) -> None:
        """Send this life a signal."""
        if self._process is not None and self._process.exitcode is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """End this life for good."""
        self.send(signal.SIGKILL)
        self.join()

    def stop(self, timeout_s: float = 30.0) -> int:
        """Ask this life to stop, and return its exit code."""
        self.send(signal.SIGTERM)
        return self.join(timeout_s)

    def join(self, timeout_s: float = 30.0) -> int:
        """Wait for the end of this life and return its exit code."""
        assert self._process is not None
        self._process.join(timeout_s)
        code = self._process.exitcode
        assert code is not None, f"{self.name} does not end"
        return code

    def tend(self) -> bool:
        """Begin another life after an end that asks for it; return whether it did. Any other end is kept in `exits`."""
        code = self.exit_code
        if code is None:
            return False
        if code not in self.begins_again_after:
            if len(self.exits) == 0:
                self.exits.append(code)
            return False
        if code != -signal.SIGKILL:
            self.failures += 1
        else:
            self.deaths += 1
            if self.queue:
                self.queue.pop(0)
        self.start()
        return True


def wait_until(
    condition: Callable[[], bool],
    what: str,
    *,
    timeout_s: float = 60.0,
    tend: Callable[[], Any] | None = None,
    pause_s: float = 0.01,
) -> float:
    """Wait for a condition, tending what must be tended; return how long it took."""
    began_s = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began_s
        assert waited_s < timeout_s, f"{what}: not within {timeout_s:g} s"
        if tend is not None:
            tend()
        time.sleep(pause_s)
    return time.monotonic() - began_s


def pick_victim(children: list[Child], chance: random.Random) -> Child:
    """Return one of those that live, at random."""
    return chance.choice([child for child in children if child.exit_code is None])
