"""Groups: sharing, handing over, dying, fencing, positions."""

from __future__ import annotations

import threading
import time

import pytest

from refold.bus import Committed, Place
from refold.schemas.errors import PlaceTakenError, UsageError


def fill(bus, topic, values, partition=0):
    with bus.producer() as producer:
        for value in values:
            producer.send(topic, value, partition=partition)


class Reader:
    """A group member that notes what its listeners hear."""

    def __init__(self, driver, bus, topics, *, group=None, instance=None):
        self.heard = []
        self.consumer = bus.consumer(group=group or driver.group, instance=instance, session_timeout_s=driver.session_timeout_s)
        self.consumer.subscribe(
            topics,
            on_assigned=lambda places: self.heard.append(("assigned", places)),
            on_revoked=lambda places: self.heard.append(("revoked", places)),
        )

    @property
    def places(self):
        return self.consumer.assignment()


@pytest.fixture
def reader(driver, bus, request):
    def make(*topics, **options):
        made = Reader(driver, bus, topics, **options)
        request.addfinalizer(made.consumer.close)
        return made

    return make


def settle(driver, readers, count):
    """Poll until the readers share `count` places evenly."""

    def even():
        sizes = sorted(len(reader.places) for reader in readers)
        return sum(sizes) == count and sizes[-1] - sizes[0] <= 1

    records = driver.until(even, *(reader.consumer for reader in readers))
    assert len(frozenset().union(*(reader.places for reader in readers))) == count
    return records


def test_a_lone_member_reads_all_places(driver, bus, reader):
    topic = driver.topic(bus, partitions=3)
    fill(bus, topic, [b"1"], partition=2)
    lone = reader(topic)
    assert lone.places == frozenset()
    records = settle(driver, [lone], 3) or driver.until(lambda: lone.consumer.position(Place(topic, 2)) == 1, lone.consumer)
    assert [record.value for record in records] == [b"1"]
    assert lone.heard == [("assigned", frozenset(Place(topic, partition) for partition in range(3)))]


def test_members_share_the_places_and_each_record_is_read_once(driver, bus, reader):
    topic = driver.topic(bus, partitions=6)
    readers = [reader(topic) for _ in range(3)]
    settle(driver, readers, 6)
    for partition in range(6):
        fill(bus, topic, [f"{partition}:{number}".encode() for number in range(10)], partition)
    seen = []
    deadline = time.monotonic() + driver.wait_s
    while len(seen) < 60 and time.monotonic() < deadline:
        for each in readers:
            records = each.consumer.poll(0.01)
            assert {Place(record.topic, record.partition) for record in records} <= each.places
            seen += [record.value for record in records]
    assert sorted(seen) == sorted(f"{partition}:{number}".encode() for partition in range(6) for number in range(10))


