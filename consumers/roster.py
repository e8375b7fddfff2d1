"""What detection remembers of clients and rounds: a fold over `accepted`, bounded, so that a successor judges alike."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from refold.bus.ledger import Entry
from refold.schemas.commits import Position
from refold.schemas.events import (
    ClientEnrolled,
    FederationEnded,
    Genesis,
    Origin,
    RoundClosed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.keys import key_id
from refold.schemas.plans import RoundPlan
from refold.schemas.reasons import REASONS
from refold.schemas.updates import ANSWERS, UpdateBody

REMEMBERED = 256
"""Judged updates of a client, and rounds in which it was accepted, that are remembered."""

Session = tuple[int, bytes]
NOT_FIRST = frozenset({"duplicate", "replayed", "equivocation", "session-superseded", "session-ahead"})
"""Reasons that say nothing of the update itself, only that it was not the first or came in the wrong session."""


@dataclass(slots=True)
class Standing:
    """One client: its keys, its session, and what was judged of it."""

    keys: dict[bytes, bytes] = field(default_factory=dict)
    session: Session = (0, b"")
    since: tuple[int, int] = (0, 0)
    """Partition and offset of the session's first update: an older session's update that lay before it is not late."""
    sequences: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    digests: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    rounds: OrderedDict[tuple[int, str], bytes] = field(default_factory=OrderedDict)

    def refusal(self, body: UpdateBody, digest: bytes, source: tuple[int, int]) -> str:
        """Return the reason for which an update is no new one in the right session, or ""."""
        if digest in self.digests:
            return "duplicate"
        if body.session < self.session:
            before = source[0] == self.since[0] and source[1] < self.since[1]
            return "" if before else "session-superseded"
        if body.session == self.session:
            if body.sequence in self.sequences:
                return "equivocation"
            if len(self.sequences) >= REMEMBERED and body.sequence < next(iter(self.sequences)):
                return "replayed"
        return ""

    def remember(self, session: Session, sequence: int, digest: bytes, source: tuple[int, int]) -> None:
        """Take note of an update that was the first of its kind."""
        _remember(self.digests, digest, None)
        if session > self.session:
            self.session, self.since = session, source
            self.sequences.clear()
        if session == self.session:
            _remember(self.sequences, sequence, digest)

    def accept(self, round_: int, kind: str, digest: bytes) -> None:
        """Take note that an update of this round was accepted (or is a candidate for it)."""
        _remember(self.rounds, (round_, kind), digest)


def _remember(store: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    store[key] = value
    while len(store) > REMEMBERED:
        store.popitem(last=False)


@dataclass(slots=True)
class Judged:
    """A past verdict on a training update, as detectors with a memory see it."""

    client: str
    round: int
    accepted: bool
    reasons: tuple[str, ...]
    scores: tuple[Any, ...]


@dataclass(slots=True)
class Roster:
    """The state of `accepted` that verdicts depend on.

    Parameters
    ----------
    plan
        Of the round that is open.
    closed
        The last round that was closed; 0 before the first.
    done
        Clients that have a verdict for the open round.
    """

    genesis: Genesis
    plan: RoundPlan
    clients: dict[str, Standing] = field(default_factory=dict)
    closed: int = 0
    done: set[str] = field(default_factory=set)
    ended: bool = False
    position: Position = field(default_factory=Position)
    commands: set[bytes] = field(default_factory=set)
    history: deque[Judged] = field(default_factory=lambda: deque(maxlen=20_000))

    @classmethod
    def of(cls, genesis: Genesis) -> Roster:
        """Return the state right after genesis."""
        return cls(genesis, genesis.first_plan)

    def fold(self, entry: Entry) -> None:
        """Take a commit in."""
        self.position = entry.commit.position
        for event in entry.events:
            match event:
                case ClientEnrolled():
                    standing = self.clients.setdefault(event.client, Standing())
                    standing.keys[key_id(event.public_key)] = event.public_key
                    self.commands.add(event.command_id)
                case UpdateAccepted():
                    self._accepted(event)
                case UpdateRejected():
                    self._rejected(event)
                case RoundClosed():
                    self.closed, self.plan = event.round, event.next_plan
                    self.done.clear()
                case FederationEnded():
                    self.ended = True

    def past_scores(self) -> dict[str, dict[str, list[float]]]:
        """Return what each detector said of each client before, oldest first: ``[client][detector]``."""
        past: dict[str, dict[str, list[float]]] = {}
        for judged in self.history:
            values = past.setdefault(judged.client, {})
            for score in judged.scores:
                values.setdefault(score.detector, []).append(score.value)
        return past

    def _accepted(self, event: UpdateAccepted) -> None:
        self._first(event.origin)
        origin = event.origin
        self.clients[origin.client].accept(origin.base_round + 1, origin.kind, origin.digest)
        if origin.kind == "train":
            self._done(origin)
            self.history.append(Judged(origin.client, origin.base_round + 1, True, (), event.scores))

    def _rejected(self, event: UpdateRejected) -> None:
        if NOT_FIRST.isdisjoint(event.reasons):
            self._first(event.origin)
            if event.origin.kind in ANSWERS:
                self._done(event.origin)
        if any(REASONS.get(reason) == "anomaly" for reason in event.reasons):
            origin = event.origin
            self.history.append(Judged(origin.client, origin.base_round + 1, False, event.reasons, event.scores))

    def _done(self, origin: Origin) -> None:
        if origin.base_round + 1 == self.plan.round:
            self.done.add(origin.client)

    def _first(self, origin: Origin) -> None:
        standing = self.clients.get(origin.client)
        if standing is not None:
            source = (origin.partition, origin.offset)
            standing.remember((origin.session_index, origin.session_nonce), origin.sequence, origin.digest, source)
