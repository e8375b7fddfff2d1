"""What `threading` offers to a server and to heartbeats, as actors of the process that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.scheduler import FOREVER, Actor, Scheduler


class Threading:
    """Stands in for the module `threading` where a server or a heartbeat uses it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def Thread(self, *, target: Callable[..., None], args: tuple[Any, ...] = (), name: str = "", daemon: bool = True) -> Thread:  # noqa: N802
        """Make a thread that is not started yet."""
        return Thread(self._scheduler, name, lambda: target(*args))

    def Event(self) -> Event:  # noqa: N802
        """Make an event that is not set."""
        return Event(self._scheduler)

    def current_thread(self) -> None:
        """Return none of the threads made here: nobody joins himself."""


class Thread:
    """An actor of the process that starts it."""

    def __init__(self, scheduler: Scheduler, name: str, work: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._name = name
        self._work = work
        self._actor: Actor | None = None

    def start(self) -> None:
        """Let it run when it is chosen."""
        process = self._scheduler.process
        self._actor = self._scheduler.spawn(process, f"{process.name}/{self._name}", self._work)

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for its end."""
        while self.is_alive():
            self._scheduler.wait()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._actor is not None and not self._actor.done and self._actor.process.alive


class Event:
    """A flag that actors wait for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False

    def set(self) -> None:
        """Set it."""
        self._is_set = True
        self._scheduler.wake_all()

    def clear(self) -> None:
        """Set it back."""
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is set, at most so long; return whether it is."""
        until_s = self._scheduler.now_s + (FOREVER if timeout_s is None else timeout_s)
        while not self._is_set and self._scheduler.now_s < until_s:
            self._scheduler.wait(until_s - self._scheduler.now_s)
        return self._is_set
