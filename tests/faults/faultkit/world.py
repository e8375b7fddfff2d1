"""One federation in a folder, its processes, and what must hold of it in the end."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

import refold
from faultkit.checker import Findings, check
from faultkit.faults import Fault
from faultkit.processes import Child, Place, serve, train, wait_until, work
from refold.bus.ledger import read_all
from refold.consumers.audit import Audit
from refold.producers.lineage import LineageReader
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.keys import SigningKey

GROUPS = ("consistency", "detection", "aggregation", "snapshots")


def small_model(size: int = 40) -> dict[str, Any]:
    """Return a model of a matrix, a vector and a counter."""
    rng = np.random.default_rng(7)
    return {
        "w": rng.normal(0, 0.1, (size, 4)).astype("f4"),
        "b": np.zeros(4, "f4"),
        "n": np.array(0, "i8"),
    }


class World:
    """A federation's folder and processes. Use as a context manager: it ends every process it started.

    Parameters
    ----------
    bus
        The bus's URL with the federation's name; a file in the folder if "".
    observer
        The URL by which the test itself looks at the bus, where faults on the way to `bus` must not blind it.
    """

    def __init__(self, folder: Path, bus: str = "", observer: str = "") -> None:
        self.place = Place(folder, bus)
        self._observer = observer
        self.children: list[Child] = []
        self.clients: list[str] = []
        self.client_errors: list[BaseException] = []
        self.federation: refold.Federation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for child in self.children:
            child.end()
        if self.federation is not None:
            self.federation.close()

    def found(self, *, clients: int = 3, model: dict[str, Any] | None = None, **settings: Any) -> refold.Federation:
        """Make a federation with enrolled clients; the settings are the plan's and `create`'s."""
        create = {name: settings.pop(name) for name in ("snapshots", "optimizer", "partitions", "defence") if name in settings}
        plan = refold.Plan(**{"minimum": clients, "deadline_s": 5.0, "heartbeat_s": 0.1} | settings)
        create = {"snapshots": refold.SnapshotPolicy(2, 2), "partitions": 2, "defence": "consistency"} | create
        self.federation = refold.create(self.place.url, model or small_model(), plan=plan, keys=self.place.keys, **create)
        self.clients = [f"c{number}" for number in range(clients)]
        for name in self.clients:
            self.federation.enroll(name, SigningKey.load_or_create(self.place.key(name)).public)
        if self._observer:
            self.federation.close()
            self.federation = refold.connect(self._observer, keys=self.place.keys)
        return self.federation

    @property
    def fed(self) -> refold.Federation:
        """The federation that was made."""
        assert self.federation is not None
        return self.federation

    def tell(self, **changes: Any) -> None:
        """Change what processes started from now on are told."""
        self.place = replace(self.place, **changes)

    def serve(self, *groups: str, member: str = "", queue: Sequence[Fault] = ()) -> Child:
        """Start a process with members of these groups."""
        return self._start(Child("+".join(groups), serve, (self.place, groups, member), list(queue)))

    def train(self, client: str, *, queue: Sequence[Fault] = ()) -> Child:
        """Start a client's process."""
        return self._start(Child(client, train, (self.place, client), list(queue)))

    def _start(self, child: Child) -> Child:
        self.children.append(child)
        child.start()
        return child

    def tend(self) -> int:
        """Start again what was killed, and return how many; a server or client that failed by itself fails the test."""
        if self.client_errors:
            raise self.client_errors[0]
        born = sum(child.tend() for child in self.children)
        bad = [(child.name, code) for child in self.children for code in child.exits if code != 0]
        assert not bad, f"ended by themselves: {bad}; see {self.place.folder}/*.log\n{self.logs()}"
        return born

    def logs(self) -> str:
        """Return the ends of the processes' logs."""
        return "\n".join(path.read_text()[-6000:] for path in sorted(self.place.folder.glob("*.log")))

    def tracebacks(self) -> list[str]:
        """Return which processes' logs hold a traceback: an error that nobody had a word for."""
        return [path.name for path in sorted(self.place.folder.glob("*.log")) if "Traceback" in path.read_text()]

    def wait_for_round(self, round_: int, *, timeout_s: float = 60.0) -> float:
        """Wait until a round is made, starting again what was killed; return how long it took."""
        with self.following() as lineage:
            return wait_until(lambda: lineage().head >= round_, f"round {round_}", timeout_s=timeout_s, tend=self.tend)

    @contextmanager
    def following(self) -> Iterator[Any]:
        """Yield a function that reads `rounds` to its end and returns the lineage."""
        reader = LineageReader(self.fed.bus, self.fed.topics)
        try:
            yield reader.read_to_end
        finally:
            reader.close()

    def wait_until_settled(self, *, timeout_s: float = 60.0) -> None:
        """Wait until every update that was sent has its verdict, and every verdict its receipt."""
        wait_until(lambda: self.check().settled, "a verdict for everything", timeout_s=timeout_s, tend=self.tend, pause_s=0.2)

    def stop(self) -> None:
        """Ask all processes to stop, and wait for it."""
        for child in self.children:
            child.send(signal.SIGCONT)
            child.send(signal.SIGTERM)
        for child in self.children:
            child.join()

    def check(self, **settings: Any) -> Findings:
        """Check the whole log against the invariants."""
        return check(self.fed.bus, self.fed.name, self.place.archive, **settings)

    def assert_sound(self, *, most_rebuilt: int | None = None) -> Findings:
        """Assert that all invariants hold, by this checker and by Refold's own, and that replay gives what the log says.

        Parameters
        ----------
        most_rebuilt
            So many rounds, evenly spread, are rebuilt; all if None.
        """
        assert not self.tracebacks(), self.tracebacks()
        findings = self.check()
        assert not findings.violations, "\n".join([*findings.violations, self.logs()])
        assert findings.settled, findings
        audited = [finding for finding in Audit(self.fed.bus, self.fed.topics).run() if finding.is_broken]
        assert not audited, audited
        self.assert_rebuilds(findings, most_rebuilt)
        return findings

    def assert_rebuilds(self, findings: Findings, most: int | None = None) -> None:
        """Assert that every round, or so many, is rebuilt to the bytes of a fold of `accepted` and `deltas` alone."""
        every = 1 if most is None else -(-len(findings.states) // most)
        for round_, arrays in list(findings.states.items())[::-every]:
            for start in (None, 0):
                state = self.fed.rebuild(round_, start=start)
                for held, wanted in zip(state.parameters, arrays, strict=True):
                    assert held.tobytes() == wanted.astype(held.dtype).tobytes(), f"round {round_} from {start}"

    def assert_not_asked_again(self, findings: Findings) -> int:
        """Assert that no client was asked again for work that it kept and that was not refused; return how many tasks were."""
        kept: set[tuple[str, ...]] = set()
        tasks = 0
        for line in self.place.tasks.read_text().splitlines():
            what, client, round_, kind, *digest = line.split()
            if what == "asked":
                tasks += 1
                assert (client, round_, kind) not in kept, f"asked again: {line}"
            elif bytes.fromhex(digest[0]) not in findings.refused:
                kept.add((client, round_, kind))
        return tasks

    def lost(self) -> set[bytes]:
        """Return the updates that a client's `submit` returned for and that have no verdict in the log."""
        events = [event for entry in read_all(self.fed.bus, self.fed.topics.accepted) for event in entry.events]
        judged = {event.origin.digest for event in events if isinstance(event, UpdateAccepted | UpdateRejected)}
        lines = [line.split() for line in self.place.tasks.read_text().splitlines()]
        return {bytes.fromhex(words[4]) for words in lines if words[0] == "kept"} - judged

    def faults(self) -> Counter[str]:
        """Return the faults that happened, counted."""
        return Counter(self.place.diary.read_text().splitlines()) if self.place.diary.exists() else Counter()


@dataclass
class Clients:
    """Clients as threads of the test's own process, for tests that end servers only.

    Parameters
    ----------
    drop
        Which of the records that they send are lost.
    """

    world: World
    names: Sequence[str]
    drop: Callable[[str, bytes | None], bool] | None = None
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number, name in enumerate(self.names):
            thread = threading.Thread(target=self._work, args=(name, number), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def _work(self, name: str, number: int) -> None:
        try:
            work(self.world.place, name, self.world.place.open(drop=self.drop), np.random.default_rng(number))
        except BaseException as error:
            self.world.client_errors.append(error)

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            wait_until(lambda: not any(thread.is_alive() for thread in self._threads), "the clients' end", tend=self.world.tend)
            self.world.tend()
