"""A server: members of the groups, each in a thread of its own, until told to stop.

Every member restarts itself from the log when the bus failed or its place went to another; nothing it held in memory matters.
Errors that no restart mends (a broken log, a wrong setting) end the server with that error.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from refold.bus.clock import Clock, SystemClock
from refold.bus.contract import Bus
from refold.bus.ledger import LedgerReader
from refold.bus.topics import Topics
from refold.consumers.aggregation import Aggregation
from refold.consumers.consistency import Consistency
from refold.consumers.delivery import Courier
from refold.consumers.detection import Detection
from refold.consumers.detectors import Ensemble
from refold.consumers.health import Health, HealthSettings
from refold.consumers.holding import Holding
from refold.consumers.inspection import Inspector
from refold.consumers.modelcheck import Evaluation
from refold.consumers.sealing import SealingKeys
from refold.consumers.snapshots import Snapshots
from refold.consumers.standby import Seat
from refold.consumers.startup import refuse_lost_log, refuse_what_loses_data
from refold.schemas.errors import (
    BusError,
    FencedError,
    IntegrityError,
    NotFoundError,
    PlaceTakenError,
    TryAgainError,
    UsageError,
)
from refold.schemas.events import Genesis
from refold.schemas.held import StateHeld
from refold.schemas.identity import INSECURE
from refold.schemas.keys import log_key

log = logging.getLogger("refold.server")

DECIDING = ("consistency", "detection", "aggregation", "snapshots")
"""The groups that an update's way leads through."""
GROUPS = (*DECIDING, "health")
STEP_S = 0.05
BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


READY_S = 60.0
"""A member whose last step ended longer ago is not ready; a turn over a very large model may take as long."""


@dataclass(slots=True)
class AtWork:
    """One member's thread, as others see it.

    Parameters
    ----------
    step_age_s
        Time since its last step ended; infinite before the first.
    failures
        How often it began again from the log.
    """

    group: str
    step_age_s: float
    failures: int


@dataclass(slots=True)
class _Pulse:
    group: str
    stepped_s: float = -math.inf
    failures: int = 0


