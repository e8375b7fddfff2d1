"""What a client has released under its privacy setting, on its disk beside the outbox: how often, with which noise.

One JSON file for each client, replaced whole::

    {"said": {"federation", "client", "released": [[noise multiplier, count], …], "last_round", "delta", "budget"}, "check"}

It never counts too few: a release is written down, durably, before its noise is drawn. Durable steps of `spend`, under a lock
that other processes of this client wait for: 1. the file is written beside its name and synced; 2. it gets its name; 3. the
folder is synced. A crash before 2 leaves what was there, and nothing was released; a crash after it counts a release that never
was. A damaged file is refused and never taken for an empty one.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blake3

from refold.producers.outbox import owner_of
from refold.schemas.errors import ConfigurationError, StorageFullError
from refold.schemas.files import read_small, replacing

SUFFIX = ".privacy"


@dataclass(frozen=True, slots=True)
class Spent:
    """What was released so far.

    Parameters
    ----------
    released
        For each noise multiplier how many updates were released with it.
    last_round
        The round of the last one; 0 before the first.
    delta, budget
        As this client was last started: its δ, and the ε that it may spend, None without a limit.
    """

    federation: str
    client: str
    released: tuple[tuple[float, int], ...] = ()
    last_round: int = 0
    delta: float = 1e-5
    budget: float | None = None

    @property
    def count(self) -> int:
        """How many updates were released."""
        return sum(count for _, count in self.released)

    def after(self, noise_multiplier: float, round_: int) -> Spent:
        """Return the same with one more release."""
        counts = dict(self.released)
        counts[noise_multiplier] = counts.get(noise_multiplier, 0) + 1
        return replace(self, released=tuple(sorted(counts.items())), last_round=max(round_, self.last_round))


class SpendingFile:
    """One client's file.

    Parameters
    ----------
    folder
        The outbox's. Other clients may have theirs in it.
    """

    def __init__(self, folder: str | Path, federation: str, client: str) -> None:
        self._path = Path(folder) / f"{owner_of(federation, client).hex()}{SUFFIX}"
        self._none = Spent(federation, client)

    def read(self) -> Spent:
        """Return what was released so far.

        Raises
        ------
        ConfigurationError
            The file is damaged.
        """
        try:
            return read_spent(self._path)
        except FileNotFoundError:
            return self._none

    def change(self, make: Callable[[Spent], Spent]) -> Spent:
        """Replace what is written by what `make` makes of it, and return that once it is durable; `make` may raise.

        Raises
        ------
        ConfigurationError
            The file is damaged.
        StorageFullError
            There is no room; what was there stays.
        """
        try:
            with self._locked():
                spent = make(self.read())
                self._write(spent)
        except OSError as error:
            raise StorageFullError(
                f"what is released cannot be written down: {error.strerror}", path=self._path, hint="make room first"
            ) from error
        return spent

    def _write(self, spent: Spent) -> None:
        with replacing(self._path) as file:
            file.write(_written(spent).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_spent(path: Path) -> Spent:
    """Read one file.

    Raises
    ------
    FileNotFoundError
        There is none.
    ConfigurationError
        It is damaged.
    """
    try:
        found = json.loads(read_small(path).decode("utf-8"))
        said = found["said"]
        if found["check"] != _check(said):
            raise ValueError("its check does not agree")
        released = tuple((float(multiplier), int(count)) for multiplier, count in said["released"])
        budget = said["budget"] if said["budget"] is None else float(said["budget"])
        return Spent(said["federation"], said["client"], released, int(said["last_round"]), float(said["delta"]), budget)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigurationError(
            f"what was released under the privacy setting cannot be read: {error}",
            path=path,
            hint="restore the file; without it nobody knows what is spent, and this client takes no part",
        ) from error


def _written(spent: Spent) -> str:
    said: dict[str, Any] = {
        "federation": spent.federation,
        "client": spent.client,
        "released": [list(row) for row in spent.released],
        "last_round": spent.last_round,
        "delta": spent.delta,
        "budget": spent.budget,
    }
    return json.dumps({"said": said, "check": _check(said)}, indent=1) + "\n"


def _check(said: dict[str, Any]) -> str:
    return blake3.blake3(json.dumps(said, sort_keys=True).encode()).hexdigest()