def test_a_place_is_handed_over_only_after_its_holder_let_go(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    first, second = reader(topic), reader(topic)
    settle(driver, [first], 2)
    for _ in range(3):
        second.consumer.poll(0.01)
        assert second.places == frozenset()
    settle(driver, [first, second], 2)
    [(_, moved)] = [note for note in first.heard if note[0] == "revoked"]
    assert second.places == moved
    assert first.places.isdisjoint(second.places)


def test_a_place_that_need_not_move_stays(driver, bus, reader):
    topic = driver.topic(bus, partitions=9)
    readers = [reader(topic) for _ in range(3)]
    settle(driver, readers, 9)
    before = [each.places for each in readers]
    leaver = readers.pop()
    leaver.consumer.close()
    settle(driver, readers, 9)
    assert all(kept <= each.places for kept, each in zip(before, readers, strict=False))


def test_the_revoked_listener_may_still_commit(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    consumer = bus.consumer(group=driver.group, session_timeout_s=driver.session_timeout_s)

    def give_up(places):
        assert places <= consumer.assignment()
        consumer.commit({place: Committed(consumer.position(place), "given up") for place in places})

    with consumer:
        consumer.subscribe([topic], on_revoked=give_up)
        fill(bus, topic, [b"0"] * 3, 0)
        fill(bus, topic, [b"1"] * 3, 1)
        driver.until(lambda: len(consumer.assignment()) == 2, consumer)
        driver.until(lambda: all(consumer.position(place) == 3 for place in consumer.assignment()), consumer)
        second = reader(topic)
        driver.until(lambda: len(second.places) == 1, consumer, second.consumer)
        [moved] = second.places
        assert bus.committed(driver.group, moved) == Committed(3, "given up")
        assert second.consumer.position(moved) == 3


def test_a_new_member_begins_where_the_group_committed(driver, bus, reader):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0", b"1", b"2"])
    first = reader(topic)
    driver.until(lambda: first.places == {place}, first.consumer)
    first.consumer.commit({place: Committed(2, "words")})
    first.consumer.close()
    second = reader(topic)
    records = driver.until(lambda: second.places == {place} and second.consumer.position(place) == 3, second.consumer)
    assert [record.offset for record in records] == [2]
    assert bus.committed(driver.group, place) == Committed(2, "words")
    assert bus.committed("another", place) is None


def test_the_assigned_listener_may_seek(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0", b"1", b"2"])
    with bus.consumer(group=driver.group, session_timeout_s=driver.session_timeout_s) as consumer:
        consumer.subscribe([topic], on_assigned=lambda places: [consumer.seek(place, 1) for place in places])
        records = driver.until(lambda: consumer.assignment() == {place} and consumer.position(place) == 3, consumer)
        assert [record.offset for record in records] == [1, 2]


def test_when_a_member_leaves_the_others_take_its_places(driver, bus, reader):
    topic = driver.topic(bus, partitions=4)
    first, second = reader(topic), reader(topic)
    settle(driver, [first, second], 4)
    second.consumer.close()
    settle(driver, [first], 4)


def test_when_a_member_falls_silent_the_others_take_its_places(driver, bus, reader):
    topic = driver.topic(bus, partitions=4)
    first, second = reader(topic), reader(topic)
    settle(driver, [first, second], 4)
    driver.fall_silent(second.consumer)
    settle(driver, [first], 4)


def test_within_its_session_timeout_a_silent_member_keeps_its_places(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    first, second = reader(topic), reader(topic)
    settle(driver, [first, second], 2)
    kept = second.places
    driver.let_leases_age(driver.session_timeout_s * 0.6)
    first.consumer.poll(0.01)
    second.consumer.poll(0.01)
    driver.let_leases_age(driver.session_timeout_s * 0.6)
    first.consumer.poll(0.01)
    assert second.places == kept
    second.consumer.commit({place: Committed(0) for place in kept})


def test_a_zombie_cannot_commit_and_its_next_poll_tells_it_and_joins_anew(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    living, zombie = reader(topic), reader(topic)
    settle(driver, [living, zombie], 2)
    [lost], heard = zombie.places, len(zombie.heard)
    driver.fall_silent(zombie.consumer)
    settle(driver, [living], 2)
    living.consumer.commit({lost: Committed(0, "living")})
    with pytest.raises(PlaceTakenError):
        zombie.consumer.commit({lost: Committed(0, "zombie")})
    assert bus.committed(driver.group, lost) == Committed(0, "living")
    settle(driver, [living, zombie], 2)
    assert zombie.heard[heard] == ("revoked", {lost})


def test_committing_a_place_that_is_not_held_stores_nothing(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    first, second = reader(topic), reader(topic)
    settle(driver, [first, second], 2)
    [mine], [other] = first.places, second.places
    with pytest.raises(PlaceTakenError):
        first.consumer.commit({mine: Committed(0), other: Committed(0)})
    assert bus.committed(driver.group, mine) is None


def test_a_member_of_the_same_instance_takes_over_and_the_old_one_is_fenced(driver, bus, reader):
    topic = driver.topic(bus, partitions=4)
    other = reader(topic, instance="other")
    old = reader(topic, instance="same")
    settle(driver, [other, old], 4)
    held, heard_before = old.places, list(other.heard)
    new = reader(topic, instance="same")
    driver.until(lambda: new.places == held, new.consumer, other.consumer)
    with pytest.raises(PlaceTakenError):
        old.consumer.commit({place: Committed(0) for place in held})
    for _ in range(2):
        with pytest.raises(PlaceTakenError):
            old.consumer.poll(driver.wait_s)
    assert old.places == frozenset()
    assert old.heard[-1] == ("revoked", held)
    new.consumer.poll(0.01)
    assert new.places == held
    assert other.heard == heard_before


def test_two_groups_each_see_everything(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    fill(bus, topic, [b"0", b"1"], 0)
    fill(bus, topic, [b"2"], 1)
    for group in ("suite-one", "suite-two"):
        member = reader(topic, group=group)
        records = []
        deadline = time.monotonic() + driver.wait_s
        while len(records) < 3 and time.monotonic() < deadline:
            records += member.consumer.poll(0.05)
        assert sorted(record.value for record in records) == [b"0", b"1", b"2"]


def test_more_members_than_places_leave_some_idle_and_ready(driver, bus, reader):
    topic = driver.topic(bus)
    first, second = reader(topic), reader(topic)
    settle(driver, [first, second], 1)
    active, idle = (first, second) if first.places else (second, first)
    active.consumer.close()
    settle(driver, [idle], 1)


def test_an_idle_member_waits_without_spinning(driver, bus, reader):
    topic = driver.topic(bus)
    first, second = reader(topic), reader(topic)
    settle(driver, [first, second], 1)
    idle = second if first.places else first
    began, began_cpu = time.monotonic(), time.thread_time()
    assert idle.consumer.poll(0.6) == []
    assert time.monotonic() - began >= 0.6
    assert time.thread_time() - began_cpu < 0.25 * 0.6


def test_members_read_only_what_they_subscribed_to(driver, bus, reader):
    left, right = driver.topic(bus, partitions=2), driver.topic(bus, partitions=2)
    one, both = reader(left), reader(left, right)
    settle(driver, [one, both], 4)
    assert {place.topic for place in one.places} == {left}
    assert {Place(right, 0), Place(right, 1)} <= both.places


def test_a_member_joins_beside_readers_of_topics_that_it_never_heard_of(driver, bus, reader):
    known = driver.topic(bus)
    late = reader(known)
    new = driver.topic(driver.open(), partitions=2)
    other = reader(new)
    settle(driver, [other], 2)
    driver.until(lambda: late.places == {Place(known, 0)}, late.consumer)
    assert other.places == {Place(new, 0), Place(new, 1)}


def test_lag_counts_from_the_stored_position_to_the_end(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    place = Place(topic, 1)
    fill(bus, topic, [b"x"] * 5, 1)
    member = reader(topic)
    settle(driver, [member], 2)
    assert bus.lag(driver.group) == {}
    member.consumer.commit({place: Committed(3)})
    assert bus.lag(driver.group) == {place: 2}
    fill(bus, topic, [b"x"], 1)
    assert bus.lag(driver.group) == {place: 3}
    assert bus.lag("nobody") == {}


def test_an_assigned_consumer_may_commit_while_its_group_has_no_members(driver, bus, reader):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    with bus.consumer(group=driver.group) as alone, bus.consumer() as nobody:
        alone.assign([place])
        alone.commit({place: Committed(0, "alone")})
        assert bus.committed(driver.group, place) == Committed(0, "alone")
        nobody.assign([place])
        with pytest.raises(UsageError):
            nobody.commit({place: Committed(0)})
        member = reader(topic)
        settle(driver, [member], 1)
        with pytest.raises(PlaceTakenError):
            alone.commit({place: Committed(0, "against the group")})


def test_subscribing_anew_leaves_the_old_topics(driver, bus, reader):
    left, right = driver.topic(bus), driver.topic(bus)
    member = reader(left)
    settle(driver, [member], 1)
    member.consumer.subscribe([right])
    driver.until(lambda: member.places == {Place(right, 0)}, member.consumer)
    member.consumer.assign([Place(left, 0)])
    assert member.places == {Place(left, 0)}


def test_members_in_threads_come_and_go_and_no_place_is_held_twice(driver, bus):
    topic = driver.topic(bus, partitions=5)
    holders: dict[Place, str] = {}
    clashes: list[str] = []
    lock = threading.Lock()

    def live(name: str, polls: int) -> None:
        def take(places):
            with lock:
                clashes.extend(f"{place} held by {holders[place]}, taken by {name}" for place in places if place in holders)
                holders.update(dict.fromkeys(places, name))

        def give(places):
            with lock:
                for place in places:
                    del holders[place]

        with bus.consumer(group=driver.group, session_timeout_s=30) as consumer:
            consumer.subscribe([topic], on_assigned=take, on_revoked=give)
            for _ in range(polls):
                consumer.poll(0.005)
            give(consumer.assignment())

    threads = [threading.Thread(target=live, args=(f"member-{number}", 10 + 15 * number)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
    assert holders == {}


def test_a_member_that_stays_keeps_its_places_through_work_longer_than_its_session(driver, bus, reader):
    topic = driver.topic(bus, partitions=2)
    first, second = reader(topic), reader(topic)
    settle(driver, [first, second], 2)
    kept, heard = second.places, list(second.heard)
    for _ in range(4):
        driver.let_leases_age(driver.session_timeout_s * 0.6)
        second.consumer.stay()
        first.consumer.poll(0.01)
    assert second.places == kept
    second.consumer.commit({place: Committed(0) for place in kept})
    second.consumer.poll(0.01)
    assert second.heard == heard


def test_places_whose_listener_failed_are_not_held_and_are_given_again(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0"])
    failures = [ValueError("the listener failed")]

    def listen(places):
        if failures:
            raise failures.pop()

    with bus.consumer(group=driver.group, session_timeout_s=driver.session_timeout_s) as consumer:
        consumer.subscribe([topic], on_assigned=listen)
        with pytest.raises(ValueError, match="the listener failed"):
            driver.until(lambda: False, consumer)
        assert consumer.assignment() == frozenset()
        records = driver.until(lambda: consumer.assignment() == {place} and consumer.position(place) == 1, consumer)
        assert [record.value for record in records] == [b"0"]
