"""One thread for a whole federation: coroutines, a hand-set clock, and one random number that says who goes on.

An *actor* is what would be a thread; a *process* is a set of actors that live, freeze and die together. Actors run until they
wait or are interrupted at a point; nothing runs at the same time. When nobody is ready, the clock jumps to whoever is due next.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet

from refold.bus.clock import ManualClock

FOREVER = float("inf")


class Crash(BaseException):
    """The process of this actor was killed. Nothing catches it, and what runs on the way out has no effect."""


class Stuck(Exception):
    """The run did not end within its bounds."""


@dataclass(eq=False)
class Process:
    """What is killed and frozen as a whole.

    Parameters
    ----------
    frozen_until_s
        Its actors do not go on before this.
    cut_off_until_s
        The bus does not answer it before this.
    """

    name: str
    alive: bool = True
    frozen_until_s: float = 0.0
    cut_off_until_s: float = 0.0
    actors: list[Actor] = field(default_factory=list)


@dataclass(eq=False)
class Actor:
    """One coroutine: when it is due, and which topics it waits for."""

    name: str
    process: Process
    run: greenlet
    due_s: float = 0.0
    topics: Collection[str] = ()
    done: bool = False


class Scheduler:
    """Runs actors.

    Parameters
    ----------
    chance
        Every choice of who goes on comes from here.
    switching
        How likely an actor is interrupted at a point where another could go on.
    """

    def __init__(self, chance: random.Random, switching: float) -> None:
        self.clock = ManualClock()
        self.steps = 0
        self._chance = chance
        self._switching = switching
        self._actors: list[Actor] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._hub = getcurrent()
        self._current: Actor | None = None

    @property
    def now_s(self) -> float:
        """The hand-set time."""
        return self.clock.now_s

    @property
    def process(self) -> Process:
        """The process of the actor that runs."""
        assert self._current is not None
        return self._current.process

    @property
    def processes(self) -> set[Process]:
        """Every process that has actors left."""
        return {actor.process for actor in self._actors}

    @property
    def is_running(self) -> bool:
        """Whether an actor runs now, rather than the scheduler itself."""
        return self._current is not None

    @property
    def actor(self) -> str:
        """The name of the actor that runs, or of nobody."""
        return self._current.name if self._current else "-"

    def spawn(self, process: Process, name: str, work: Callable[[], None]) -> Actor:
        """Add an actor to a process; it begins when it is chosen."""

        def body() -> None:
            try:
                work()
            except Crash:
                pass
            finally:
                actor.done = True

        actor = Actor(name, process, greenlet(body, parent=self._hub), self.now_s)
        process.actors.append(actor)
        self._actors.append(actor)
        return actor

    def at(self, time_s: float, what: Callable[[], None]) -> None:
        """Do this, outside every actor, when its time has come."""
        heapq.heappush(self._timers, (time_s, next(self._numbers), what))

    @property
    def next_timer_s(self) -> float:
        """When the next timer is due."""
        return self._timers[0][0] if self._timers else FOREVER

    def kill(self, process: Process) -> None:
        """End a process; the actor that runs, where it is one of its own, ends at its next step."""
        process.alive = False
        self.at(self.now_s, lambda: self._bury(process))

    def _bury(self, process: Process) -> None:
        for actor in process.actors:
            if not actor.run.dead:
                if actor.run:
                    actor.run.throw(Crash)
                actor.done = True
        process.actors.clear()
        self._actors = [actor for actor in self._actors if not actor.done]

    def wait(self, timeout_s: float = FOREVER, topics: Collection[str] = ()) -> None:
        """Let others go on until the time is over, or something is written to one of the topics."""
        actor = self._current
        assert actor is not None
        if not actor.process.alive:
            raise Crash
        actor.due_s, actor.topics = self.now_s + timeout_s, topics
        self._hub.switch()
        actor.topics = ()
        if not actor.process.alive:
            raise Crash

    def sleep(self, seconds: float) -> None:
        """Let the actor that runs do nothing for so long."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.wait(until_s - self.now_s)

    def interrupt(self) -> None:
        """Perhaps let others go on here."""
        if self._current is not None and self._chance.random() < self._switching:
            self.wait(0.0)

    def wake(self, topic: str) -> None:
        """Tell those that wait for a topic that something was written there."""
        for actor in self._actors:
            if topic in actor.topics:
                actor.due_s = self.now_s

    def wake_all(self) -> None:
        """Let everyone that waits look again."""
        for actor in self._actors:
            actor.due_s = min(actor.due_s, self.now_s)

    def run(self, is_over: Callable[[], bool], *, most_steps: int, until_s: float) -> None:
        """Run until it is over.

        Raises
        ------
        Stuck
            It was not within so many steps, or at this time.
        """
        while not is_over():
            self._fire_timers()
            ready = self._ready()
            if not ready:
                self._jump()
            else:
                self._resume(ready[self._chance.randrange(len(ready))] if len(ready) > 1 else ready[0])
            if self.steps > most_steps or self.now_s > until_s:
                raise Stuck(f"not over after {self.steps} steps and {self.now_s - 1000:.1f} s")

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now_s:
            heapq.heappop(self._timers)[2]()

    def _ready(self) -> list[Actor]:
        now_s = self.clock.now_s
        return [a for a in self._actors if a.due_s <= now_s and a.process.frozen_until_s <= now_s]

    def _jump(self) -> None:
        due_s = min((max(a.due_s, a.process.frozen_until_s) for a in self._actors), default=FOREVER)
        due_s = min(due_s, self.next_timer_s)
        if due_s == FOREVER:
            raise Stuck("everyone waits for ever")
        self.clock.now_s = max(due_s, self.now_s)

    def _resume(self, actor: Actor) -> None:
        self.steps += 1
        self._current = actor
        try:
            actor.run.switch()
        finally:
            self._current = None
        if actor.run.dead:
            actor.done = True
            self._actors.remove(actor)
            self.wake_all()  # Someone may wait for its end.

    def end(self) -> None:
        """Kill everything."""
        for process in {id(actor.process): actor.process for actor in self._actors}.values():
            process.alive = False
            self._bury(process)
        self._timers.clear()
