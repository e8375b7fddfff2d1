"""One consumer's life in a Kafka group: the classic protocol, spoken inside `poll`, places handed over one by one.

Same life as `_membership`, with the broker as the place where the group is kept:

- Heartbeats go out while the consumer polls (or a listener runs, which is inside `poll`), and only then. So who does not poll
  for the session timeout loses its places, as the contract says; kafka-python beats in a thread of its own and keeps a consumer
  that hangs. Who was alone in its group, and finds that nobody came while it was silent, goes on with what it held: a group's
  generation grows by one when its last member goes and by one when the next comes.
- The group's leader shares the places out as the other drivers do (`_kafka_sharing`), but gives nobody what another still
  claims to hold; who sees that a place is to go lets go of it and joins again (KIP-429, cooperative).
- A member with an `instance` is static (KIP-345): its successor takes its places without the others noticing, and it is told.
  Unlike Kafka's own clients it leaves when it is closed.

Joining is a request that the broker holds back until all have come. It is never waited for: `keep` looks for its answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from typing import Any

import kafka.errors

from refold.bus._kafka_client import ANSWER_S, Coordinator, KafkaClient
from refold.bus._kafka_errors import Again, Unanswered, refused
from refold.bus._kafka_member import NOBODY, Identity, commit, first_error, heartbeat, join, leave, sync
from refold.bus._kafka_places import COORDINATOR_MOVED
from refold.bus._kafka_reply import Reply
from refold.bus._kafka_sharing import pack_claim, share, unpack_assignment
from refold.bus._membership import not_held
from refold.bus.contract import Committed, Listener, Place
from refold.schemas.errors import ConfigurationError, FencedError, PlaceTakenError, RefoldError

BEAT_S = 0.25
"""A heartbeat is also how a member hears that the group changes, so it comes more often than the session timeout asks for."""

FIND_S = 1.0
LEAVE_S = 2.0
RETRY_S = 0.05
SESSIONS_A_REBALANCE = 6
"""How many session timeouts the others wait for a member that lives and has not joined anew: it may be in a listener."""

E = kafka.errors
_LOADING = E.CoordinatorLoadInProgressError.errno
_LOST = (E.UnknownMemberIdError.errno, E.IllegalGenerationError.errno)


class State(Enum):
    """Where a member stands."""

    OUT = "out"
    JOINING = "joining"
    SYNCING = "syncing"
    IN = "in"


class KafkaMembership:
    """A membership that lasts from `subscribe` to `leave`, through as many joins as it takes.

    Parameters
    ----------
    partitions
        How many partitions a topic has.
    wake
        Called in the network's thread when an answer came.
    """

    def __init__(
        self,
        client: KafkaClient,
        group: str,
        instance: str | None,
        session_timeout_s: float,
        topics: Iterable[str],
        partitions: Callable[[str], int],
        on_assigned: Callable[[frozenset[Place]], None],
        on_revoked: Listener,
        wake: Callable[[], None],
    ) -> None:
        self.group = group
        self.places: frozenset[Place] = frozenset()
        self._client = client
        self._timeout_s = session_timeout_s
        self._topics = tuple(sorted(set(topics)))
        self._partitions = partitions
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._wake = wake
        self._state = State.OUT
        self._me = Identity(group, instance)
        self._answer: Reply | None = None
        self._beat: Reply | None = None
        self._beat_at = self._stay_at = 0.0
        self._asked_at = 0.0
        self._alive_at = 0.0
        self._next_try_at = 0.0
        self._failing_since: float | None = None
        self._out_of_group = False
        self._alone_in: int | None = None
        """The generation whose only member this one is, or was."""
        self._in_doubt = False
        """Whether it is to be seen if somebody came while this member was out of its group."""
        self._fenced: FencedError | None = None

    # -- inside poll ---------------------------------------------------------------------------------------------------------

    def keep(self) -> bool:
        """Do what the group asks of this member; return whether what it holds is surely still its own.

        Raises
        ------
        FencedError
            Another consumer joined with this instance's name.
        BusError
            The group's coordinator did not answer for `ANSWER_S`.
        """
        self._settle_accounts()
        self._take_beat()
        self._take_answer()
        self._settle_accounts()
        now = time.monotonic()
        if self._state is State.OUT and now >= self._next_try_at:
            self._join()
        elif self._state is not State.OUT and self._beat is None and now >= self._beat_at:
            # While a join is held back this only asks whether the coordinator still answers at all.
            self._send_beat(now)
        # The broker counts from when it last heard of us, which was not before we last asked.
        return not self.places or (not self._in_doubt and now - self._alive_at < self._timeout_s)

    def next_duty_s(self) -> float:
        """Seconds after which `keep` should be called again; an answer calls for it too."""
        due = self._beat_at if self._state is State.IN else self._next_try_at
        return max(0.001, due - time.monotonic()) if self._state in (State.IN, State.OUT) else BEAT_S

    def _settle_accounts(self) -> None:
        """Let go of everything if the group went on without us; join as a new member, or stay fenced."""
        if self._out_of_group:
            self._out_of_group = False
            self._state, self._answer, self._beat = State.OUT, None, None
            self._in_doubt = self._alone_in is not None and self._fenced is None
            if not self._in_doubt:
                self._let_go(self.places)
        if self._fenced is not None:
            raise self._fenced

    def _let_go(self, places: frozenset[Place]) -> None:
        lost = places & self.places
        if lost:
            try:
                with self._beating():
                    self._on_revoked(lost)
            finally:
                self.places -= lost

    # -- heartbeats ----------------------------------------------------------------------------------------------------------

    def _send_beat(self, now: float) -> None:
        coordinator = self._coordinator()
        if coordinator is None:
            return
        self._beat_at = now + min(BEAT_S, self._timeout_s / 4)
        if self._state is State.IN:
            self._asked_at = now
        self._beat = self._client.send(heartbeat(self._me), coordinator.prompt, self._timeout_s, self._wake)

    def stay(self) -> None:
        """Beat while work is under way; what the coordinator answers, the next `keep` hears."""
        now = time.monotonic()
        if self._state is State.IN and now >= self._stay_at:
            self._stay_at = now + min(BEAT_S, self._timeout_s / 4)
            self._say_alive(self._me)

    def _say_alive(self, me: Identity) -> None:
        with suppress(Again, Unanswered, kafka.errors.KafkaError):
            self._client.send(heartbeat(me), self._client.coordinator(self.group, FIND_S).prompt, FIND_S)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Beat in a thread while a listener runs; what the coordinator answers, the next `keep` hears."""
        over, me = threading.Event(), self._me

        def beat() -> None:
            while not over.wait(min(BEAT_S, self._timeout_s / 4)):
                self._say_alive(me)

        threading.Thread(target=beat, name=f"refold-beat-{self.group}", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _coordinator(self) -> Coordinator | None:
        try:
            return self._client.coordinator(self.group, FIND_S)
        except (Again, Unanswered) as error:
            self._failed(error)
            return None
        except kafka.errors.KafkaError as error:
            raise self._not_let("looking for the group's coordinator", error) from error

    def _take_beat(self) -> None:
        if self._beat is None or not self._beat.is_there:
            return
        beat, self._beat = self._beat, None
        try:
            code = beat.result(0).error_code
        except (Again, Unanswered) as error:
            self._client.forget_coordinator(self.group)
            if self._state is not State.IN:
                # Who does not answer this will not answer the join either; the group has another coordinator, or will have.
                self._state, self._answer = State.OUT, None
            self._failed(error)
            return
        if self._state is not State.IN:
            return  # It was asked in another generation.
        if code in (0, E.RebalanceInProgressError.errno):
            self._heard(self._asked_at)
            if code:
                self._join()
        elif not self._is_over(code):
            self._failed(Again(E.for_code(code).__name__))

    def _is_over(self, code: int) -> bool:
        """Note what an error code says about this membership; return whether that is all there is to do about it."""
        if code in _LOST:
            self._lose(keep_name=code == E.IllegalGenerationError.errno)
        elif code == E.FencedInstanceIdError.errno:
            self._fence()
        elif code in COORDINATOR_MOVED:
            self._client.forget_coordinator(self.group)
            return False
        elif code == _LOADING:
            return False
        else:
            raise self._not_let("keeping the place in the group", E.for_code(code)())
        return True

    def _not_let(self, what: str, error: BaseException) -> RefoldError:
        return refused(what, error, account=self._client.account, group=self.group)

    def _lose(self, *, keep_name: bool = False) -> None:
        # With its old name a member takes its old place among the members; with a new one the old would be waited for.
        self._me = replace(self._me, name=self._me.name if keep_name else NOBODY, generation=-1)
        self._out_of_group = True

    def _fence(self) -> None:
        hint = "two consumers run with the same instance name; give each its own"
        self._fenced = FencedError(
            "another consumer joined with this instance name", group=self.group, instance=self._me.instance, hint=hint
        )
        self._out_of_group = True

    def _heard(self, asked_at: float) -> None:
        self._alive_at = max(self._alive_at, asked_at)
        self._failing_since = None

    def _failed(self, error: BaseException) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        self._next_try_at = self._beat_at = now + RETRY_S
        if now - self._failing_since >= ANSWER_S:
            self._failing_since = None
            raise self._client.no_answer("the group's coordinator", ANSWER_S, error, group=self.group) from error

    # -- joining -------------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        claim = pack_claim(self._topics, self.places, self._me.generation)
        rebalance_timeout_s = SESSIONS_A_REBALANCE * self._timeout_s
        # The broker holds the answer back so long at most, and a little longer when it is busy.
        request = join(self._me, claim, self._timeout_s, rebalance_timeout_s)
        self._ask(request, State.JOINING, rebalance_timeout_s + ANSWER_S)

    def _ask(self, request: Any, state: State, timeout_s: float) -> None:
        coordinator = self._coordinator()
        if coordinator is None:
            self._state = State.OUT
            return
        now = time.monotonic()
        if now - self._alive_at < self._timeout_s:
            # Who is a member while it asks stays one until it is answered: the broker waits with it for the others.
            self._alive_at = now
        self._state, self._asked_at, self._beat_at = state, now, now + self._timeout_s
        self._answer = self._client.send(request, coordinator.patient, timeout_s, self._wake)

    def _take_answer(self) -> None:
        if self._answer is None or not self._answer.is_there:
            return
        reply, self._answer = self._answer, None
        try:
            response = reply.result(0)
        except (Again, Unanswered) as error:
            self._client.forget_coordinator(self.group)
            self._state = State.OUT
            self._failed(error)
            return
        # While a join is pending the broker takes us for living.
        self._heard(time.monotonic() if self._state is State.JOINING else self._asked_at)
        if response.error_code:
            self._refused(response)
        elif self._state is State.JOINING:
            self._sync(response)
        else:
            self._arrive(response.assignment)

    def _refused(self, response: Any) -> None:
        code, self._state = response.error_code, State.OUT
        if code == E.MemberIdRequiredError.errno:
            self._me = replace(self._me, name=response.member_id)
            self._join()
        elif code == E.RebalanceInProgressError.errno:
            self._join()
        elif code == E.InvalidSessionTimeoutError.errno:
            hint = "lie between the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms"
            raise ConfigurationError("the brokers refuse this session timeout", session_timeout_s=self._timeout_s, hint=hint)
        elif code == E.InconsistentGroupProtocolError.errno:
            hint = "another program uses this group's name; give one of them another"
            raise ConfigurationError("the group is in use by other software", group=self.group, hint=hint)
        elif not self._is_over(code):
            self._failed(Again(E.for_code(code).__name__))

    def _sync(self, joined: Any) -> None:
        self._me = replace(self._me, name=joined.member_id, generation=joined.generation_id)
        leads = joined.leader == joined.member_id
        claims = {member.member_id: bytes(member.metadata) for member in joined.members} if leads else {}
        try:
            shared = share(claims, self._partitions)
        except RefoldError:
            self._state = State.OUT  # The others wait for our answer; joining again is what gives them one.
            raise
        self._ask(sync(self._me, shared), State.SYNCING, self._timeout_s + ANSWER_S)
        was_alone_in, self._alone_in = self._alone_in, joined.generation_id if len(claims) == 1 else None
        if self._in_doubt:
            self._in_doubt = False
            if was_alone_in is None or self._alone_in != was_alone_in + 2:
                self._let_go(self.places)

    def _arrive(self, assignment: bytes) -> None:
        """Take what the leader gave us, and let go of what it gave to others; they get it when we have joined without it."""
        self._state, self._beat_at = State.IN, time.monotonic() + min(BEAT_S, self._timeout_s / 4)
        given = unpack_assignment(bytes(assignment))
        surplus = self.places - given
        if surplus:
            self._let_go(surplus)
        gained = given - self.places
        if gained:
            self._take(gained)
        if surplus and self._state is State.IN:
            self._join()

    def _take(self, gained: frozenset[Place]) -> None:
        self.places |= gained
        try:
            with self._beating():
                self._on_assigned(gained)
        except BaseException:
            # Not begun is not held: who polls on after this error joins again, and is given them again.
            self.places -= gained
            self._state = State.OUT
            raise

    # -- at any time ---------------------------------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[Place, Committed]) -> None:
        """Store positions if this member holds all their places."""
        if self._fenced is not None:
            raise self._fenced
        for place in offsets:
            if place not in self.places or self._out_of_group or self._in_doubt:
                raise not_held(self.group, place)
        if not offsets:
            return
        deadline = time.monotonic() + max(self._timeout_s, ANSWER_S)
        while True:
            code = self._try_commit(self._me, offsets)
            if code == 0:
                return
            if code is not None and code != E.RebalanceInProgressError.errno and self._is_over(code):
                if self._stored_alone(offsets):
                    return
                raise self._why_out(next(iter(offsets)))
            if code == E.RebalanceInProgressError.errno:
                # The group shares its places out anew at this moment; ours stay ours until we let go of them.
                self._go_on_joining(next(iter(offsets)), deadline)
            elif time.monotonic() >= deadline:
                raise self._client.no_answer("storing a group's positions", ANSWER_S, Again(str(code)), group=self.group)
            time.sleep(RETRY_S)

    def _stored_alone(self, offsets: Mapping[Place, Committed]) -> bool:
        """Store positions as nobody, for one who was alone in its group: the coordinator lets it unless somebody came."""
        if self._fenced is not None or self._alone_in is None:
            return False
        return self._try_commit(Identity(self.group, None), offsets) == 0

    def _why_out(self, place: Place) -> PlaceTakenError:
        return not_held(self.group, place) if self._fenced is None else self._fenced

    def _try_commit(self, me: Identity, offsets: Mapping[Place, Committed]) -> int | None:
        """Return the first error code of the answer, 0 if all was stored, None if there was no answer."""
        asked_at = time.monotonic()
        try:
            response = self._client.ask(commit(me, offsets), self._client.coordinator(self.group).prompt, self._timeout_s)
        except (Again, Unanswered):
            self._client.forget_coordinator(self.group)
            return None
        except kafka.errors.KafkaError as error:
            raise self._not_let("storing a group's positions", error) from error
        code = first_error(response)
        if code == 0:
            self._heard(asked_at)
        if code == E.IllegalGenerationError.errno and self._answer is not None:
            # The group is a generation further, and so are we, once the join's answer was read.
            code = E.RebalanceInProgressError.errno
        return code

    def _go_on_joining(self, place: Place, deadline: float) -> None:
        """Read the answer of a join that is under way, without letting go of anything."""
        if self._answer is None or time.monotonic() >= deadline:
            # The broker asks us to join, and we shall, at the next poll; until then nothing can be stored.
            raise not_held(self.group, place)
        if self._state is State.JOINING and self._answer.is_there:
            self._take_answer()

    def leave(self) -> None:
        """Leave the group, calling no listener; its other members take over at their next poll.

        Where the coordinator does not answer within `LEAVE_S`, the session timeout does it.
        """
        self.places = frozenset()
        me, self._me, self._state = self._me, replace(self._me, name=NOBODY), State.OUT
        # Who is still waiting to be let in may not know its name yet.
        if self._fenced is not None or (me.name == NOBODY and (me.instance is None or self._answer is None)):
            return
        with suppress(Again, Unanswered, kafka.errors.KafkaError):
            self._client.ask(leave(me), self._client.coordinator(self.group, LEAVE_S).prompt, LEAVE_S)
