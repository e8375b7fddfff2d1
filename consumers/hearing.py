"""Which heartbeats count: those of clients that take part, signed by a key of theirs, and newer than the last that counted.

A signature takes several times as long to check as a record to decode. So one is looked at only where it would change what is
believed: a client that was heard of a moment ago is not listened to again, and of the beats that came together the newest that
holds is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from refold.consumers.liveness import Liveness
from refold.consumers.roster import Roster
from refold.consumers.standing import Standing
from refold.schemas.keys import HEARTBEAT_TAG, verify
from refold.schemas.updates import FAREWELL, WATCHING, Heartbeat, heartbeat_digest

FRESH_BEATS = 2
"""A client heard of so few of its intervals ago is not listened to; it is taken for dead after more than twice as many."""

Place = tuple[tuple[int, bytes], int]
"""A beat's place in its client's life: session and number."""

Known = Callable[[int], bytes | None]


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
    """

    liveness: Liveness
    ignored: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    unfit: set[str] = field(default_factory=set)
    diverged: dict[str, Heartbeat] = field(default_factory=dict)
    """Clients whose newest beat that was believed tells of another state than the log's, with that beat."""

    _last: dict[str, Place] = field(default_factory=dict)
    _looked_s: dict[str, float] = field(default_factory=dict)
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
                self._last.pop(client, None)
            elif not self.liveness.is_fresh(client, FRESH_BEATS, now_s) or self._is_news(of_client, roster, now_s):
                self._listen(roster, client, of_client, now_s)

    def _listen(self, roster: Roster, client: str, beats: list[Heartbeat], now_s: float) -> None:
        for beat in sorted(beats, key=_place, reverse=True):
            fault = self._fault(roster.clients[client], beat)
            if not fault:
                self._last[client] = _place(beat)
                self._believe(roster, beat, now_s)
                return
            self.ignored[fault] += 1

    def _differs(self, beat: Heartbeat) -> bool:
        known = self._known(beat.round)
        return known is not None and any(beat.parameters_digest) and beat.parameters_digest != known

    def _is_news(self, beats: list[Heartbeat], roster: Roster, now_s: float) -> bool:
        """Whether beats, if believed, are a farewell or make a client one that has diverged, or no longer; once an interval.

        Who floods with forged beats can make no more signatures be checked than that.
        """
        beat = beats[-1]
        is_farewell = any(one.activity == FAREWELL for one in beats)
        if not is_farewell and self._differs(beat) == (beat.client in self.diverged):
            return False
        last_s, self._looked_s[beat.client] = self._looked_s.get(beat.client, -1e9), now_s
        return now_s - last_s >= roster.plan.heartbeat_ms / 1000

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
        if self._differs(beat):
            self.diverged[beat.client] = beat
        else:
            self.diverged.pop(beat.client, None)


def _place(beat: Heartbeat) -> Place:
    return (beat.session_index, beat.session_nonce), beat.beat