class Member(Protocol):
    """One member of a group."""

    name: str

    def step(self, timeout_s: float) -> bool:
        """Do what there is to do, waiting at most so long for it; return whether anything was done."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


def read_genesis(bus: Bus, topics: Topics) -> Genesis:
    """Return the first event of `accepted`.

    Raises
    ------
    NotFoundError
        There is no federation of this name on the bus.
    IntegrityError
        Its log is gone, or none of its records begins a chain.
    """
    refuse_lost_log(bus, topics)
    if topics.accepted not in bus.topics():
        raise NotFoundError(f"no federation {topics.federation!r} on this bus", hint="make one with `refold init`")
    reader = LedgerReader(bus, topics.accepted)
    try:
        for entry in reader.read_to_end():
            if entry.events and isinstance(entry.events[0], Genesis):
                return entry.events[0]
        if reader.chain.skipped:
            raise IntegrityError(
                "no record of the log begins its chain",
                topic=topics.accepted,
                hint="it was damaged; `refold verify` says where",
            )
    finally:
        reader.close()
    raise NotFoundError("the log is empty", topic=topics.accepted, hint="make the federation with `refold init`")


class Server:
    """Members of some or all groups in one process.

    Parameters
    ----------
    secret
        The server's seed; its digest is in genesis.
    groups
        Which of `GROUPS` to run; a name given twice runs two members.
    member
        What this process calls itself in the log, unique among those alive.
    ensemble
        Detectors to judge with; the built-in ones if None.
    keys
        What opens sealed updates; nothing if None.
    health
        How nodes are watched; by the defaults if None.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        secret: bytes,
        *,
        groups: Sequence[str] = GROUPS,
        member: str = "",
        clock: Clock | None = None,
        ensemble: Ensemble | None = None,
        keys: SealingKeys | None = None,
        health: HealthSettings | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        unknown = sorted(set(groups) - set(GROUPS))
        if unknown:
            raise UsageError(f"no group {', '.join(unknown)}", hint=f"there are {', '.join(GROUPS)}")
        self._bus = bus
        self._topics = topics
        self._secret = secret
        self._keys = keys or SealingKeys()
        self._groups = tuple(groups)
        self._clock = clock or SystemClock()
        self._holding = Holding(self._clock)
        self._ensemble = ensemble
        self._health = health
        self._evaluation = evaluation
        self.member = member or f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(2).hex()}"
        self._life = os.urandom(4).hex()
        self._genesis = read_genesis(bus, topics)
        refuse_what_loses_data(bus, topics)
        if not self._genesis.identity.required:
            log.warning("%s is %s", topics.federation, INSECURE)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._pulses: list[_Pulse] = []

    def start(self) -> None:
        """Start every member's thread and return."""
        for number, group in enumerate(self._groups):
            make = self._factory(group, f"{self.member}-{group}-{number}")
            self._start(group, number, make)
        if self._health is not None and self._health.sinks and "health" in self._groups:
            sinks = self._health.sinks
            self._start("delivery", 0, lambda: Courier(self._bus, self._topics, sinks))

    def _start(self, group: str, number: int, make: Callable[[], Member]) -> None:
        pulse = _Pulse(group)
        name = f"refold-{group}-{number}"
        thread = threading.Thread(target=self._run, args=(pulse, make), name=name, daemon=True)
        self._pulses.append(pulse)
        self._threads.append(thread)
        thread.start()

    def members(self) -> list[AtWork]:
        """Return how the members of this process get on."""
        now_s = time.monotonic()
        return [AtWork(pulse.group, now_s - pulse.stepped_s, pulse.failures) for pulse in self._pulses]

    def holds(self) -> tuple[StateHeld, ...]:
        """Return the states that this process keeps between rounds, as they are in its memory."""
        shown = self._holding.shown("aggregation")
        return (shown,) if shown is not None else ()

    def dead(self) -> str:
        """Return why this server cannot go on by itself, or ""."""
        if self._failure is not None:
            return f"ended by {type(self._failure).__name__}"
        return "stopped" if self._stop.is_set() else ""

    def not_ready(self) -> str:
        """Return which members are not at work, or "" where all are, standing by included."""
        waiting = sorted(one.group for one in self.members() if one.step_age_s > READY_S)
        return self.dead() or (f"not at work: {', '.join(waiting)}" if waiting else "")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until stopped or failed; return False if `timeout_s` ran out first.

        Raises
        ------
        RefoldError
            What no restart mends.
        """
        stopped = self._stop.wait(timeout_s)
        if self._failure is not None:
            self.stop()
            raise self._failure
        return stopped

    def stop(self) -> None:
        """Stop all members and return once they left their groups. Idempotent."""
        self._stop.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._threads.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _factory(self, group: str, member: str) -> Callable[[], Member]:
        bus, topics, clock = self._bus, self._topics, self._clock
        key = log_key(self._secret) if self._genesis.log_keys else None
        seat = Seat(bus, topics, self._genesis, member, clock, key)
        match group:
            case "consistency":
                return lambda: Consistency(bus, topics, self._inspector(), member=member, clock=clock, life=self._life)
            case "detection":
                return lambda: Detection(bus, topics, self._inspector(), member=member, clock=clock, ensemble=self._ensemble)
            case "aggregation":
                return lambda: Aggregation(seat, keys=self._keys, holding=self._holding)
            case "health":
                return lambda: Health(seat, settings=self._health)
            case _:
                return lambda: Snapshots(seat, keys=self._keys, evaluation=self._evaluation)

    def _inspector(self) -> Inspector:
        return Inspector.of(self._genesis, self._secret, self._keys)

    def _run(self, pulse: _Pulse, make: Callable[[], Member]) -> None:
        group = pulse.group
        try:
            self._run_again_and_again(pulse, make)
        except MemoryError as error:
            # Not begun again here: only another life of the process counts as another attempt at what memory ran out over.
            failure = TryAgainError(
                "memory ran out",
                group=group,
                hint="start it again: an update over which this happens again and again is judged `poison`",
            )
            failure.__cause__ = error
            self._fail(failure)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._stop.set()

    def _run_again_and_again(self, pulse: _Pulse, make: Callable[[], Member]) -> None:
        group, failures = pulse.group, 0
        while not self._stop.is_set():
            member: Member | None = None
            try:
                member = make()
                while not self._stop.is_set():
                    if member.step(STEP_S):
                        failures = 0
                    pulse.stepped_s = time.monotonic()
            except FencedError:
                raise  # Two that come back again and again under one name would throw each other out for ever.
            except (BusError, TryAgainError, PlaceTakenError) as error:
                pause_s = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
                failures += 1
                pulse.failures += 1
                log.warning("%s starts again from the log in %.1f s: %s", group, pause_s, error)
                self._stop.wait(pause_s)
            finally:
                _close(member)


def _close(member: Member | None) -> None:
    """Leave the group; a bus that fails now finds out by the lease."""
    if member is None:
        return
    try:
        member.close()
    except (BusError, TryAgainError, PlaceTakenError) as error:
        log.warning("%s could not leave its group: %s", member.name, error)
