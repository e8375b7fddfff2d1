"""One consumer's life in a Kafka group: the classic protocol, spoken inside `poll`, places handed over one by one.

Same life as `_membership`, with the broker as the place where the group is kept:

- A heartbeat goes out while the consumer polls, and only then. So who does not poll for the session timeout loses its places,
  as the contract says; kafka-python beats in a thread of its own and keeps a consumer that hangs.
- The group's leader shares the places out as the other drivers do (`_kafka_sharing`), but gives nobody what another still
  claims to hold; who sees that a place is to go lets go of it and joins again (KIP-429, cooperative).
- A member with an `instance` is static (KIP-345): its successor takes its places without the others noticing, and it is told.
  Unlike Kafka's own clients it leaves when it is closed.

Joining is a request that the broker holds back until all have come. It is never waited for: `keep` looks for its answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import kafka.errors
from kafka.protocol.consumer import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from refold.bus._kafka_client import ANSWER_S, Coordinator, KafkaClient
from refold.bus._kafka_errors import Again, Unanswered, no_answer, refused
from refold.bus._kafka_places import COORDINATOR_MOVED, commit_request
from refold.bus._kafka_reply import Reply
from refold.bus._kafka_sharing import pack_assignment, pack_claim, share, unpack_assignment
from refold.bus._membership import not_held
from refold.bus.contract import Committed, Listener, Place
from refold.schemas.errors import ConfigurationError, FencedError, PlaceTakenError

BEAT_S = 0.25
"""A heartbeat is also how a member hears that the group changes, so it comes more often than the session timeout asks for."""

FIND_S = 1.0
LEAVE_S = 2.0
RETRY_S = 0.05
PROTOCOL = "refold"
PROTOCOL_TYPE = "consumer"

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
        self._instance = instance
        self._timeout_s = session_timeout_s
        self._topics = tuple(sorted(set(topics)))
        self._partitions = partitions
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._wake = wake
        self._state = State.OUT
        self._member = ""
        self._generation = -1
        self._answer: Reply | None = None
        self._beat: Reply | None = None
        self._beat_at = 0.0
        self._asked_at = 0.0
        self._alive_at = 0.0
        self._next_try_at = 0.0
        self._failing_since: float | None = None
        self._out_of_group = False
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
        elif self._state is State.IN and self._beat is None and now >= self._beat_at:
            self._send_beat(now)
        # The broker counts from when it last heard of us, which was not before we last asked.
        return self._state is State.OUT or now - self._alive_at < self._timeout_s

    def next_duty_s(self) -> float:
        """Seconds after which `keep` should be called again; an answer calls for it too."""
        due = self._beat_at if self._state is State.IN else self._next_try_at
        return max(0.001, due - time.monotonic()) if self._state in (State.IN, State.OUT) else BEAT_S

    def _settle_accounts(self) -> None:
        """Let go of everything if the group went on without us; join as a new member, or stay fenced."""
        if self._out_of_group:
            self._out_of_group = False
            self._state, self._answer, self._beat = State.OUT, None, None
            self._let_go(self.places)
        if self._fenced is not None:
            raise self._fenced

    def _let_go(self, places: frozenset[Place]) -> None:
        lost = places & self.places
        if lost:
            try:
                self._on_revoked(lost)
            finally:
                self.places -= lost

    # -- heartbeats ----------------------------------------------------------------------------------------------------------

    def _send_beat(self, now: float) -> None:
        request = HeartbeatRequest(
            group_id=self.group, generation_id=self._generation, member_id=self._member, group_instance_id=self._instance
        )
        coordinator = self._coordinator()
        if coordinator is None:
            return
        self._asked_at, self._beat_at = now, now + min(BEAT_S, self._timeout_s / 4)
        self._beat = self._client.send(request, coordinator.prompt, self._timeout_s, self._wake)

    def _coordinator(self) -> Coordinator | None:
        try:
            return self._client.coordinator(self.group, FIND_S)
        except (Again, Unanswered) as error:
            self._failed(error)
            return None
        except kafka.errors.KafkaError as error:
            raise refused("looking for the group's coordinator", error, group=self.group) from error

    def _take_beat(self) -> None:
        if self._beat is None or not self._beat.is_there:
            return
        beat, self._beat = self._beat, None
        try:
            code = beat.result(0).error_code
        except (Again, Unanswered) as error:
            self._client.forget_coordinator(self.group)
            self._failed(error)
            return
        if code in (0, E.RebalanceInProgressError.errno):
            self._heard(self._asked_at)
            if code and self._state is State.IN:
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
            raise refused("keeping the place in the group", E.for_code(code)(), group=self.group)
        return True

    def _lose(self, *, keep_name: bool = False) -> None:
        # With its old name a member takes its old place among the members; with a new one the old would be waited for.
        self._member = self._member if keep_name else ""
        self._generation = -1
        self._out_of_group = True

    def _fence(self) -> None:
        hint = "two consumers run with the same instance name; give each its own"
        self._fenced = FencedError(
            "another consumer joined with this instance name", group=self.group, instance=self._instance, hint=hint
        )
        self._member = ""
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
            raise no_answer("the group's coordinator", ANSWER_S, self._client.brokers, error, group=self.group) from error

    # -- joining -------------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        claim = pack_claim(self._topics, self.places, self._generation)
        request = JoinGroupRequest(
            group_id=self.group,
            session_timeout_ms=int(self._timeout_s * 1000),
            rebalance_timeout_ms=int(self._timeout_s * 1000),
            member_id=self._member,
            group_instance_id=self._instance,
            protocol_type=PROTOCOL_TYPE,
            protocols=[JoinGroupRequest.JoinGroupRequestProtocol(name=PROTOCOL, metadata=claim)],
            max_version=7,
        )
        # The broker holds the answer back for the rebalance timeout at most, and a little longer when it is busy.
        self._ask(request, State.JOINING, self._timeout_s + ANSWER_S)

    def _ask(self, request: Any, state: State, timeout_s: float) -> None:
        coordinator = self._coordinator()
        if coordinator is None:
            self._state = State.OUT
            return
        now = time.monotonic()
        if now - self._alive_at < self._timeout_s:
            # Who is a member while it asks stays one until it is answered: the broker waits with it for the others.
            self._alive_at = now
        self._state, self._asked_at = state, now
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
            self._member = response.member_id
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
        self._member, self._generation = joined.member_id, joined.generation_id
        leads = joined.leader == joined.member_id
        claims = {member.member_id: bytes(member.metadata) for member in joined.members} if leads else {}
        shared = share(claims, self._partitions)
        kind = SyncGroupRequest.SyncGroupRequestAssignment
        request = SyncGroupRequest(
            group_id=self.group,
            generation_id=self._generation,
            member_id=self._member,
            group_instance_id=self._instance,
            protocol_type=PROTOCOL_TYPE,
            protocol_name=PROTOCOL,
            assignments=[kind(member_id=name, assignment=pack_assignment(places)) for name, places in shared.items()],
            max_version=5,
        )
        self._ask(request, State.SYNCING, self._timeout_s + ANSWER_S)

    def _arrive(self, assignment: bytes) -> None:
        """Take what the leader gave us, and let go of what it gave to others; they get it when we have joined without it."""
        self._state, self._beat_at = State.IN, time.monotonic() + min(BEAT_S, self._timeout_s / 4)
        given = unpack_assignment(bytes(assignment))
        surplus = self.places - given
        if surplus:
            self._let_go(surplus)
        gained = given - self.places
        if gained:
            self.places |= gained
            self._on_assigned(gained)
        if surplus and self._state is State.IN:
            self._join()

    # -- at any time ---------------------------------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[Place, Committed]) -> None:
        """Store positions if this member holds all their places."""
        if self._fenced is not None:
            raise self._fenced
        for place in offsets:
            if place not in self.places or self._out_of_group:
                raise not_held(self.group, place)
        if not offsets:
            return
        deadline = time.monotonic() + max(self._timeout_s, ANSWER_S)
        while True:
            code = self._try_commit(offsets)
            if code == 0:
                return
            if code is not None and code != E.RebalanceInProgressError.errno and self._is_over(code):
                raise self._why_out(next(iter(offsets)))
            if code == E.RebalanceInProgressError.errno:
                # The group shares its places out anew at this moment; ours stay ours until we let go of them.
                self._go_on_joining(next(iter(offsets)), deadline)
            elif time.monotonic() >= deadline:
                raise no_answer(
                    "storing the group's positions", ANSWER_S, self._client.brokers, Again(str(code)), group=self.group
                )
            time.sleep(RETRY_S)

    def _why_out(self, place: Place) -> PlaceTakenError:
        return not_held(self.group, place) if self._fenced is None else self._fenced

    def _try_commit(self, offsets: Mapping[Place, Committed]) -> int | None:
        """Return the first error code of the answer, 0 if all was stored, None if there was no answer."""
        generation, asked_at = self._generation, time.monotonic()
        request = commit_request(self.group, offsets, generation=generation, member=self._member, instance=self._instance)
        try:
            response = self._client.ask(request, self._client.coordinator(self.group).prompt, self._timeout_s)
        except (Again, Unanswered):
            self._client.forget_coordinator(self.group)
            return None
        except kafka.errors.KafkaError as error:
            raise refused("storing the group's positions", error, group=self.group) from error
        code = next((part.error_code for topic in response.topics for part in topic.partitions if part.error_code), 0)
        if code == 0:
            self._heard(asked_at)
        if code == E.IllegalGenerationError.errno and self._answer is not None:
            # The group is a generation further, and so are we, once the join's answer was read.
            return int(E.RebalanceInProgressError.errno)
        return int(code)

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
        if self._fenced is not None or not (self._member or (self._instance and self._answer)):
            return
        identity = LeaveGroupRequest.MemberIdentity(member_id=self._member, group_instance_id=self._instance)
        request = LeaveGroupRequest(group_id=self.group, members=[identity], min_version=3)
        self._state, self._member = State.OUT, ""
        try:
            self._client.ask(request, self._client.coordinator(self.group, LEAVE_S).prompt, LEAVE_S)
        except (Again, Unanswered, kafka.errors.KafkaError):
            return
