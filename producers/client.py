"""A client of a federation: asks for tasks, trains elsewhere, submits."""

from __future__ import annotations

import logging
import operator
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Self

from refold.bus.clock import Clock, SystemClock
from refold.bus.closing import close_all
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.producers.coding import Coded, code
from refold.producers.heartbeat import HeartbeatThread
from refold.producers.history import History
from refold.producers.outbox import Outbox, Parcel
from refold.producers.privacy import Privacy, PrivateUpdates
from refold.producers.publisher import Publisher
from refold.producers.residual import Residual
from refold.producers.residual_file import Amount
from refold.producers.sealer import Sealer
from refold.producers.spending import SpendingFile
from refold.producers.task import Receipt, Task
from refold.producers.witness import Witness
from refold.schemas.canonical import Scalar, decode
from refold.schemas.errors import BusError, ConfigurationError, InvalidRecord, NotFoundError, StorageFullError, TryAgainError
from refold.schemas.events import Receipt as ReceiptEvent
from refold.schemas.events import RoundCommitted
from refold.schemas.identity import INSECURE, ClientNotice
from refold.schemas.keys import SigningKey
from refold.schemas.layout import Layout
from refold.schemas.payload import describe
from refold.schemas.plans import RoundPlan, settings
from refold.schemas.reasons import PROTOCOL
from refold.schemas.updates import EVALUATE, PASS, TRAIN, ClientUpdate, Sealing, UpdateBody
from refold.state.delta import TOPK
from refold.state.model_state import ModelState

log = logging.getLogger("refold.client")

REMEMBERED_RECEIPTS = 1024
UNHEARD = "unheard"
"""The outcome of an update that was refused without a receipt."""

POLL_S = 0.25


