"""Which beats the health group believes: those signed by a key of their client's, each newer than the last.

Hearing, which detection does, needs to know no more than that a client lives, and checks one beat of two. Here what a beat says
counts too, so every one is checked, but of what came in one client's name since the last look only the newest few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from refold.bus.contract import Record
from refold.consumers.monitoring.readings import Sample
from refold.consumers.roster import Roster
from refold.schemas.canonical import decode
from refold.schemas.condition import MEASURES, LogDigest
from refold.schemas.errors import InvalidRecord
from refold.schemas.keys import HEARTBEAT_TAG, verify_beat
from refold.schemas.updates import FAREWELL, WATCHING, Heartbeat, ServerHeartbeat, encoded_heartbeat_digest

MOST_AT_ONCE = 4
MOST_LOOKED_AT = 256
"""Beats of one client that are believed, and looked at, in one turn: a flood in its name costs 20 ms of it and no more."""

Place = tuple[tuple[int, bytes], int]
NEVER: Place = ((-1, b""), -1)
NEAR = 16
Who = tuple[str, bool]
"""A client, or who watches its logs beside it."""


class Heard(NamedTuple):
    """What is kept of a beat until it is believed, and what its signature is over.

    The record itself is fifty objects. A thousand that are read at once and kept would all be new memory each time.
    """

    sample: Sample
    log: LogDigest | None
    key_id: bytes
    signature: bytes
    digest: bytes

    @property
    def place(self) -> Place:
        """Where it stands among those of its client."""
        return self.sample.session, self.sample.beat

    @property
    def is_watching(self) -> bool:
        """Whether it is of one who follows the client's logs, and no sign of life of it."""
        return self.sample.activity == WATCHING


def heard_in(records: Iterable[Record], federation: str, servers: list[ServerHeartbeat]) -> Iterator[Heard]:
    """Yield the clients' beats among records of `health`; those of servers are added to `servers`."""
    for record in records:
        encoded = record.value or b""
        try:
            beat = decode(encoded)
        except InvalidRecord:
            continue
        if isinstance(beat, Heartbeat) and beat.federation == federation:
            log = beat.condition.log if beat.condition else None
            yield Heard(sample_of(beat), log, beat.key_id, beat.signature, encoded_heartbeat_digest(encoded, beat))
        elif isinstance(beat, ServerHeartbeat) and beat.federation == federation:
            servers.append(beat)


@dataclass(slots=True)
class Listener:
    """Believes beats, or counts why not: ``unknown``, ``old``, ``flood``, ``unsigned``, ``forged``."""

    ignored: Counter[str] = field(default_factory=Counter)
    _last: dict[Who, Place] = field(default_factory=dict)

    def believed(self, roster: Roster, beats: Iterable[Heard]) -> Iterator[Heard]:
        """Yield the beats that count, those of one client in their order."""
        of: dict[Who, list[Heard]] = {}
        for heard in beats:
            client = heard.sample.client
            if roster.required and client not in roster.active:
                self.ignored["unknown"] += 1
            else:
                of.setdefault((client, heard.is_watching), []).append(heard)
        for who, found in of.items():
            yield from self._of_one(roster, who, found)

    def _of_one(self, roster: Roster, who: Who, beats: list[Heard]) -> Iterator[Heard]:
        """Yield the newest few that hold. Forged ones are passed over and cannot crowd an honest one out, up to a bound."""
        held: list[Heard] = []
        looked = 0
        if len(beats) > 1:
            beats.sort(key=lambda heard: self._is_expected(who, heard.place), reverse=True)
        for heard in beats:
            if len(held) == MOST_AT_ONCE or looked == MOST_LOOKED_AT:
                break
            looked += 1
            fault = self._fault(roster, who, heard)
            if fault:
                self.ignored[fault] += 1
            else:
                held.append(heard)
        if looked < len(beats):
            self.ignored["flood"] += len(beats) - looked
        held.sort(key=lambda heard: heard.place)
        for heard in held:
            if heard.place > self._last.get(who, NEVER):  # Two may have one number.
                self._last[who] = heard.place
                yield heard

    def _is_expected(self, who: Who, place: Place) -> tuple[bool, Place]:
        """Return what those are sorted by that are likely to hold: next to the last one that held, then new."""
        session, number = self._last.get(who, NEVER)
        return place[0] == session and number < place[1] <= number + NEAR, place

    def _fault(self, roster: Roster, who: Who, heard: Heard) -> str:
        if heard.place <= self._last.get(who, NEVER):
            return "old"
        if not roster.required:
            return "unsigned" if heard.sample.activity == FAREWELL else ""  # Anyone could send another away.
        public = roster.clients[heard.sample.client].keys.valid.get(heard.key_id)
        if public is None or not heard.signature:
            return "unsigned"
        return "" if verify_beat(public, HEARTBEAT_TAG, heard.digest, heard.signature) else "forged"

    def keep(self, roster: Roster) -> None:
        """Forget clients that may no longer take part."""
        if roster.required:
            self._last = {who: place for who, place in self._last.items() if who[0] in roster.active}


def sample_of(beat: Heartbeat) -> Sample:
    """Return a beat in the units in which nodes are watched."""
    said = beat.condition
    session, clock_s = (beat.session_index, beat.session_nonce), beat.client_time_ms / 1000
    if said is None:
        return Sample(beat.client, session, beat.beat, clock_s, beat.activity, beat.round)
    progress, log = said.progress, said.log
    steps, loss, age_s = None, None, 0.0
    if progress is not None:
        loss = float("inf") if progress.diverged else progress.loss
        age_s = progress.age_ms / 1000
        if progress.batch is not None:
            steps = float(progress.batch + (progress.epoch or 0) * (progress.batches or 0))
        elif progress.epoch is not None:
            steps = float(progress.epoch)
    return Sample(
        beat.client,
        session,
        beat.beat,
        clock_s,
        beat.activity,
        beat.round,
        {_NAMES.get(name, name): value for name, value in said.measures},
        said.left_out,
        steps,
        age_s,
        loss,
        log.errors if log else None,
    )


_NAMES = {name: name for name in MEASURES}
"""One string for each name, instead of one for each beat that is remembered."""
