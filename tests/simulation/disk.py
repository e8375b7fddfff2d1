"""A client's disk: what was put there is there after a crash, what was not is not."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from refold.producers.outbox import Parcel
from tests.simulation.bus import Line
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class Disk:
    """What survives a client's process.

    Parameters
    ----------
    folder
        Where else a client keeps something: residuals of sparse updates, what it witnessed.
    """

    folder: Path
    parcels: dict[bytes, Parcel] = field(default_factory=dict)
    aside: list[Parcel] = field(default_factory=list)

    def clear(self) -> None:
        """Lose everything."""
        self.parcels.clear()
        for path in self.folder.iterdir():
            path.unlink()


class SimOutbox:
    """`refold.producers.outbox.Outbox` on a simulated disk."""

    def __init__(self, world: World, process: Process, disk: Disk) -> None:
        self._line = Line(world, process)
        self._disk = disk

    @property
    def folder(self) -> Path:
        """A real folder, in which nothing of this lies."""
        return self._disk.folder

    def put(self, parcel: Parcel) -> None:
        """Keep an update until `drop`."""
        self._line.at_disk("outbox/put", lambda: self._disk.parcels.setdefault(parcel.digest, parcel))

    def drop(self, digest: bytes) -> None:
        """Forget an update."""
        if digest in self._disk.parcels:
            self._line.at_disk("outbox/drop", lambda: self._disk.parcels.pop(digest, None))

    def waiting(self, digests: Collection[bytes] | None = None) -> Iterator[Parcel]:
        """Yield what waits (or those of it that are named), oldest first."""
        return (p for p in list(self._disk.parcels.values()) if digests is None or p.digest in digests)

    def set_aside(self, digest: bytes) -> None:
        """Send this no more, and keep it."""
        self._disk.aside.append(self._disk.parcels.pop(digest))

    def digests(self) -> set[bytes]:
        """Return the digests of what waits."""
        return set(self._disk.parcels)