class Client:
    """One client's session. Use as a context manager; belongs to one thread.

    On entry: 1. `rounds` is read to its end, waiting up to `open_timeout_s` for the federation to open; it must be the log that
    an earlier life saw (`refold.producers.witness`), and what it says of sparse updates' fate is acted on
    (`refold.producers.residual`); 2. what the outbox holds from an earlier life is sent again,
    as the same bytes; 3. a session is opened; 4. heartbeats begin.

    Parameters
    ----------
    key
        Signs everything; its public half must be enrolled under this client's name. None where clients are not identified.
    properties
        Told with every heartbeat.
    privacy
        Clips every change and adds noise to it; see `refold.producers.privacy`. `self.privacy` then says what is spent.
    sealed
        Train only with a sealing key. Without this, updates are sealed from the moment on that `rounds` tells of one.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        name: str,
        key: SigningKey | None,
        outbox: Outbox,
        *,
        properties: Mapping[str, Scalar] | None = None,
        open_timeout_s: float = 60.0,
        privacy: Privacy | None = None,
        sealed: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._bus = bus
        self._topics = topics
        self._is_keyless = key is None
        self._key = key or SigningKey.generate()
        self._outbox = outbox
        self._properties = settings(properties or {})
        self._open_timeout_s = open_timeout_s
        self._clock = clock or SystemClock()
        self._receipts: OrderedDict[bytes, str] = OrderedDict()
        self._sent: dict[bytes, int] = {}
        self._kept_out = ""
        self.privacy = (
            None if privacy is None else PrivateUpdates(privacy, SpendingFile(outbox.folder, topics.federation, name))
        )
        self._residual = Residual(outbox.folder, topics.federation, name, private=privacy is not None)
        self.witness = Witness(outbox.folder, topics.federation, name, clock=self._clock)
        self._sealer = Sealer(topics.federation, name, required=sealed)
        self._history = History(
            bus,
            topics,
            on_receipt=self._take_receipt,
            on_round=self._take_round,
            on_key=self._sealer.take,
            on_notice=self._take_notice,
            guard=self.witness.take,
        )
        self._publisher = Publisher(bus, topics, name, self._key, outbox, self._clock)
        self._heartbeat: HeartbeatThread | None = None
        self._session: tuple[int, bytes] = (0, b"")
        self._sequence = 0
        self._state: ModelState | None = None
        self._plan_seen = (-1, 0.0)
        self._answered: dict[tuple[int, str], tuple[bytes, float]] = {}
        self._resend_at_s: dict[bytes, float] = {}
        self._undrained: dict[bytes, str | None] = {}
        self._evaluated: dict[bytes, int] = {}
        self._refused = False

    def __enter__(self) -> Self:
        # 1. The log.
        self._undrained = dict.fromkeys(self._outbox.digests())
        self._wait_until_open()
        self._say_how_clients_are_known()
        self._settle_residual()
        self._residual.sweep(self._outbox.digests(), self._history.lineage.head)
        # 2. The outbox.
        self._drain()
        # 3. The session.
        self._open_session()
        # 4. Heartbeats.
        self._heartbeat = HeartbeatThread(
            self._bus,
            self._topics,
            self.name,
            self._session,
            self._key,
            interval_s=self._history.lineage.plan.heartbeat_ms / 1000,
            properties=self._properties,
            clock=self._clock,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what the outbox holds is sent by the next session."""
        close_all(self._heartbeat, self._publisher, self._history, self.witness)

    def tasks(self) -> Iterator[Task]:
        """Yield what this client is asked to do, until the federation ends.

        A task that was not answered when the next one is asked for counts as declined. A client whose update of a round was
        refused, or that was not selected, is asked once more where the round is still open after its deadline.
        """
        while True:
            lineage = self._history.lineage
            if lineage.ended is not None:
                self._settle()
                return
            plan = lineage.plan
            asked = self._asked(plan)
            if asked is None:
                self._doing("waiting")
                self._wait_for_news()
                continue
            try:
                task = self._task(plan, asked)
            except (BusError, TryAgainError) as error:
                log.warning("the bus does not answer, trying on: %s", error)
                self._wait_for_news()
                continue
            obstacle = self._obstacle() if asked == TRAIN else ""
            if obstacle:
                self._decline(task, obstacle)
                continue
            self._doing("evaluating" if asked == EVALUATE else "training")
            yield task
            if not task.answered:
                self._decline(task, "no answer")

    def _obstacle(self) -> str:
        if self.privacy is not None and not self.privacy.has_room():
            return "the privacy budget is spent"
        return self._sealer.obstacle

    def _decline(self, task: Task, why: str) -> None:
        """Say that a task was left; where there is no room to say so, it is asked again later."""
        try:
            task.decline(why)
        except StorageFullError as error:
            log.warning("round %d is asked again later: %s", task.round, error)
            self._wait_for_news()

    def _asked(self, plan: RoundPlan) -> str | None:
        """Return what the open round asks of this client and has not got: an evaluation first, then training."""
        if plan.round != self._plan_seen[0]:
            self._plan_seen = (plan.round, self._clock.monotonic_s())
        if not plan.selects(self.name) and not self._volunteers(plan):
            return None
        if plan.evaluate and (plan.round, EVALUATE) not in self._answered:
            return EVALUATE
        if (plan.round, TRAIN) not in self._answered or self._may_try_again(plan):
            return TRAIN
        return None

    def _may_try_again(self, plan: RoundPlan) -> bool:
        digest, at_s = self._answered[plan.round, TRAIN]
        refused = self._receipts.get(digest, "accepted") != "accepted"
        return refused and self._clock.monotonic_s() - at_s > plan.patience_ms / 1000

    def _volunteers(self, plan: RoundPlan) -> bool:
        """Whether the round is open so much longer than planned that those selected cannot have sufficed."""
        return self._clock.monotonic_s() - self._plan_seen[1] > (plan.patience_ms + 2 * plan.heartbeat_ms) / 1000

    def _task(self, plan: RoundPlan, kind: str) -> Task:
        if self._refused and not self._resend_at_s:
            # Perhaps another process of this name holds a higher session; the receipt moved the log on, so ours is next.
            self._open_session()
        return Task(self, plan, self._hold(self._history.lineage.head), evaluate=kind == EVALUATE)

    def _hold(self, round_: int) -> ModelState:
        """Bring the parameters held to a round, by whatever way is there."""
        held, self._state = self._state, None
        if held is None or held.round != round_:
            held = self._rebuilt(round_, held)
        self._state = held
        if self._heartbeat:
            digest = self._history.lineage.parameters_digest(round_)
            self._heartbeat.vitals.round, self._heartbeat.vitals.parameters_digest = round_, digest or bytes(32)
        return held

    def _rebuilt(self, round_: int, held: ModelState | None) -> ModelState:
        deadline_s = self._clock.monotonic_s() + self._open_timeout_s
        while True:
            self._history.refresh()
            try:
                return self._history.rebuild(round_, held=held, slots=False)
            except NotFoundError:
                held = None
                if self._clock.monotonic_s() > deadline_s:
                    raise
            self._history.rounds.poll(POLL_S)

    def submit(self, task: Task, body: UpdateBody, chunks: tuple[bytes, ...], unsent: Amount | None = None) -> Receipt:
        """Keep an update in the outbox and send it; if the bus does not answer it is sent later. Called by `Task`."""
        # A payload inside the manifest needs no chunks beside it: nobody would ever ask for them, or know them for garbage.
        inline = body.payload is not None and body.payload.inline is not None
        parcel = self._publisher.sign(body, () if inline else chunks)
        self._keep(parcel, body, unsent)
        self._sequence += 1
        answered = EVALUATE if task.evaluate else TRAIN
        self._answered[task.round, answered] = (parcel.digest, self._clock.monotonic_s())
        self._answered = {k: v for k, v in self._answered.items() if k[0] >= task.round - 8}
        self._send(parcel)
        return Receipt(self, parcel.digest)

    def _keep(self, parcel: Parcel, body: UpdateBody, unsent: Amount | None) -> None:
        """Keep an update, and before it what it leaves unsent."""
        if unsent is not None:
            self._residual.put(parcel.digest, unsent, body)
        try:
            self._publisher.keep(parcel)
        except StorageFullError:
            if unsent is not None:
                self._residual.discard(parcel.digest)
            raise

    def coded(self, task: Task, local: Mapping[str, Any]) -> Coded:
        """Return what training made of a task's parameters, coded as its plan asks. Called by `Task`.

        Raises
        ------
        UsageError
            The tensors are not the model's, or the privacy budget is spent.
        InvalidRecord
            ``not-finite`` or ``out-of-range``.
        StorageFullError
            There is no room to bring the residual to where the log says it is, or to write down what is released.
        """
        if self.privacy is not None:
            local = self.privacy.noised(task.state, local)
        residual = None
        if task.plan.codec == TOPK:
            self._settle_residual()
            residual = self._residual.read(task.state.schema, self._history.lineage, task.base_round)
        coded = code(task.state, local, task.plan, residual, max_chunk_bytes=self._sealer.room_bytes)
        return self._sealer.seal(coded, self._session, self._sequence)

    def body(
        self,
        task: Task,
        kind: str,
        num_examples: int,
        metrics: Mapping[str, float],
        chunks: tuple[bytes, ...],
        exponents: tuple[int, ...],
        note: str,
        sealing: Sealing | None = None,
    ) -> UpdateBody:
        """Return an update's body. Called by `Task`."""
        schema = task.state.schema
        payload = describe(chunks) if kind == TRAIN else None
        return UpdateBody(
            self._topics.federation,
            self.name,
            self._key.key_id,
            *self._session,
            self._sequence,
            kind,
            task.base_round,
            self._history.lineage.parameters_digest(task.base_round) or bytes(32),
            schema.digest,
            task.plan.codec,
            exponents,
            operator.index(num_examples),
            tuple(sorted((name, float(value)) for name, value in metrics.items())),
            payload,
            Layout.of(schema).size_bytes if kind == TRAIN else 0,
            note,
            self._clock.wall_ms(),
            sealing,
        )

    def outcome(self, digest: bytes) -> str | None:
        """Return what an update's receipt says, or None as long as there is none: "accepted" or the class of the reason."""
        return self._receipts.get(digest)

    def wait_for_news(self, timeout_s: float) -> None:
        """Take in what comes in `rounds`, waiting at most so long, and send again what still waits."""
        self._history.rounds.poll(timeout_s)
        self._find_unheard()
        self._resend()

    @property
    def clock(self) -> Clock:
        """The clock that waits are measured by."""
        return self._clock

    def _wait_for_news(self) -> None:
        try:
            self.wait_for_news(POLL_S)
        except (BusError, TryAgainError) as error:
            log.warning("the bus does not answer, trying on: %s", error)
            # Where it refuses at once, nothing else keeps this from asking again at once.
            time.sleep(POLL_S)

    def _settle(self) -> None:
        self._settle_residual()
        for digest in self._outbox.digests() & self._receipts.keys():
            if not self._residual.awaits(digest):
                self._outbox.drop(digest)
        self._residual.sweep(self._outbox.digests(), self._history.lineage.head)

    def _settle_residual(self) -> None:
        """Do what is known of sparse updates' fate; only then do they leave the outbox."""
        for digest in self._residual.settle(self._history.lineage):
            self._outbox.drop(digest)

    def _take_receipt(self, receipt: ReceiptEvent) -> None:
        if receipt.client != self.name:
            return
        self._receipts[receipt.digest] = receipt.outcome
        self._refused = self._refused or receipt.outcome == PROTOCOL
        round_ = self._evaluation_of(receipt.digest)
        if self._residual.awaits(receipt.digest):
            self._residual.take_receipt(receipt)
        elif receipt.digest in self._undrained:
            self._undrained[receipt.digest] = receipt.outcome
        elif receipt.outcome == "accepted" and round_ > self._history.lineage.head:
            self._evaluated[receipt.digest] = round_
        else:
            self._outbox.drop(receipt.digest)
        self._resend_at_s.pop(receipt.digest, None)
        self._sent.pop(receipt.digest, None)
        while len(self._receipts) > REMEMBERED_RECEIPTS:
            self._receipts.popitem(last=False)

    def _take_round(self, committed: RoundCommitted) -> None:
        """Let go of evaluations whose round is over: until then they tell a later life what was done."""
        self._residual.take_round(committed)
        for digest in [digest for digest, round_ in self._evaluated.items() if round_ <= committed.round]:
            del self._evaluated[digest]
            self._outbox.drop(digest)

    def _evaluation_of(self, digest: bytes) -> int:
        """Return the round that an update of this session evaluates, or 0."""
        found = (what[0] for what, (answer, _) in self._answered.items() if answer == digest and what[1] == EVALUATE)
        return next(found, 0)

    def _find_unheard(self) -> None:
        """Give up what detection has passed without a receipt: nobody is held to it, or its client is kept out.

        The first copy of an update lies before all others, so none that has a verdict to come is given up.
        """
        parts = {part.partition: part.next_offset for part in self._history.lineage.position.updates}
        passed = parts.get(self._publisher.partition, 0)
        for digest in [digest for digest, offset in self._sent.items() if offset < passed]:
            del self._sent[digest]
            if digest in self._receipts:
                continue
            hint = self._kept_out or "is it enrolled with this key? `refold show` says what the log knows of it"
            log.warning("an update of %s was refused without a receipt: %s", self.name, hint)
            self._take_receipt(ReceiptEvent(self.name, digest, UNHEARD))

    def _take_notice(self, notice: ClientNotice) -> None:
        if notice.client != self.name or notice.key_id not in (None, self._key.key_id):
            return
        if notice.what in ("enrolled", "released"):
            self._kept_out = ""
            return
        self._kept_out = f"its key was {notice.what}" if notice.what == "revoked" else f"it is {notice.what}"

    def _doing(self, activity: str) -> None:
        if self._heartbeat:
            if self._heartbeat.failure is not None:
                raise self._heartbeat.failure
            self._heartbeat.vitals.activity = activity

    def _wait_until_open(self) -> None:
        deadline_s = self._clock.monotonic_s() + self._open_timeout_s
        self._history.refresh()
        while self._history.lineage.opened is None:
            if self._clock.monotonic_s() > deadline_s:
                raise TryAgainError("the federation did not open", hint="is its server running? start it with `refold serve`")
            self._history.rounds.poll(POLL_S)
        # A bus whose leaders have just changed may show less for a moment.
        while self.witness.is_behind and self._clock.monotonic_s() < deadline_s:
            self._history.rounds.poll(POLL_S)
        self.witness.require_whole()
        while self._sealer.required and not self._sealer.has_key:
            if self._clock.monotonic_s() > deadline_s:
                raise TryAgainError(
                    "this client has no sealing key", client=self.name, hint="make one with `refold seal CLIENT`"
                )
            self._history.rounds.poll(POLL_S)

    def _say_how_clients_are_known(self) -> None:
        opened = self._history.lineage.opened
        if opened is None or opened.identity.required:
            if self._is_keyless:
                raise ConfigurationError(
                    "this federation asks who its clients are", hint="give the client a key that is enrolled"
                )
            return
        log.warning("%s is %s", self._topics.federation, INSECURE)

    def _drain(self) -> None:
        for parcel in self._outbox.waiting():
            try:
                said = decode(parcel.manifest, ClientUpdate).body
            except InvalidRecord as error:
                log.warning("a file of the outbox holds no update and is set aside: %s", error)
                self._outbox.set_aside(parcel.digest)
                continue
            if (said.federation, said.client) != (self._topics.federation, self.name):
                continue  # The folder serves another client too.
            outcome = self._undrained.get(parcel.digest) or self._receipts.get(parcel.digest)
            is_evaluation = said.kind in (EVALUATE, PASS)
            if outcome is None:
                self._send(parcel)
            elif self._residual.awaits(parcel.digest):
                continue
            elif outcome == "accepted" and is_evaluation and said.round > self._history.lineage.head:
                self._evaluated[parcel.digest] = said.round
            else:
                self._outbox.drop(parcel.digest)
                continue
            # What an earlier life answered is not asked for again.
            self._answered[said.round, EVALUATE if is_evaluation else TRAIN] = (parcel.digest, self._clock.monotonic_s())
            self._session = max(self._session, said.session)
        self._undrained.clear()

    def _open_session(self) -> None:
        """Begin a session that is higher than this client's last one, as far as it is known."""
        self._history.rounds.read_to_end()
        self._session = (self._history.lineage.next_index, _nonce(self._history.lineage.next_index, self._session))
        self._sequence = 0
        self._refused = False
        if self._heartbeat:
            self._heartbeat.vitals.session = self._session

    def _send(self, parcel: Parcel) -> None:
        try:
            self._sent[parcel.digest] = self._publisher.send(parcel)
        except (BusError, TryAgainError) as error:
            self._resend_at_s[parcel.digest] = self._clock.monotonic_s() + 1.0
            log.warning("an update waits in the outbox, the bus does not answer: %s", error)

    def _resend(self) -> None:
        """Send again what the bus did not take."""
        now_s = self._clock.monotonic_s()
        due = {digest for digest, at_s in self._resend_at_s.items() if now_s >= at_s}
        for parcel in self._outbox.waiting(due) if due else ():
            del self._resend_at_s[parcel.digest]
            self._send(parcel)


def _nonce(index: int, last: tuple[int, bytes]) -> bytes:
    """Return a session's random number: above the last one's where the index alone would not put it behind that."""
    if index > last[0]:
        return os.urandom(8)
    following = int.from_bytes(last[1], "big") + 1 + int.from_bytes(os.urandom(4), "big")
    return min(following, 2**64 - 1).to_bytes(8, "big")
