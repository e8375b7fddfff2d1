"""Which heartbeats count: those of clients that take part, signed by a key of theirs, and newer than the last that counted.

A signature takes several times as long to check as a record to decode. So one is looked at only where it would change what is
believed: a client that was heard of a moment ago is not listened to again, and of the beats that came together the newest that
holds is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from refold.consumers.astray import Astray, Known, Strayed, lie
from refold.consumers.liveness import Liveness
from refold.consumers.roster import Roster
from refold.consumers.standing import Standing
from refold.schemas.keys import HEARTBEAT_TAG, verify
from refold.schemas.updates import FAREWELL, WATCHING, Heartbeat, heartbeat_digest

FRESH_BEATS = 2
"""A client heard of so few of its intervals ago is not listened to; it is taken for dead after more than twice as many."""

Place = tuple[tuple[int, bytes], int]
"""A beat's place in its client's life: session and number."""


@dataclass(slots=True)
class Hearing:
    """Listens to the beats of one federation's clients.

    Parameters
    ----------
    ignored
        How many beats were not believed, by reason: ``unknown``, ``old``, ``unsigned``, ``forged``.
    verified
        How many signatures were checked.
    unfit
        Clients whose newest beat says of them what the plan's conditions leave out.
    astray
        Clients whose newest beat tells of another state than the log's.
    strayed
        What was found of that kind and nobody was told of yet.
    lying
        Clients two of whose signed beats contradict each other.
    """

    liveness: Liveness
    ignored: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    unfit: set[str] = field(default_factory=set)
    astray: Astray = field(default_factory=Astray)
    strayed: list[Strayed] = field(default_factory=list)
    lying: set[str] = field(default_factory=set)
    _last: dict[str, Place] = field(default_factory=dict)
    _told: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    _looked_s: dict[tuple[str, str], float] = field(default_factory=dict)
    _known: Known = field(default=lambda _: None)

    def take(self, roster: Roster, beats: Iterable[Heartbeat], now_s: float, known: Known = lambda _: None) -> None:
        """Take in beats that were just read.

        Parameters
        ----------
        known
            Gives the digest of a round's parameters by the log, or None. One comparison a client, whatever the model's size.
        """
        self._known = known
        newest: dict[str, list[Heartbeat]] = {}
        for beat in beats:
            if beat.activity == FAREWELL and not roster.required:
                self.ignored["unsigned"] += 1  # Anyone could send another away.
            elif beat.activity != WATCHING:  # It follows a log, and goes on when the client beside it is dead.
                newest.setdefault(beat.client, []).append(beat)
        for client, of_client in newest.items():
            if not roster.required:
                self._believe(roster, of_client[-1], now_s)
            elif client not in roster.active:
                self.ignored["unknown"] += len(of_client)
                self._forget(client)
            elif self._lies(roster, of_client, now_s):
                self.lying.add(client)
                self.strayed.append(lie(client))
            elif not self.liveness.is_fresh(client, FRESH_BEATS, now_s) or self._is_news(of_client, roster, now_s):
                self._listen(roster, client, of_client, now_s)

    def _listen(self, roster: Roster, client: str, beats: list[Heartbeat], now_s: float) -> None:
        for beat in sorted(beats, key=_place, reverse=True):
            fault = self._fault(roster.clients[client], beat)
            if not fault:
                self._last[client] = _place(beat)
                self._told[client] = _told(beat)
                self._believe(roster, beat, now_s)
                return
            self.ignored[fault] += 1

    def _forget(self, client: str) -> None:
        """Begin anew with a client that takes no part, should it come back."""
        self._last.pop(client, None)
        self._told.pop(client, None)
        self.lying.discard(client)
        self.astray.forget(client)

    def _lies(self, roster: Roster, beats: list[Heartbeat], now_s: float) -> bool:
        """Whether two beats of one number, both signed, tell of two states; looked at once an interval at most."""
        client = beats[0].client
        suspects = [] if client in self.lying else self._suspects(client, beats)
        if not suspects or not self._may_look(client, "lies", roster, now_s):
            return False
        keys = roster.clients[client].keys.valid
        return all(self._is_signed(keys, beat) for beat in suspects)

    def _suspects(self, client: str, beats: list[Heartbeat]) -> list[Heartbeat]:
        """Return beats that, if they are signed, show that one number was given to two: of them, or to the last believed."""
        last, seen = self._last.get(client), dict[Place, Heartbeat]()
        for beat in beats:
            place = _place(beat)
            if place == last and _told(beat) != self._told[client]:
                return [beat]
            first = seen.setdefault(place, beat)
            if _told(first) != _told(beat):
                return [first, beat]
        return []

    def _is_signed(self, keys: Mapping[bytes, bytes], beat: Heartbeat) -> bool:
        public = keys.get(beat.key_id)
        self.verified += 1
        return public is not None and verify(public, HEARTBEAT_TAG, heartbeat_digest(beat), beat.signature)

    def _may_look(self, client: str, what: str, roster: Roster, now_s: float) -> bool:
        """Whether a signature may be checked once more for this: once an interval, however many forged beats come."""
        if now_s - self._looked_s.get((client, what), -1e9) < roster.plan.heartbeat_ms / 1000:
            return False
        self._looked_s[client, what] = now_s
        return True

    def _is_news(self, beats: list[Heartbeat], roster: Roster, now_s: float) -> bool:
        """Whether beats, if believed, are a farewell or change what is known of a client's state.

        That it holds the right state again counts apart: its next update is refused until that is known.
        """
        beat = beats[-1]
        if any(one.activity == FAREWELL for one in beats):
            return self._may_look(beat.client, FAREWELL, roster, now_s)
        news = self.astray.news(beat, self._known)
        return bool(news) and self._may_look(beat.client, news, roster, now_s)

    def _fault(self, standing: Standing, beat: Heartbeat) -> str:
        place = _place(beat)
        if place <= self._last.get(beat.client, ((0, b""), -1)) or place[0] < standing.session:
            return "old"
        public = standing.keys.valid.get(beat.key_id)
        if public is None or not beat.signature:
            return "unsigned"
        self.verified += 1
        return "" if verify(public, HEARTBEAT_TAG, heartbeat_digest(beat), beat.signature) else "forged"

    def _believe(self, roster: Roster, beat: Heartbeat, now_s: float) -> None:
        if beat.activity == FAREWELL:
            self.liveness.left(beat.client)
            return
        self.liveness.beat(beat, roster.plan.heartbeat_ms, now_s)
        if roster.plan.where and not roster.plan.fits(dict(beat.properties)):
            self.unfit.add(beat.client)
        else:
            self.unfit.discard(beat.client)
        self.strayed += self.astray.take(beat, self._known)


def _told(beat: Heartbeat) -> tuple[int, bytes]:
    return beat.round, beat.parameters_digest


def _place(beat: Heartbeat) -> Place:
    return (beat.session_index, beat.session_nonce), beat.beat
