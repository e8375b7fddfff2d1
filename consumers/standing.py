"""One client as the log knows it: its keys, whether it takes part, its session, and what was judged of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from refold.consumers import reputation
from refold.schemas.keys import key_id
from refold.schemas.updates import UpdateBody

REMEMBERED = 256
"""Judged updates of a client, and rounds in which it was accepted, that are remembered."""

RETIRED = 64
"""Revoked keys of a client that are remembered as such; older ones are as unknown as any other."""

FROZEN, BANNED = "frozen", "banned"

Session = tuple[int, bytes]
Source = tuple[int, int]
NOT_FIRST = frozenset({"duplicate", "replayed", "equivocation", "session-superseded", "session-ahead"})
"""Reasons that say nothing of the update itself, only that it was not the first or came in the wrong session."""

UNSEEN = frozenset({FROZEN, BANNED, "over-limit"})
"""Reasons for which a client's updates are refused together, whatever they hold; none of them is remembered."""


@dataclass(frozen=True, slots=True)
class Retired:
    """A key that was revoked, and up to where it still speaks: below this offset of this partition; nowhere if it is 0."""

    public: bytes
    partition: int = 0
    before: int = 0

    def speaks_at(self, source: Source) -> bool:
        """Whether an update at this place is still the client's."""
        return source[0] == self.partition and source[1] < self.before


@dataclass(frozen=True, slots=True)
class Token:
    """An enrolment token that was not used: its public key, and the last round during which it is taken, or 0."""

    public: bytes
    last_round: int

    def is_over(self, round_: int) -> bool:
        """Whether it came too late for a round."""
        return 0 < self.last_round < round_


@dataclass(slots=True)
class Keys:
    """A client's keys and tokens by key id."""

    valid: dict[bytes, bytes] = field(default_factory=dict)
    retired: OrderedDict[bytes, Retired] = field(default_factory=OrderedDict)
    tokens: dict[bytes, Token] = field(default_factory=dict)

    @property
    def ever(self) -> bool:
        """Whether the client has, or had, a key."""
        return bool(self.valid or self.retired)

    def speaking(self, key: bytes, source: Source) -> bytes | None:
        """Return the public key of this id that speaks for the client at this place, or None."""
        if key in self.valid:
            return self.valid[key]
        retired = self.retired.get(key)
        return retired.public if retired is not None and retired.speaks_at(source) else None

    def add(self, public: bytes) -> None:
        """Let a key speak from here on, whatever became of it before."""
        name = key_id(public)
        self.retired.pop(name, None)
        self.valid[name] = public

    def retire(self, key: bytes, *, partition: int = 0, before: int = 0) -> None:
        """Revoke a key or token: at once, or (for a key that was replaced) from a place of a partition on."""
        self.tokens.pop(key, None)
        # Of one that was replaced and is then revoked, what waits no longer counts either.
        old = self.retired.get(key)
        public = self.valid.pop(key, old.public if old else None)
        if public is not None:
            self.retired[key] = Retired(public, partition, before)
            while len(self.retired) > RETIRED:
                self.retired.popitem(last=False)

    def admit(self, token: bytes, last_round: int, round_: int) -> None:
        """Take note of a token, and forget those whose time is over."""
        self.tokens = {name: one for name, one in self.tokens.items() if not one.is_over(round_)}
        self.tokens[key_id(token)] = Token(token, last_round)


@dataclass(slots=True)
class Standing:
    """One client.

    Parameters
    ----------
    state
        "", `FROZEN` or `BANNED`.
    since
        Partition and offset of the session's first update: an older session's update that lay before it is not late.
    reputation
        See `refold.consumers.reputation`.
    """

    keys: Keys = field(default_factory=Keys)
    state: str = ""
    session: Session = (0, b"")
    since: Source = (0, 0)
    sequences: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    digests: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    rounds: OrderedDict[tuple[int, str], bytes] = field(default_factory=OrderedDict)
    reputation: float = reputation.FIRST

    def refusal(self, body: UpdateBody, digest: bytes, source: Source) -> str:
        """Return the reason for which an update is no new one in the right session, or ""."""
        if digest in self.digests:
            return "duplicate"
        if self.state:
            return self.state
        if body.session < self.session:
            before = source[0] == self.since[0] and source[1] < self.since[1]
            return "" if before else "session-superseded"
        if body.session == self.session:
            if body.sequence in self.sequences:
                return "equivocation"
            if len(self.sequences) >= REMEMBERED and body.sequence < next(iter(self.sequences)):
                return "replayed"
        return ""

    def remember(self, session: Session, sequence: int, digest: bytes, source: Source) -> None:
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
