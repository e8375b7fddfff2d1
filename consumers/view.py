"""Detection's view of the logs: `accepted` folded to a roster, `rounds` to a lineage, held against each other."""

from __future__ import annotations

from collections import OrderedDict

from refold.bus.closing import close_all
from refold.bus.contract import Bus
from refold.bus.ledger import Entry, LedgerReader
from refold.bus.topics import Topics
from refold.consumers.roster import Roster
from refold.consumers.startup import refuse_lost_input
from refold.producers.lineage import KeyListener, LineageReader
from refold.schemas.errors import IntegrityError, NotFoundError
from refold.schemas.events import Genesis


class LogView:
    """The logs as far as they were read. A member that stands by keeps it warm, so that taking over is a matter of a moment.

    It is read before the member joins its group: reading a long log must not cost the place that it is read for.

    Parameters
    ----------
    on_key
        Hears of sealing keys in `rounds`.
    """

    def __init__(self, bus: Bus, topics: Topics, *, on_key: KeyListener | None = None) -> None:
        self._bus = bus
        self._topics = topics
        self.accepted = LedgerReader(bus, topics.accepted)
        self.rounds = LineageReader(bus, topics, on_key=on_key)
        self._roster: Roster | None = None
        # Of the head that `rounds` covers and every later one, oldest first: one of them is the head that it covers next.
        self._hashes: OrderedDict[int, bytes] = OrderedDict({0: bytes(32)})

    @property
    def roster(self) -> Roster:
        """The fold of what was read of `accepted`."""
        if self._roster is None:
            raise NotFoundError("no federation in this log", topic=self._topics.accepted, hint="make one with `refold init`")
        return self._roster

    def read_to_end(self) -> None:
        """Read both logs to their ends; check that `accepted` has the head that `rounds` covers, and the inputs what it judged.

        Raises
        ------
        IntegrityError
            One of them lost its tail.
        """
        self.rounds.read_to_end()
        for entry in self.accepted.read_to_end():
            self.fold(entry)
        covered = self.rounds.lineage.position
        known = self._hashes.get(covered.accepted_index)
        if known is None or (covered.accepted_index and known != covered.accepted_hash):
            raise IntegrityError(
                f"`rounds` covers `accepted` up to event {covered.accepted_index}, which `accepted` no longer has",
                topic=self._topics.accepted,
                hint="its tail was lost or replaced; restore it from a copy, nothing is written until then",
            )
        refuse_lost_input(self._bus, self._topics, self.accepted.chain.position)

    def follow(self) -> None:
        """Take in a little of what is new."""
        self.rounds.poll()
        for entry in self.accepted.poll():
            self.fold(entry)

    def fold(self, entry: Entry) -> None:
        """Take in a commit that was taken."""
        if self._roster is None:
            self._roster = Roster.of(_genesis_of(entry, self._topics))
        self._roster.fold(entry)
        covered = self.rounds.lineage.position.accepted_index
        while self._hashes and next(iter(self._hashes)) < covered:
            self._hashes.popitem(last=False)
        if entry.commit.next_index >= covered:
            self._hashes[entry.commit.next_index] = entry.hash

    def close(self) -> None:
        """Let go of the readers."""
        close_all(self.accepted, self.rounds)


def _genesis_of(entry: Entry, topics: Topics) -> Genesis:
    if not entry.events or not isinstance(entry.events[0], Genesis):
        raise IntegrityError("the log does not begin with a genesis", topic=topics.accepted, offset=entry.offset)
    return entry.events[0]
