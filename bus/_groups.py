"""Consumer groups as a pure core: who is a member, who shall read what, and who still does.

Every change is a function from one group to the next, without clock or storage; the drivers keep the result. A place is given
to its new reader only after the old one let go of it or was removed (cooperative handing over), so that no two members hold one
place at once: `assigned` is what shall be, `held` is what is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from refold.bus.contract import Place


@dataclass(frozen=True, slots=True)
class Member:
    """One consumer of a group.

    Parameters
    ----------
    name
        Unique, new each time a consumer joins.
    instance
        Stable name (static membership) or None.
    topics
        What it subscribed to, sorted.
    session_timeout_s, lease_until
        How long it may stay silent, and the end of its lease on the driver's clock.
    process
        The process it lives in, in the driver's words.
    """

    name: str
    instance: str | None
    topics: tuple[str, ...]
    session_timeout_s: float
    lease_until: float
    process: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A group's membership. `generation` grows whenever a member may have something to do."""

    generation: int = 0
    members: Mapping[str, Member] = field(default_factory=dict)
    assigned: Mapping[Place, str] = field(default_factory=dict)
    held: Mapping[Place, str] = field(default_factory=dict)

    def holds(self, name: str) -> frozenset[Place]:
        """Places that this member holds."""
        return frozenset(place for place, holder in self.held.items() if holder == name)

    def surplus(self, name: str) -> frozenset[Place]:
        """Places that this member holds and must let go."""
        return frozenset(place for place in self.holds(name) if self.assigned.get(place) != name)

    def successor_of(self, instance: str | None) -> Member | None:
        """The member that now carries this stable name."""
        if instance is None:
            return None
        return next((member for member in self.members.values() if member.instance == instance), None)


def join(group: Group, member: Member, places: Iterable[Place]) -> Group:
    """Add a member. One with the same `instance` is replaced: its places pass on at once, and it is fenced.

    Parameters
    ----------
    places
        All places of all topics that any member reads.
    """
    old = group.successor_of(member.instance)
    if old is None:
        return _share_anew(replace(group, members={**group.members, member.name: member}), places)
    members = {name: kept for name, kept in group.members.items() if name != old.name} | {member.name: member}
    heir = {old.name: member.name}
    assigned = {place: heir.get(name, name) for place, name in group.assigned.items()}
    held = {place: heir.get(name, name) for place, name in group.held.items()}
    return _share_anew(replace(group, members=members, assigned=assigned, held=held), places)


def remove(group: Group, names: Iterable[str]) -> Group:
    """Remove members; their places go to the others. Unknown names change nothing."""
    gone = set(names) & group.members.keys()
    if not gone:
        return group
    members = {name: member for name, member in group.members.items() if name not in gone}
    held = {place: name for place, name in group.held.items() if name not in gone}
    return _share_anew(replace(group, members=members, held=held), group.assigned)


def renew(group: Group, name: str, now: float) -> Group:
    """Extend a member's lease."""
    member = group.members[name]
    return replace(group, members={**group.members, name: replace(member, lease_until=now + member.session_timeout_s)})


def take(group: Group, name: str) -> Group:
    """Give a member all places that are assigned to it and that nobody holds."""
    free = {place: name for place, target in group.assigned.items() if target == name and place not in group.held}
    return replace(group, held={**group.held, **free}) if free else group


def release(group: Group, name: str, places: Iterable[Place]) -> Group:
    """Let go of places, so that those they are assigned to can take them."""
    given_up = {place for place in places if group.held.get(place) == name}
    if not given_up:
        return group
    held = {place: holder for place, holder in group.held.items() if place not in given_up}
    return replace(group, generation=group.generation + 1, held=held)


def _share_anew(group: Group, places: Iterable[Place]) -> Group:
    assigned = share_out(group.members.values(), places, group.assigned)
    return replace(group, generation=group.generation + 1, assigned=assigned)


def share_out(members: Iterable[Member], places: Iterable[Place], before: Mapping[Place, str]) -> dict[Place, str]:
    """Share places among the members that subscribed to their topics.

    Deterministic, balanced (members with equal subscriptions differ by at most one place) and sticky (a place moves only where
    balance asks for it).
    """
    readers = sorted(members, key=lambda member: member.name)
    shared: dict[Place, str] = {}
    load = {member.name: 0 for member in readers}
    able = {place: [member.name for member in readers if place.topic in member.topics] for place in sorted(set(places))}
    for place, names in able.items():
        if before.get(place) in names:
            shared[place] = before[place]
            load[before[place]] += 1
    for place, names in able.items():
        if place not in shared and names:
            shared[place] = min(names, key=lambda name: (load[name], name))
            load[shared[place]] += 1
    _level(shared, able, load)
    return shared


def _level(shared: dict[Place, str], able: Mapping[Place, list[str]], load: dict[str, int]) -> None:
    """Move single places from fuller to emptier members until none gains by it (each move lowers the sum of squared loads)."""
    moved = True
    while moved:
        moved = False
        for place in sorted(shared, reverse=True):
            owner, least = shared[place], min(able[place], key=lambda name: (load[name], name))
            if load[least] + 1 < load[owner]:
                shared[place] = least
                load[owner] -= 1
                load[least] += 1
                moved = True
