"""A client as a witness: it keeps the server's signed word on the log, and notices when the log becomes another one.

Each commit of `rounds` carries a checkpoint. It is verified before anything else of the commit is believed: signed by a log
key, of this commit and what it covers, larger than the one before it and proven to extend it. What was kept in an earlier life
is looked for in `rounds` as it is read again; a log without it was written anew, cut off, or is shown to others otherwise.

Then the client goes no further. Both checkpoints stay in a ``.forked`` file: signed by the same key, they prove it to anyone.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from refold.bus.clock import Clock, SystemClock
from refold.bus.ledger import Entry
from refold.producers.outbox import owner_of
from refold.schemas.checkpoints import SignedCheckpoint
from refold.schemas.errors import ConfigurationError, IntegrityError, NotFoundError
from refold.schemas.events import Checkpointed, FederationOpened
from refold.schemas.files import replacing
from refold.schemas.kept import Kept, read_kept, to_lines
from refold.schemas.keys import key_id
from refold.schemas.merkle import verify_consistency

log = logging.getLogger("refold.witness")

MOST_HELD = 128
NEWEST_HELD = 64
"""Of the newest so many, all are kept; of older ones fewer the older they are, always the first."""

SAVE_EVERY_S = 1.0


class Witness:
    """What one client holds of one federation's log.

    What its first life was told is believed from then on. The file is replaced whole, at most once in `SAVE_EVERY_S` and on
    `close`; a crash leaves an older one, which still testifies.

    Parameters
    ----------
    folder
        The client's outbox.
    """

    def __init__(self, folder: str | Path, federation: str, client: str, *, clock: Clock | None = None) -> None:
        self.path = Path(folder) / f"{owner_of(federation, client).hex()}.witness"
        self._federation = federation
        self._clock = clock or SystemClock()
        self._held = _read(self.path)
        self._met = 0
        self._log_keys: tuple[bytes, ...] = ()
        self._last: SignedCheckpoint | None = None
        self._accusation: IntegrityError | None = None
        self._saved_at_s = self._clock.monotonic_s()
        self._is_saved = True

    @property
    def newest(self) -> Kept | None:
        """The newest checkpoint that was verified."""
        return self._held[-1] if self._held else None

    @property
    def is_behind(self) -> bool:
        """Whether `rounds`, as far as it was read, lacks checkpoints of an earlier life."""
        return self._met < len(self._held)

    def take(self, entry: Entry) -> None:
        """Verify what a commit of `rounds` says of the log; the commit counts only after this.

        Raises
        ------
        IntegrityError
            The log is not the one that this client knows, now and on every further call.
        """
        self.require_sound()
        for event in entry.events:
            if isinstance(event, FederationOpened):
                self._log_keys = event.log_keys
        if not self._log_keys and not self._held:
            return
        found = [event for event in entry.events if isinstance(event, Checkpointed)]
        if len(found) != 1:
            raise self._accuse(f"a commit of `rounds` carries {len(found)} checkpoints", None)
        if self.is_behind:
            self._meet(found[0])
        else:
            self._verify(entry, found[0])
        self._last = found[0].signed

    def require_sound(self) -> None:
        """Raise again what was found."""
        if self._accusation is not None:
            raise self._accusation

    def require_whole(self) -> None:
        """Refuse a `rounds` that, read to its end, lacks what an earlier life saw in it.

        Raises
        ------
        IntegrityError
        """
        if self.is_behind:
            raise self._accuse("the log ends before what this client saw of it", self._last)

    def _meet(self, event: Checkpointed) -> None:
        """Look for the next checkpoint held; between those held nothing is new, and the next one stands for all before it."""
        due, shown = self._held[self._met], event.signed
        if shown.checkpoint.events < due.events:
            return
        if shown != due.signed:
            raise self._accuse("it holds another checkpoint where this client knows one", shown)
        self._met += 1

    def _verify(self, entry: Entry, event: Checkpointed) -> None:
        fault = self._fault(entry, event)
        if fault:
            raise self._accuse(fault, event.signed)
        signer = next(key for key in self._log_keys if key_id(key) == event.signed.key_id)
        self._held = thinned([*self._held, Kept(event.signed, signer)])
        self._met = len(self._held)
        self._is_saved = False
        if self._clock.monotonic_s() - self._saved_at_s >= SAVE_EVERY_S:
            self.save()

    def _fault(self, entry: Entry, event: Checkpointed) -> str:
        """Return what is wrong with a checkpoint that is new, or ""."""
        said, position = event.signed.checkpoint, entry.commit.position
        last = self._last.checkpoint if self._last else None
        if said.federation != self._federation or not event.signed.is_signed_by(self._log_keys):
            return "a checkpoint is not signed by a log key of the federation"
        if (said.events, said.head) != (position.accepted_index, position.accepted_hash):
            return "a checkpoint is not of what its commit covers"
        if (said.rounds_index, said.rounds_head) != (entry.commit.first_index, entry.commit.previous):
            return "a checkpoint is not of the `rounds` that it lies in"
        if last is None:
            return "" if event.previous_events == 0 else "the first checkpoint follows from one that is not there"
        if not last.events == event.previous_events < said.events:
            return "a checkpoint covers no more than the one before it"
        if not verify_consistency(last.events, said.events, last.root, said.root, event.consistency):
            return "a checkpoint does not extend the one before it"
        return ""

    def _accuse(self, what: str, shown: SignedCheckpoint | None) -> IntegrityError:
        """Keep the evidence, and return the error that this witness raises from now on."""
        known = self._held[min(self._met, len(self._held) - 1)] if self._held else None
        evidence = self.path.with_name(f"{self.path.stem}-{shown.checkpoint.digest.hex()[:8] if shown else 'none'}.forked")
        sides = [known] if known else []
        sides += [Kept(shown, key) for key in self._log_keys if shown and shown.is_signed_by([key])]
        _replace(evidence, to_lines(sides))
        good = self._held[self._met - 1].events if self._met else 0
        self._accusation = IntegrityError(
            f"the log was forked: {what}; its first {good} events are as they were",
            topic=f"{self._federation}.rounds",
            path=evidence,
            hint="keep this file, it testifies (`refold verify --against FILE`), and ask the operator; if he says that he went"
            f" back to an older copy, and you believe him, move {self.path} away",
        )
        return self._accusation

    def save(self) -> None:
        """Write what is held; where there is no room the older file stays, and is written over next time."""
        self._saved_at_s = self._clock.monotonic_s()
        if self._is_saved:
            return
        if not self._held or _newest_in(self.path) < self._held[-1].events:
            self._is_saved = _replace(self.path, to_lines(self._held))

    def close(self) -> None:
        """Write what is held."""
        self.save()


def thinned(held: list[Kept]) -> list[Kept]:
    """Return at most `MOST_HELD` checkpoints: all of the newest, and of older ones fewer the older they are."""
    while len(held) > MOST_HELD:
        end = held[-1].events
        gaps = [
            (held[at + 1].events - held[at - 1].events) / (end - held[at - 1].events)
            for at in range(1, len(held) - NEWEST_HELD)
        ]
        del held[1 + gaps.index(min(gaps))]
    return held


def _read(path: Path) -> list[Kept]:
    try:
        return read_kept(path)
    except NotFoundError:
        return []
    except ConfigurationError as error:
        log.warning("what was witnessed cannot be read and is kept aside: %s", error)
        path.replace(path.with_suffix(".broken"))
        return []


def _newest_in(path: Path) -> int:
    """Return how many events the last checkpoint of a file covers, as it says itself; 0 where there is none."""
    try:
        return int(json.loads(path.read_text().splitlines()[-1])["events"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _replace(path: Path, text: str) -> bool:
    """Write a file in the place of an older one, whole or not at all; return whether there was room."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        log.warning("what was witnessed could not be written: %s", error)
        return False
    return True
