"""Which client does what wrong in which round, and the file in which it says so before it does."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

NAN, FLIPPED, TWICE, SCALED, STALE, KILLED = "nan", "bytes-flipped", "sent-twice", "norm-x100", "stale", "client-killed"
SIGN_FLIP, SERVER_KILLED, BROKER_KILLED = "sign-flip", "server-killed", "broker-killed"
NO_CLIENTS = frozenset({SERVER_KILLED, BROKER_KILLED})
"""Faults that no client has a part in."""
KINDS = (NAN, FLIPPED, TWICE, SCALED, STALE, KILLED)

EVERY_ROUNDS = 4
SPARED = 3
"""Clients besides the sign-flipper that no fault strikes in a round, so that there is something to compare with."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What an injector says before it acts; what became of it is for the log to say.

    Parameters
    ----------
    update
        Digest of the update as it was signed, or "" for a server.
    record
        BLAKE3 of the record as it went out, where it is not the one that was signed; else "".
    """

    kind: str
    client: str
    round: int
    update: str = ""
    record: str = ""


@dataclass(frozen=True)
class Schedule:
    """All faults of a run, drawn from its seed: the same in every run that has faults."""

    seed: int
    clients: int
    rounds: int
    enabled: bool = True

    @cached_property
    def sign_flipper(self) -> str:
        """The client that flips the sign of its delta, five times as long, in every round."""
        return client_name(int(self._rng(0).integers(self.clients)))

    def at(self, round_: int) -> dict[str, str]:
        """Return client → kind for a round, the sign-flipper apart."""
        if not self.enabled or round_ % EVERY_ROUNDS:
            return {}
        others = [client_name(i) for i in range(self.clients) if client_name(i) != self.sign_flipper]
        count = min(len(KINDS), max(0, len(others) - SPARED))
        first = (round_ // EVERY_ROUNDS - 1) * count
        kinds = [KINDS[(first + i) % len(KINDS)] for i in range(count)]
        chosen = self._rng(round_).permutation(len(others))[:count]
        return {others[int(who)]: kind for who, kind in zip(chosen, kinds, strict=True)}

    def fault(self, client: str, round_: int) -> str:
        """Return what a client does wrong in a round, or ""."""
        if self.enabled and client == self.sign_flipper:
            return SIGN_FLIP
        return self.at(round_).get(client, "")

    @property
    def server_dies_in(self) -> int:
        """The round in whose middle the server is killed; 0 for none.

        The one before a fault round near the half: there a client holds back what will be stale, so the round is open for long.
        """
        if not self.enabled or self.rounds < EVERY_ROUNDS:
            return 0
        return max(1, self.rounds // 2 // EVERY_ROUNDS) * EVERY_ROUNDS - 1

    def _rng(self, round_: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 4, round_])


def client_name(index: int) -> str:
    """Return the name of the client with this number, from 0."""
    return f"client-{index + 1:02d}"


class FaultFile:
    """``faults.jsonl``: one line a fault, durable before the fault happens; any number of processes append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, fault: Fault) -> None:
        """Write a line and return once it is on the disk."""
        line = json.dumps(asdict(fault) | {"time_ms": time.time_ns() // 1_000_000}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[Fault]:
        """Return all faults so far, in the order in which they were written."""
        if not self.path.exists():
            return []
        lines: list[dict[str, Any]] = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [Fault(**{name: line[name] for name in Fault.__slots__}) for line in lines]
