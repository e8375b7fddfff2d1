"""One consumer's life in its group: joining, keeping its lease, letting go, taking, being fenced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from refold.bus._groups import Group, Member, join, release, remove, renew, take
from refold.bus._store import Store
from refold.bus.contract import Committed, Listener, Place
from refold.schemas.errors import BusError, FencedError, PlaceTakenError, TryAgainError

LOOK_AROUND_S = 0.25
"""How often a waiting member looks whether the others' processes and leases still live; the look is a read of one row."""


class Membership:
    """A membership that lasts from `subscribe` to `leave`, through as many joins as it takes."""

    def __init__(
        self,
        store: Store,
        group: str,
        instance: str | None,
        session_timeout_s: float,
        topics: Iterable[str],
        on_assigned: Callable[[frozenset[Place]], None],
        on_revoked: Listener,
    ) -> None:
        self.group = group
        self.places: frozenset[Place] = frozenset()
        self._store = store
        self._instance = instance
        self._timeout_s = session_timeout_s
        self._topics = tuple(sorted(set(topics)))
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._name: str | None = None
        self._generation = -1
        self._renew_at = 0.0
        self._look_at = 0.0
        self._fenced: FencedError | None = None

    def keep(self) -> None:
        """Do what the group asks of this member; to be called before each fetch. Cheap when there is nothing to do."""
        if self._fenced is not None:
            raise self._fenced
        now = self._store.now()
        if self._name is None or now >= self._renew_at or self._store.generation(self.group) != self._generation:
            self._synchronise()
        elif now >= self._look_at:
            self._look_at = now + LOOK_AROUND_S
            members = self._store.group(self.group).members.values()
            if any(member.name != self._name and self._store.is_gone(member) for member in members):
                self._synchronise()

    def stay(self) -> None:
        """Extend the lease while work is under way; nothing else is looked at before the next `keep`."""
        name, now = self._name, self._store.now()
        if name is None or now < self._renew_at:
            return
        self._renew_at = now + self._timeout_s / 3
        with suppress(BusError, TryAgainError):  # A bus that fails is found out by whoever works with it.
            self._store.change_group(self.group, lambda group: renew(group, name, now) if name in group.members else group)

    def _synchronise(self) -> None:
        """Bring this member and its group into line.

        1. In one transaction: remove the dead, renew the lease, take what is free. A crash after it leaves places held by a
           dead process, which the others remove.
        2. If the group removed us meanwhile: let go of everything, then join as a new member (or stay fenced).
        3. Let go of what is assigned to others: the listener first, because it may still commit, then the release. A crash
           between them leaves the place held by a dead process.
        4. Start reading what was taken.
        """
        # 1.
        group = self._store.change_group(self.group, self._refresh)
        # 2.
        if self._name is not None and self._name not in group.members:
            self._lose(group)
        if self._name is None:
            group = self._join()
        assert self._name is not None
        self._note(group)
        # 3.
        surplus = group.surplus(self._name)
        if surplus:
            self._let_go(surplus)
            name = self._name
            self._note(self._store.change_group(self.group, lambda group: release(group, name, surplus)))
        # 4.
        gained = (group.holds(self._name) - surplus) - self.places
        if gained:
            self._begin(gained)

    def _begin(self, gained: frozenset[Place]) -> None:
        self.places |= gained
        try:
            self._on_assigned(gained)
        except BaseException:
            # Not begun is not held: who polls on after this error is given them again.
            self.places -= gained
            self._renew_at = 0.0
            raise

    def _refresh(self, group: Group) -> Group:
        # Our own lease may have passed too; as long as nobody removed us, nobody took our places, and we go on.
        others = [member for member in group.members.values() if member.name != self._name]
        group = remove(group, [member.name for member in others if self._store.is_gone(member)])
        if self._name is None or self._name not in group.members:
            return group
        return take(renew(group, self._name, self._store.now()), self._name)

    def _join(self) -> Group:
        name, process = self._store.new_member()
        lease_until = self._store.now() + self._timeout_s
        member = Member(name, self._instance, self._topics, self._timeout_s, lease_until, process)

        def enter(group: Group) -> Group:
            topics = {topic for member in group.members.values() for topic in member.topics}.union(self._topics)
            return take(join(group, member, self._all_places(topics)), name)

        group = self._store.change_group(self.group, enter)
        self._name = name
        return group

    def _all_places(self, topics: Iterable[str]) -> list[Place]:
        return [Place(topic, partition) for topic in topics for partition in range(self._store.spec(topic).partitions)]

    def _lose(self, group: Group) -> None:
        successor = group.successor_of(self._instance)
        if successor is not None:
            hint = "two consumers run with the same instance name; give each its own"
            self._fenced = FencedError(
                "another consumer joined with this instance name",
                group=self.group,
                instance=self._instance,
                process=successor.process or None,
                hint=hint,
            )
        self._name = None
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

    def _note(self, group: Group) -> None:
        now = self._store.now()
        self._generation = group.generation
        self._renew_at = now + self._timeout_s / 3
        self._look_at = now + min(LOOK_AROUND_S, self._timeout_s / 3)

    @property
    def known(self) -> tuple[str, int]:
        """The group and the generation in which this member last brought itself into line."""
        return self.group, self._generation

    def next_duty_s(self) -> float:
        """Seconds after which `keep` should be called again."""
        return max(0.001, min(self._look_at, self._renew_at) - self._store.now())

    def commit(self, offsets: Mapping[Place, Committed]) -> None:
        """Store positions if this member holds all their places; renews its lease."""
        if self._fenced is not None:
            raise self._fenced
        name = self._name

        def check(group: Group) -> Group:
            for place in offsets:
                if name is None or group.held.get(place) != name:
                    raise not_held(self.group, place)
            return renew(group, name, self._store.now()) if name is not None else group

        self._store.change_group(self.group, check, offsets)

    def leave(self) -> None:
        """Leave the group; its other members take over at their next poll."""
        name, self._name = self._name, None
        self.places = frozenset()
        if name is not None:
            self._store.change_group(self.group, lambda group: remove(group, [name]))


def not_held(group: str, place: Place) -> PlaceTakenError:
    """Return the error for a commit by one who does not hold the place."""
    hint = "this consumer was silent past its session timeout, or the group shared out its places anew; poll again"
    return PlaceTakenError(
        "this consumer does not hold the place in its group",
        group=group,
        topic=place.topic,
        partition=place.partition,
        hint=hint,
    )
