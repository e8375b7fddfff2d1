"""What verdicts tell people about who tries what: one alert for each kind, client and round, however often it is tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from refold.consumers.reputation import POOR
from refold.consumers.roster import Roster
from refold.schemas.events import Unattributed, UpdateRejected
from refold.schemas.identity import UpdatesRefused
from refold.schemas.reasons import blames

FORGERIES = {
    "wrong-federation": "was made for another federation",
    "not-enrolled": "comes from nobody that was enrolled",
    "unknown-key": "names a key that is not its client's",
    "revoked-key": "is signed by a key that was revoked",
    "signature": "is not signed by the key that it names",
    "token": "asks for a key by a token that is not valid",
    "possession": "asks for a key that its sender does not hold",
}
SUBJECT = "identity"


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What to tell: its kind, whom it is about, how grave it is, what happened and what can be done."""

    kind: str
    subject: str
    severity: str
    what: str
    advice: str


@dataclass(slots=True)
class Suspicions:
    """Remembers what was told of the open round."""

    _round: int = -1
    _told: set[tuple[str, str]] = field(default_factory=set)

    def new(self, events: Iterable[object], round_: int, roster: Roster) -> Iterator[Suspicion]:
        """Yield what these events, folded into the roster, are suspected to be and nobody was told of in this round."""
        if round_ != self._round:
            self._round = round_
            self._told.clear()
        for event in events:
            for kind, found in (*_suspected(event), *_sunken(event, roster)):
                if (found.subject, kind) not in self._told:
                    self._told.add((found.subject, kind))
                    yield found


def _sunken(event: object, roster: Roster) -> Iterator[tuple[str, Suspicion]]:
    """Yield a client that is refused again and again for what its updates hold."""
    if not isinstance(event, UpdateRejected) or not any(map(blames, event.reasons)):
        return
    client = event.origin.client
    reputation = roster.clients[client].reputation
    if reputation < POOR:
        what = f"{client} is refused again and again, lately for {', '.join(event.reasons)}: its reputation is {reputation:.2f}"
        advice = f"`refold show {client}` says why; mend the client, or `refold quarantine ban` it"
        yield "reputation", Suspicion("reputation", client, "warning", what, advice)


def _suspected(event: object) -> Iterator[tuple[str, Suspicion]]:
    match event:
        case UpdateRejected() if "equivocation" in event.reasons:
            client = event.origin.client
            what = f"{client} sent two different updates or heartbeats under one number, and is frozen: nothing of it is taken"
            advice = (
                "it lies, its key is in two hands, or its disk was restored from a copy; "
                "then `refold quarantine release` lets it in again, and `refold revoke` takes the key from it"
            )
            yield "equivocation", Suspicion("equivocation", client, "error", what, advice)
        case UpdatesRefused(reason="over-limit"):
            what = f"{event.client} sends more updates than it may in one round; further ones are not looked at (over-limit)"
            yield (
                event.reason,
                Suspicion("over-limit", event.client, "warning", what, "mend the client, or `refold quarantine ban` it"),
            )
        case Unattributed() if event.reason in FORGERIES:
            what = f"a record of updates {FORGERIES[event.reason]} ({event.reason}; {event.detail or 'no name'})"
            place = f"partition {event.partition}, offset {event.first_offset}"
            yield (
                event.reason,
                Suspicion("forgery", SUBJECT, "warning", what, f"it was refused and lies in quarantine: {place}"),
            )
