"""Where the runs of a demonstration keep their logs: files of its own, a cluster that is there, or one that it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from refold.bus import parse_url
from refold.bus.copying import export
from refold.demo.names import BUS_FILE, EMBEDDED, FEDERATION, STARTED
from refold.schemas.errors import UsageError


class Buses(Protocol):
    """One bus for each run."""

    brokers: int
    """How many brokers there are that `kill_a_broker` may take one of; 0 where there is none to kill."""

    def federation(self, run: str) -> str:
        """Name the federation of a run."""
        ...

    def url(self, run: str, folder: Path) -> str:
        """Return the URL of a run's bus."""
        ...

    def kill_a_broker(self) -> None:
        """Kill one broker the hard way (SIGKILL) and leave it dead."""
        ...

    def keep(self, url: str, folder: Path) -> str:
        """Leave a run's log in its folder as a bus file; return the URL that outlives the demonstration."""
        ...


class Embedded:
    """A bus file in each run's folder."""

    brokers = 0

    def federation(self, run: str) -> str:
        """Name it: every file holds one alone."""
        return FEDERATION

    def url(self, run: str, folder: Path) -> str:
        """Return the file's URL."""
        return f"sqlite:{folder / BUS_FILE}?federation={FEDERATION}"

    def kill_a_broker(self) -> None:
        """There is none."""

    def keep(self, url: str, folder: Path) -> str:
        """It is a file already."""
        return url


class OnCluster:
    """Federations side by side on a Kafka cluster, under names that no other demonstration there took.

    Parameters
    ----------
    location
        ``HOST:PORT[,…]``, and perhaps ``?settings``.
    prefix
        What the federations' names begin with.
    """

    brokers = 0

    def __init__(self, location: str, prefix: str, settings: str = "") -> None:
        self._location = location
        self._settings = settings
        self._prefix = f"{prefix}-{os.urandom(3).hex()}"

    def federation(self, run: str) -> str:
        """Name it after demonstration and run."""
        return f"{self._prefix}-{run}"

    def url(self, run: str, folder: Path) -> str:
        """Return the cluster's URL with the run's federation."""
        return f"kafka://{self._location}/{self.federation(run)}{self._settings}"

    def kill_a_broker(self) -> None:
        """Somebody's cluster: not ours to kill."""

    def keep(self, url: str, folder: Path) -> str:
        """Export the log, and name the cluster: both stay."""
        _export(url, folder)
        return url


class OwnCluster(OnCluster):
    """Brokers that this demonstration started, and ends when it is over."""

    def __init__(self, nodes: int) -> None:
        # Loaded here: only this way of showing needs Java.
        from refold.testing.kafka import Cluster

        self._cluster = Cluster(nodes=nodes)
        self._cluster.__enter__()
        # Of one or two, the rest could not go on writing.
        self.brokers = nodes if nodes > 2 else 0
        super().__init__(self._cluster.bootstrap, "demo")

    def kill_a_broker(self) -> None:
        """Kill the last one."""
        self._cluster.kill(self.brokers)

    def keep(self, url: str, folder: Path) -> str:
        """Export the log: the brokers will be gone."""
        return _export(url, folder)

    def close(self) -> None:
        """End the brokers."""
        self._cluster.__exit__(None, None, None)


def _export(url: str, folder: Path) -> str:
    kept = f"sqlite:{folder / BUS_FILE}?federation={parse_url(url).federation}"
    export(url, kept)
    return kept


@contextmanager
def open_buses(bus: str, nodes: int) -> Iterator[Buses]:
    """Yield the buses that were asked for: ``sqlite``, ``kafka`` (starts `nodes` brokers) or a ``kafka://`` URL.

    Raises
    ------
    UsageError
        Something else was asked for.
    """
    if bus == EMBEDDED:
        yield Embedded()
    elif bus == STARTED:
        own = OwnCluster(nodes)
        try:
            yield own
        finally:
            own.close()
    else:
        parts = parse_url(bus)
        if parts.scheme != "kafka":
            raise UsageError(
                f"a demonstration cannot run on {bus!r}",
                hint=f"write {EMBEDDED}, {STARTED} (starts a broker) or kafka://HOST:PORT[,...]",
            )
        _, query, settings = bus.partition("?")
        yield OnCluster(parts.location, parts.federation or "demo", query + settings)
