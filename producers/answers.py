"""What a client answered: kept, sent until the bus takes it, and let go of once its fate is known."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict

from refold.bus.clock import Clock
from refold.producers.lineage import Lineage
from refold.producers.outbox import Outbox, Parcel
from refold.producers.publisher import Publisher
from refold.producers.residual import Residual
from refold.producers.residual_file import Amount
from refold.schemas.canonical import decode
from refold.schemas.errors import BusError, InvalidRecord, StorageFullError, TryAgainError
from refold.schemas.events import Receipt, RoundCommitted
from refold.schemas.identity import ClientNotice
from refold.schemas.reasons import PROTOCOL
from refold.schemas.updates import EVALUATE, PASS, TRAIN, ClientUpdate, UpdateBody

log = logging.getLogger("refold.client")

REMEMBERED_RECEIPTS = 1024
REMEMBERED_ROUNDS = 8
RESEND_AFTER_S = 1.0
UNHEARD = "unheard"
"""The outcome of an update that was refused without a receipt."""
DIVERGED = "diverged"
"""The outcome of an answer that was never sent: the state that it rests on was not the log's any more."""

Session = tuple[int, bytes]


class Answers:
    """One client's answers to tasks, those of earlier lives among them.

    An answer leaves the outbox with its receipt. Two wait longer: one whose residual is not settled, and an evaluation that was
    accepted while its round is open, which tells a later life that it was done.

    Parameters
    ----------
    key_id
        Of the key that this client signs with.
    """

    def __init__(
        self, client: str, key_id: bytes, outbox: Outbox, residual: Residual, publisher: Publisher, clock: Clock
    ) -> None:
        self._client = client
        self._key_id = key_id
        self._outbox = outbox
        self._residual = residual
        self._publisher = publisher
        self._clock = clock
        self._receipts: OrderedDict[bytes, str] = OrderedDict()
        self._sent: dict[bytes, int] = {}
        self._given: dict[tuple[int, str], tuple[bytes, float]] = {}
        self._resend_at_s: dict[bytes, float] = {}
        self._undrained: dict[bytes, str | None] = {}
        self._evaluated: dict[bytes, int] = {}
        self._kept_out = ""
        self.is_refused = False
        """Whether an answer was refused for its session or number since this was last set to False."""

    @property
    def is_kept_out(self) -> bool:
        """Whether the log says that nothing of this client is taken."""
        return bool(self._kept_out)

    @property
    def is_waiting(self) -> bool:
        """Whether the bus has not taken an answer yet."""
        return bool(self._resend_at_s)

    @property
    def has_update_waiting(self) -> bool:
        """Whether the fate of an update, for whichever round, is not known yet."""
        return any(kind == TRAIN and digest not in self._receipts for (_, kind), (digest, _) in self._given.items())

    def outcome(self, digest: bytes) -> str | None:
        """Return what an answer's receipt says, or None as long as there is none."""
        return self._receipts.get(digest)

    def is_given(self, round_: int, kind: str) -> bool:
        """Whether what a round asks for was answered."""
        return (round_, kind) in self._given

    def is_refused_since(self, round_: int, patience_s: float) -> bool:
        """Whether the update for a round was given longer ago than this, and refused."""
        digest, at_s = self._given[round_, TRAIN]
        refused = self._receipts.get(digest, "accepted") != "accepted"
        return refused and self._clock.monotonic_s() - at_s > patience_s

    def keep(self, parcel: Parcel, body: UpdateBody, round_: int, unsent: Amount | None) -> None:
        """Keep the answer to what a round asks for, and before it what it leaves unsent.

        Raises
        ------
        StorageFullError
            There is no room; nothing was kept.
        """
        if unsent is not None:
            self._residual.put(parcel.digest, unsent, body)
        try:
            self._publisher.keep(parcel)
        except StorageFullError:
            if unsent is not None:
                self._residual.discard(parcel.digest)
            raise
        self._note(round_, body.kind, parcel.digest)
        self._given = {what: given for what, given in self._given.items() if what[0] >= round_ - REMEMBERED_ROUNDS}

    def _note(self, round_: int, kind: str, digest: bytes) -> None:
        asked = EVALUATE if kind in (EVALUATE, PASS) else TRAIN
        self._given[round_, asked] = (digest, self._clock.monotonic_s())

    def give_up(self) -> bytes:
        """Return what names an answer that is not sent; what it was for is not answered."""
        name = os.urandom(32)
        self._receipts[name] = DIVERGED
        return name

    def send(self, parcel: Parcel) -> None:
        """Send a kept answer; if the bus does not answer, `resend` sends it later."""
        try:
            self._sent[parcel.digest] = self._publisher.send(parcel)
        except (BusError, TryAgainError) as error:
            self._resend_at_s[parcel.digest] = self._clock.monotonic_s() + RESEND_AFTER_S
            log.warning("an update waits in the outbox, the bus does not answer: %s", error)

    def expect(self) -> None:
        """Look into the outbox before `rounds` is read, so that the receipts of an earlier life's answers are known as such."""
        self._undrained = dict.fromkeys(self._outbox.digests())

    def drain(self, federation: str, lineage: Lineage) -> Session:
        """Send what an earlier life left and has no receipt for; return the highest session among what is left, or none's."""
        highest: Session = (0, b"")
        for parcel in self._outbox.waiting():
            try:
                said = decode(parcel.manifest, ClientUpdate).body
            except InvalidRecord as error:
                log.warning("a file of the outbox holds no update and is set aside: %s", error)
                self._outbox.set_aside(parcel.digest)
                continue
            if (said.federation, said.client) != (federation, self._client):
                continue  # The folder serves another client too.
            if self._is_left(parcel, said, lineage):
                # What an earlier life answered is not asked for again.
                self._note(said.round, said.kind, parcel.digest)
                highest = max(highest, said.session)
        self._undrained.clear()
        return highest

    def _is_left(self, parcel: Parcel, said: UpdateBody, lineage: Lineage) -> bool:
        """Do what an earlier life's answer asks for; return whether it still speaks for its round."""
        outcome = self._undrained.get(parcel.digest) or self._receipts.get(parcel.digest)
        if outcome is None:
            self.send(parcel)
            return True
        if self._residual.awaits(parcel.digest):
            return False
        if outcome == "accepted" and said.kind in (EVALUATE, PASS) and said.round > lineage.head:
            self._evaluated[parcel.digest] = said.round
            return True
        self._outbox.drop(parcel.digest)
        return False

    def settle(self, lineage: Lineage) -> None:
        """Do what is known of sparse updates' fate; only then do they leave the outbox."""
        for digest in self._residual.settle(lineage):
            self._outbox.drop(digest)

    def sweep(self, lineage: Lineage) -> None:
        """Let go of what never will count."""
        self._residual.sweep(self._outbox.digests(), lineage.head)

    def finish(self, lineage: Lineage) -> None:
        """Settle all that has its receipt: the federation has ended."""
        self.settle(lineage)
        for digest in self._outbox.digests() & self._receipts.keys():
            if not self._residual.awaits(digest):
                self._outbox.drop(digest)
        self.sweep(lineage)

    def take_receipt(self, receipt: Receipt, lineage: Lineage) -> None:
        """Hear what became of an answer."""
        if receipt.client != self._client:
            return
        self._receipts[receipt.digest] = receipt.outcome
        self.is_refused = self.is_refused or receipt.outcome == PROTOCOL
        round_ = self._evaluation_of(receipt.digest)
        if self._residual.awaits(receipt.digest):
            self._residual.take_receipt(receipt)
        elif receipt.digest in self._undrained:
            self._undrained[receipt.digest] = receipt.outcome
        elif receipt.outcome == "accepted" and round_ > lineage.head:
            self._evaluated[receipt.digest] = round_
        else:
            self._outbox.drop(receipt.digest)
        self._resend_at_s.pop(receipt.digest, None)
        self._sent.pop(receipt.digest, None)
        while len(self._receipts) > REMEMBERED_RECEIPTS:
            self._receipts.popitem(last=False)

    def take_round(self, committed: RoundCommitted) -> None:
        """Let go of evaluations whose round is over: until then they tell a later life what was done."""
        self._residual.take_round(committed)
        for digest in [digest for digest, round_ in self._evaluated.items() if round_ <= committed.round]:
            del self._evaluated[digest]
            self._outbox.drop(digest)

    def _evaluation_of(self, digest: bytes) -> int:
        """Return the round that an update of this session evaluates, or 0."""
        found = (what[0] for what, (answer, _) in self._given.items() if answer == digest and what[1] == EVALUATE)
        return next(found, 0)

    def take_notice(self, notice: ClientNotice) -> None:
        """Hear why nothing of this client is taken, or that it is taken again."""
        if notice.client != self._client or notice.key_id not in (None, self._key_id):
            return
        if notice.what in ("enrolled", "released"):
            self._kept_out = ""
            return
        self._kept_out = f"its key was {notice.what}" if notice.what == "revoked" else f"it is {notice.what}"

    def unheard(self, lineage: Lineage) -> list[Receipt]:
        """Give up what detection has passed without a receipt: nobody is held to it, or its client is kept out.

        The first copy of an update lies before all others, so none that has a verdict to come is given up. Returns the receipts
        that there will not be.
        """
        parts = {part.partition: part.next_offset for part in lineage.position.updates}
        passed = parts.get(self._publisher.partition, 0)
        given_up = []
        for digest in [digest for digest, offset in self._sent.items() if offset < passed]:
            del self._sent[digest]
            if digest in self._receipts:
                continue
            hint = self._kept_out or "is it enrolled with this key? `refold show` says what the log knows of it"
            log.warning("an update of %s was refused without a receipt: %s", self._client, hint)
            given_up.append(Receipt(self._client, digest, UNHEARD))
        return given_up

    def resend(self) -> None:
        """Send again what the bus did not take."""
        now_s = self._clock.monotonic_s()
        due = {digest for digest, at_s in self._resend_at_s.items() if now_s >= at_s}
        found = set()
        for parcel in self._outbox.waiting(due) if due else ():
            found.add(parcel.digest)
            del self._resend_at_s[parcel.digest]
            self.send(parcel)
        for digest in due - found:
            del self._resend_at_s[digest]  # Broken on disk, or sent by another process of this client: it waits no more.
