"""A client of a federation: asks for tasks, trains elsewhere, submits."""

from __future__ import annotations

import logging
import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, Unpack

from refold.bus.clock import Clock, SystemClock
from refold.bus.closing import close_all
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.producers.answers import UNHEARD, Answers
from refold.producers.coding import Coded, code
from refold.producers.heartbeat import HeartbeatThread
from refold.producers.held_model import HeldModel
from refold.producers.held_state import HeldState
from refold.producers.history import History
from refold.producers.opening import say_how_clients_are_known, wait_until_enrolled, wait_until_open
from refold.producers.outbox import Outbox
from refold.producers.own_key import OwnKey
from refold.producers.own_tensors import OwnTensors
from refold.producers.place import ClientPlace
from refold.producers.privacy import Privacy, PrivateUpdates
from refold.producers.publisher import Publisher
from refold.producers.reporting import Reporter, Said
from refold.producers.residual import Residual
from refold.producers.residual_file import Amount
from refold.producers.sealer import Sealer
from refold.producers.spending import SpendingFile
from refold.producers.task import Receipt, Task
from refold.producers.witness import Witness
from refold.schemas.canonical import Scalar
from refold.schemas.errors import BusError, StorageFullError, TryAgainError, UsageError
from refold.schemas.events import Receipt as ReceiptEvent
from refold.schemas.held import TrainingHeld
from refold.schemas.identity import ClientNotice
from refold.schemas.keys import SigningKey
from refold.schemas.layout import Layout
from refold.schemas.payload import describe
from refold.schemas.plans import RoundPlan, settings
from refold.schemas.updates import EVALUATE, TRAIN, Sealing, UpdateBody
from refold.state.delta import TOPK

log = logging.getLogger("refold.client")

POLL_S = 0.25


