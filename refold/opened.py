"""What is there of a federation: its bus, names and keys, its log and rounds as they stand."""

from __future__ import annotations

from pathlib import Path

from refold.bus.clock import SystemClock
from refold.bus.contract import Bus
from refold.bus.ledger import read_all
from refold.bus.topics import Topics
from refold.consumers.commands import send_command
from refold.consumers.roster import Roster
from refold.consumers.server import read_genesis
from refold.keyring import Keyring
from refold.producers.history import History
from refold.schemas.events import Genesis


class Opened:
    """A federation on a bus, as everything that is done with one needs it; see `refold.federation.Federation`."""

    def __init__(self, bus: Bus, name: str, keys: Path) -> None:
        self.bus = bus
        self.topics = Topics(name)
        self.keyring = Keyring(keys)
        self._genesis: Genesis | None = None

    @property
    def name(self) -> str:
        """The federation's name."""
        return self.topics.federation

    @property
    def url(self) -> str:
        """The bus URL."""
        return self.bus.url

    @property
    def genesis(self) -> Genesis:
        """The first event of the log: schema, policies, first plan."""
        if self._genesis is None:
            self._genesis = read_genesis(self.bus, self.topics)
        return self._genesis

    def command(self, body: object) -> bytes:
        """Sign a command with the operator's key and write it."""
        return send_command(self.bus, self.topics, body, self.keyring.operator(), SystemClock())

    def roster(self) -> Roster:
        """Return what `accepted` says of clients and the open round, as detection sees it."""
        roster = Roster.of(self.genesis)
        for entry in read_all(self.bus, self.topics.accepted):
            roster.fold(entry)
        return roster

    def history(self) -> History:
        """Return all rounds and snapshots as they stand; close it after use."""
        history = History(self.bus, self.topics, genesis=self.genesis)
        history.refresh()
        return history

    @property
    def head(self) -> int:
        """The newest round."""
        history = self.history()
        try:
            return history.lineage.head
        finally:
            history.close()

    @property
    def ended(self) -> bool:
        """Whether the federation has ended: nothing is accepted any more."""
        history = self.history()
        try:
            return history.lineage.ended is not None
        finally:
            history.close()
