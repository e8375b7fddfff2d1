"""The rounds of a federation as `rounds` tells them: what clients, detection and rebuilds know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from refold.bus.contract import Bus
from refold.bus.ledger import Entry, LedgerReader
from refold.bus.topics import Topics
from refold.schemas.commits import Position
from refold.schemas.errors import NotFoundError
from refold.schemas.events import (
    Checkpointed,
    ClientErased,
    ClientKeyed,
    FederationEnded,
    FederationOpened,
    Overflowed,
    Receipt,
    Receipts,
    Regridded,
    RolledBack,
    RoundCommitted,
)
from refold.schemas.identity import ClientNotice, ClientNotices
from refold.schemas.model import ModelSchema
from refold.schemas.plans import RoundPlan
from refold.state.epochs import Epochs, Lattice

Listener = Callable[[Receipt], None]
KeyEvent = ClientKeyed | ClientErased
KeyListener = Callable[[KeyEvent], None]
NoticeListener = Callable[[ClientNotice], None]
RoundListener = Callable[[RoundCommitted], None]
Guard = Callable[[Entry], None]


@dataclass(slots=True)
class Lineage:
    """A fold over `rounds`. Members of rounds are not kept here, so that memory does not grow with the number of clients.

    Parameters
    ----------
    head
        The newest round; 0 before the first.
    position
        What the last commit covers of `accepted`, and how far updates were looked at.
    checkpoint
        The newest one; not verified here.
    next_index
        Index of the next event of `rounds`.
    rollbacks
        In order; each stands before the round that it opens.
    regrids
        By the round that each opens, and stands before.
    overflowed
        The newest round whose step led beyond the lattice.
    """

    opened: FederationOpened | None = None
    rounds: dict[int, RoundCommitted] = field(default_factory=dict)
    head: int = 0
    ended: FederationEnded | None = None
    next_index: int = 0
    position: Position = field(default_factory=Position)
    checkpoint: Checkpointed | None = None
    rollbacks: list[RolledBack] = field(default_factory=list)
    regrids: dict[int, Regridded] = field(default_factory=dict)
    overflowed: Overflowed | None = None
    epochs: Epochs = field(default_factory=Epochs)
    _schemas: dict[Lattice, ModelSchema] = field(default_factory=dict)

    def fold(
        self,
        entry: Entry,
        *,
        on_receipt: Listener | None = None,
        on_round: RoundListener | None = None,
        on_key: KeyListener | None = None,
        on_notice: NoticeListener | None = None,
    ) -> None:
        """Take a commit in. The listeners hear of rounds, members and all, of receipts, sealing keys and notices, in order."""
        self.position = entry.commit.position
        self.next_index = entry.commit.next_index
        for event in entry.events:
            match event:
                case FederationOpened():
                    self.opened = event
                case RoundCommitted():
                    self.rounds[event.round] = replace(event, members=())
                    self.head = event.round
                    begun = self.regrids.get(event.round)
                    self.epochs.add(event.round, event.parent, begun.exponents if begun is not None else ())
                    if on_round is not None:
                        on_round(event)
                case RolledBack():
                    self.rollbacks.append(event)
                case Regridded():
                    self.regrids[event.round] = event
                case Overflowed():
                    self.overflowed = event
                case FederationEnded():
                    self.ended = event
                case Checkpointed():
                    self.checkpoint = event
                case ClientKeyed() | ClientErased() if on_key is not None:
                    on_key(event)
                case ClientNotices() if on_notice is not None:
                    for notice in event.notices:
                        on_notice(notice)
                case Receipts() if on_receipt is not None:
                    for receipt in event.receipts:
                        on_receipt(receipt)

    @property
    def plan(self) -> RoundPlan:
        """The plan of the round that is open.

        Raises
        ------
        NotFoundError
            The federation is not open yet.
        """
        if self.opened is None:
            raise NotFoundError("the federation is not open yet", hint="start its server: `refold serve`")
        return self.rounds[self.head].next_plan if self.head in self.rounds else self.opened.first_plan

    def schema_of(self, round_: int) -> ModelSchema:
        """Return the model's schema with the lattice that a round's state is on.

        Raises
        ------
        NotFoundError
            The federation is not open yet.
        """
        if self.opened is None:
            raise NotFoundError("the federation is not open yet", hint="start its server: `refold serve`")
        lattice = self.epochs.of(round_).lattice
        if not lattice:
            return self.opened.schema
        if lattice not in self._schemas:
            self._schemas[lattice] = self.opened.schema.on(lattice)
        return self._schemas[lattice]

    def parameters_digest(self, round_: int) -> bytes | None:
        """Return the digest of a round's parameters; None for a round that is not in the log."""
        if round_ == 0 and self.opened is not None:
            return self.opened.parameters_digest
        return self.rounds[round_].parameters_digest if round_ in self.rounds else None

    def descends(self, round_: int, ancestor: int) -> bool:
        """Whether a round is this ancestor or was built on it; False where the log has not all that lies between."""
        while round_ > ancestor and round_ in self.rounds:
            round_ = self.rounds[round_].parent
        return round_ == ancestor

    def past(self) -> set[int]:
        """Return the newest round and all that it stands on; every other round lies on a branch that was left."""
        past, at = {self.head}, self.head
        while at in self.rounds:
            at = self.rounds[at].parent
            past.add(at)
        return past

    def state_digest(self, round_: int) -> bytes | None:
        """Return the digest of a round's parameters and slots; None for a round that is not in the log."""
        if round_ == 0 and self.opened is not None:
            return self.opened.state_digest
        return self.rounds[round_].state_digest if round_ in self.rounds else None


class LineageReader:
    """Follows `rounds`.

    Parameters
    ----------
    guard
        Called with every commit before it is folded; what it raises keeps the commit from counting.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        *,
        on_receipt: Listener | None = None,
        on_round: RoundListener | None = None,
        on_key: KeyListener | None = None,
        guard: Guard | None = None,
        on_notice: NoticeListener | None = None,
    ) -> None:
        self.reader = LedgerReader(bus, topics.rounds)
        self.lineage = Lineage()
        self._on_receipt = on_receipt
        self._on_round = on_round
        self._guard = guard
        self._on_key = on_key
        self._on_notice = on_notice

    def poll(self, timeout_s: float = 0.0) -> list[Entry]:
        """Take in what is new, waiting up to `timeout_s` for it."""
        entries = self.reader.poll(timeout_s)
        for entry in entries:
            self._fold(entry)
        return entries

    def read_to_end(self) -> Lineage:
        """Take in all that is there now, and return the lineage."""
        for entry in self.reader.read_to_end():
            self._fold(entry)
        return self.lineage

    def _fold(self, entry: Entry) -> None:
        if self._guard is not None:
            self._guard(entry)
        self.lineage.fold(
            entry,
            on_receipt=self._on_receipt,
            on_round=self._on_round,
            on_key=self._on_key,
            on_notice=self._on_notice,
        )

    def close(self) -> None:
        """Let go of the reader."""
        self.reader.close()
