"""Every driver gives the same answers as the memory bus, whatever is done to it in whatever order."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refold.bus import Place, TopicSpec
from refold.bus.memory import MemoryBus

ONLY_BUSES_THAT_CLEAN_WHEN_TOLD = True

KEYS = [b"a", b"b", b"c"]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1), st.sampled_from(KEYS), st.one_of(st.none(), st.binary(max_size=8))),
        st.tuples(st.just("delete"), st.integers(0, 1), st.integers(0, 12)),
        st.tuples(st.just("clean")),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 30.0, 61.0])),
        st.tuples(st.just("read"), st.integers(1, 4), st.integers(1, 30)),
        st.tuples(st.just("seek"), st.integers(0, 1), st.integers(0, 12)),
        st.tuples(st.just("time"), st.integers(0, 1), st.floats(0, 120)),
    ),
    max_size=30,
)


class Subject:
    """One bus, and one consumer on it, that takes every step."""

    def __init__(self, driver, bus, spec):
        self.driver, self.bus = driver, bus
        bus.create_topics([spec])
        self.spec = spec
        self.places = [Place(spec.name, 0), Place(spec.name, 1)]
        self.producer = bus.producer()
        self.consumer = bus.consumer(max_in_flight_bytes=20)
        self.consumer.assign(self.places)

    def take(self, step):
        match step:
            case "send", partition, key, value:
                return self.producer.send(self.spec.name, value, key=key, partition=partition).result()
            case "delete", partition, offset if not self.spec.compacted:
                return self.bus.delete_records(self.places[partition], offset)
            case ("clean",):
                return self.driver.run_cleaner(self.bus, self.spec.name)
            case "read", polls, max_records:
                return [self.consumer.poll(max_records=max_records) for _ in range(polls)]
            case "seek", partition, offset:
                return self.consumer.seek(self.places[partition], min(offset, self.bus.end_offset(self.places[partition])))
            case "time", partition, ago_s:
                return self.bus.offset_for_time(self.places[partition], int((self.driver.clock() - ago_s) * 1000))

    def view(self):
        places = [(self.bus.begin_offset(place), self.bus.end_offset(place)) for place in self.places]
        return places, [self.consumer.position(place) for place in self.places]

    def close(self):
        self.producer.close()
        self.consumer.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.sampled_from([(False, None), (True, None), (False, 60.0), (True, 60.0)]))
def test_a_walk_at_random_gives_the_memory_buss_answers(driver, bus, walk, kind):
    model_bus = MemoryBus(clock=driver.clock, delete_retention_s=driver.delete_retention_s)
    spec = TopicSpec(driver.topic(bus) + "-walk", 2, *kind)
    model, subject = Subject(driver, model_bus, spec), Subject(driver, bus, spec)
    for step in walk:
        if step[0] == "wait":
            driver.pass_time(step[1])
        assert subject.take(step) == model.take(step), step
        assert subject.view() == model.view(), step
    model.close()
    subject.close()
