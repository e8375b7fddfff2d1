"""The pure core of groups, walked at random: no place has two holders, shares are even, and nothing moves without need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from refold.bus import Place
from refold.bus._groups import Group, Member, join, release, remove, share_out, take

TOPICS = {"a": 3, "b": 4}
PLACES = [Place(topic, partition) for topic, count in TOPICS.items() for partition in range(count)]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 5), st.sampled_from([("a",), ("b",), ("a", "b")])),
        st.tuples(st.just("remove"), st.integers(0, 5), st.none()),
        st.tuples(st.just("poll"), st.integers(0, 5), st.none()),
    ),
    max_size=40,
)


def member(number: int, topics: tuple[str, ...]) -> Member:
    return Member(f"m{number}", None, topics, 10.0, 0.0)


def poll(group: Group, name: str) -> Group:
    """What a member does at each poll: take what is free, let go of what is not its own."""
    return release(take(group, name), name, group.surplus(name))


@given(steps)
def test_no_place_changes_hands_without_being_let_go(walk):
    group = Group()
    for step, number, topics in walk:
        name = f"m{number}"
        before = group
        if step == "join" and name not in group.members:
            group = join(group, member(number, topics), PLACES)
        elif step == "remove":
            group = remove(group, [name])
        elif step == "poll" and name in group.members:
            group = poll(group, name)
        for place, holder in before.held.items():
            assert group.held.get(place) in (holder, None)
        assert set(group.held.values()) <= group.members.keys()
        assert all(place.topic in group.members[name].topics for place, name in group.assigned.items())
        assert set(group.assigned) == {
            place for place in PLACES if any(place.topic in m.topics for m in group.members.values())
        }
    for _ in range(2):
        for name in group.members:
            group = poll(group, name)
    assert group.held == group.assigned


@given(st.integers(1, 9), st.integers(1, 20))
def test_equal_members_differ_by_at_most_one_place(members, partitions):
    places = [Place("a", partition) for partition in range(partitions)]
    shared = share_out([member(number, ("a",)) for number in range(members)], places, {})
    loads = [sum(name == f"m{number}" for name in shared.values()) for number in range(members)]
    assert sum(loads) == partitions
    assert max(loads) - min(loads) <= 1


@given(st.integers(1, 8), st.integers(1, 20), st.data())
def test_a_leaving_members_places_move_and_no_others_do(members, partitions, data):
    places = [Place("a", partition) for partition in range(partitions)]
    all_members = [member(number, ("a",)) for number in range(members + 1)]
    before = share_out(all_members, places, {})
    gone = data.draw(st.sampled_from(all_members))
    after = share_out([each for each in all_members if each != gone], places, before)
    assert all(after[place] == name for place, name in before.items() if name != gone.name)


@given(st.integers(1, 8), st.integers(1, 20))
def test_a_new_member_moves_no_more_places_than_it_gets(members, partitions):
    places = [Place("a", partition) for partition in range(partitions)]
    before = share_out([member(number, ("a",)) for number in range(members)], places, {})
    after = share_out([member(number, ("a",)) for number in range(members + 1)], places, before)
    assert {place for place in places if before[place] != after[place]} == {
        p for p, name in after.items() if name == f"m{members}"
    }