class Client:
    """One client's session. Use as a context manager; belongs to one thread.

    On entry, once no other process works as this client (`refold.producers.place`): 1. `rounds` is read to its end, waiting up
    to `open_timeout_s` for the federation to open; it must be the log that an earlier life saw (`refold.producers.witness`),
    and what it says of sparse updates' fate is acted on (`refold.producers.residual`); 2. what the outbox holds from an earlier
    life is sent again, as the same bytes; 3. a session is opened; 4. heartbeats begin.

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
        self._closing = threading.Event()
        self.on_outcome: Callable[[bytes, str], None] = lambda digest, outcome: None
        """Called with an update's digest and outcome once its verdict is heard, in the thread that this belongs to."""
        self.privacy = (
            None if privacy is None else PrivateUpdates(privacy, SpendingFile(outbox.folder, topics.federation, name))
        )
        self._residual = Residual(outbox.folder, topics.federation, name, private=privacy is not None)
        self.witness = Witness(outbox.folder, topics.federation, name, clock=self._clock)
        self.own = OwnTensors(outbox.folder, topics.federation, name)
        self._place = ClientPlace(outbox.folder, topics.federation, name)
        self._own_key = OwnKey(name, self._key.key_id)
        self._sealer = Sealer(topics.federation, name, required=sealed)
        self._history = History(
            bus,
            topics,
            on_receipt=self._take_receipt,
            on_round=lambda committed: self._answers.take_round(committed),
            on_key=self._sealer.take,
            on_notice=self._take_notice,
            guard=self.witness.take,
            slots=False,
        )
        file = HeldState(outbox.folder, topics.federation, name)
        self._model = HeldModel(self._history, file, self._clock, patience_s=open_timeout_s, poll_s=POLL_S)
        self._publisher = Publisher(bus, topics, name, self._key, outbox, self._clock)
        self._answers = Answers(name, self._key.key_id, outbox, self._residual, self._publisher, self._clock)
        self._heartbeat: HeartbeatThread | None = None
        self._session: tuple[int, bytes] = (0, b"")
        self._sequence = 0
        self._plan_seen = (-1, 0.0)
        self._obstacles_told: set[str] = set()

    def __enter__(self) -> Self:
        self._place.take()
        try:
            self._enter()
        except BaseException:
            self._place.close()
            raise
        return self

    def _enter(self) -> None:
        # 1. The log.
        lineage = self._history.lineage
        self._answers.expect()
        wait_until_open(
            self._history,
            self.witness,
            self._sealer,
            client=self.name,
            clock=self._clock,
            timeout_s=self._open_timeout_s,
            poll_s=POLL_S,
        )
        say_how_clients_are_known(lineage, self._topics.federation, has_key=not self._is_keyless)
        if self._is_identified:
            wait_until_enrolled(self._history, self._own_key, clock=self._clock, timeout_s=self._open_timeout_s, poll_s=POLL_S)
        self._answers.settle(lineage)
        self._answers.sweep(lineage)
        # 2. The outbox.
        self._session = self._answers.drain(self._topics.federation, lineage)
        # 3. The session.
        self._open_session()
        # 4. Heartbeats.
        self._heartbeat = HeartbeatThread(
            self._bus,
            self._topics,
            self.name,
            self._session,
            self._key,
            interval_s=lineage.plan.heartbeat_ms / 1000,
            properties=self._properties,
            clock=self._clock,
            folder=self._outbox.folder,
        )
        self._model.heartbeat = self._heartbeat

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._heartbeat and kind is not None and issubclass(kind, Exception):
            self._heartbeat.leaves_in_order = False  # It failed; people should hear that it is gone.
        self.close()

    def close(self) -> None:
        """Stop, and say so; what the outbox holds is sent by the next session."""
        self._closing.set()
        close_all(self._heartbeat, self._publisher, self._history, self.witness, self._place)

    def tasks(self) -> Iterator[Task]:
        """Yield what this client is asked to do, until the federation ends.

        A task that was not answered when the next one is asked for counts as declined. A client whose update of a round was
        refused, or that was not selected, is asked once more where the round is still open after its deadline.

        Raises
        ------
        ConfigurationError
            The client's key was revoked, or what it signed was refused and the log does not know it.
        """
        plan = self._history.lineage.plan
        if not plan.fits(dict(self._properties)):
            log.warning("%s is asked for nothing: the plan wants %s", self.name, " and ".join(map(str, plan.where)))
        while True:
            if self._is_identified:
                self._own_key.require()
            lineage = self._history.lineage
            if lineage.ended is not None:
                self._answers.finish(lineage)
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
                self._tell_obstacle(task, obstacle)
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

    def _tell_obstacle(self, task: Task, obstacle: str) -> None:
        """Say why tasks are left that nobody here is shown; once, for there may be thousands."""
        if obstacle not in self._obstacles_told:
            self._obstacles_told.add(obstacle)
            told = "%s declines round %d, and each after it for as long as this holds: %s"
            log.warning(told, self.name, task.round, obstacle)

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
        if not plan.fits(dict(self._properties)) or not (plan.selects(self.name) or self._volunteers(plan)):
            return None
        if plan.buffer and self._answers.has_update_waiting:
            return None  # Two of one client never count in one round: what was sent for an earlier one has its turn first.
        if plan.evaluate and not self._answers.is_given(plan.round, EVALUATE):
            return EVALUATE
        if not self._answers.is_given(plan.round, TRAIN) or self._answers.is_refused_since(plan.round, plan.patience_ms / 1000):
            return TRAIN
        return None

    def _volunteers(self, plan: RoundPlan) -> bool:
        """Whether the round is open so much longer than planned that those selected cannot have sufficed.

        Not where nobody is selected: the last round is made, and the end follows.
        """
        return (
            plan.select_below > 0
            and self._clock.monotonic_s() - self._plan_seen[1] > (plan.patience_ms + 2 * plan.heartbeat_ms) / 1000
        )

    def _task(self, plan: RoundPlan, kind: str) -> Task:
        if self._answers.is_refused and not self._answers.is_waiting:
            # Perhaps another process of this name holds a higher session; the receipt moved the log on, so ours is next.
            self._open_session()
        return Task(self, plan, self._model.hold(self._history.lineage.head), evaluate=kind == EVALUATE)

    def spoiled(self, task: Task) -> Receipt | None:
        """Return the receipt of an answer that is not sent: the state that it rests on is not the log's. Called by `Task`.

        Its outcome is ``diverged``, and the round asks for the same again.
        """
        if not self._model.is_spoiled(task.state):
            return None
        log.warning("what was trained from round %d is not sent: the state changed in memory meanwhile", task.base_round)
        return Receipt(self, self._answers.give_up())

    def trained_to(self, training: TrainingHeld) -> None:
        """Tell with the next heartbeat where a task's training was kept, or brought back from. Called by `Task`."""
        if self._heartbeat:
            self._heartbeat.vitals.training = training

    def submit(self, task: Task, body: UpdateBody, chunks: tuple[bytes, ...], unsent: Amount | None = None) -> Receipt:
        """Keep an update in the outbox and send it; if the bus does not answer it is sent later. Called by `Task`."""
        # A payload inside the manifest needs no chunks beside it: nobody would ever ask for them, or know them for garbage.
        inline = body.payload is not None and body.payload.inline is not None
        parcel = self._publisher.sign(body, () if inline else chunks)
        self._answers.keep(parcel, body, task.round, unsent)
        self._sequence += 1
        self._answers.send(parcel)
        return Receipt(self, parcel.digest)

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
            self._answers.settle(self._history.lineage)
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
        return self._answers.outcome(digest)

    def wait_for_news(self, timeout_s: float) -> None:
        """Take in what comes in `rounds`, waiting at most so long, and send again what still waits."""
        self._history.rounds.poll(timeout_s)
        for receipt in self._answers.unheard(self._history.lineage):
            if not self._answers.is_kept_out:
                self._own_key.is_passed_over()
            self._take_receipt(receipt)
        self._answers.resend()

    def progress(self, **said: Unpack[Said]) -> None:
        """Say how far the work on a task is: ``epoch``, ``epochs``, ``batch``, ``batches``, ``loss``.

        Told with the next heartbeat; cheap enough for every batch. See `Reporter.progress`.
        """
        self._reporter.progress(**said)

    def watch_log(self, file: str | Path | None = None, *, logger: str = "") -> None:
        """Let heartbeats tell what a log file, or else Python's `logging` in this process, comes to. See `Reporter.watch`."""
        self._reporter.watch(file, logger=logger)

    @property
    def _reporter(self) -> Reporter:
        if self._heartbeat is None:
            raise UsageError("the client is not open: it has no heartbeats yet", hint="use it in a `with` statement")
        return self._heartbeat.reporter

    @property
    def federation(self) -> str:
        """The federation's name."""
        return self._topics.federation

    @property
    def folder(self) -> Path:
        """The outbox's folder, where all that this client keeps lies."""
        return self._outbox.folder

    @property
    def clock(self) -> Clock:
        """The clock that waits are measured by."""
        return self._clock

    def _wait_for_news(self) -> None:
        try:
            if self._model.has_diverged:
                self._model.hold(self._history.lineage.head)
            self.wait_for_news(POLL_S)
        except (BusError, TryAgainError) as error:
            log.warning("the bus does not answer, trying on: %s", error)
            # Where it refuses at once, nothing else keeps this from asking again at once.
            self._closing.wait(POLL_S)

    @property
    def _is_identified(self) -> bool:
        opened = self._history.lineage.opened
        return opened is not None and opened.identity.required

    def _take_notice(self, notice: ClientNotice) -> None:
        self._own_key.take(notice)
        self._answers.take_notice(notice)

    def _take_receipt(self, receipt: ReceiptEvent) -> None:
        if receipt.outcome != UNHEARD:
            self._own_key.take_receipt(receipt)
        self._answers.take_receipt(receipt, self._history.lineage)
        if receipt.client == self.name:
            self.on_outcome(receipt.digest, receipt.outcome)

    def _doing(self, activity: str) -> None:
        if self._heartbeat:
            if self._heartbeat.failure is not None:
                raise self._heartbeat.failure
            self._heartbeat.begin(activity)

    def _open_session(self) -> None:
        """Begin a session that is higher than this client's last one, as far as it is known."""
        self._history.rounds.read_to_end()
        self._session = (
            self._history.lineage.next_index,
            _nonce(self._history.lineage.next_index, self._session, self._clock.wall_ms()),
        )
        self._sequence = 0
        self._answers.is_refused = False
        if self._heartbeat:
            self._heartbeat.vitals.session = self._session


def _nonce(index: int, last: tuple[int, bytes], now_ms: int) -> bytes:
    """Return what tells a session from others at its index: the clock and a random number, and above the last one's there.

    The clock lets a later life of the client, which knows nothing of this session, come out higher while `rounds` stands still.
    """
    drawn = (now_ms % 2**48 << 16) + int.from_bytes(os.urandom(2), "big")
    if index <= last[0]:
        drawn = max(drawn, int.from_bytes(last[1], "big") + 1 + int.from_bytes(os.urandom(4), "big"))
    return min(drawn, 2**64 - 1).to_bytes(8, "big")
