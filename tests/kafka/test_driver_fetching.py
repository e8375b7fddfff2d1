"""What a reader makes of brokers' answers that a healthy one seldom gives. No broker needed."""

from __future__ import annotations

import pytest

from refold.bus import Place
from refold.bus._kafka_batches import Sender, encode_batch, encode_record
from refold.bus._kafka_errors import Again
from refold.bus._kafka_fetching import Fetching
from refold.bus._kafka_reply import Reply
from refold.schemas.errors import BusError

from kafka.protocol.consumer import FetchResponse  # isort: skip  -- after the driver, which bears with its warnings

PLACE, OTHER = Place("suite.fetching", 0), Place("suite.fetching", 1)
NOT_LEADER, OUT_OF_RANGE = 6, 1


def batch(*values, base_offset=0):
    parts = [part for index, value in enumerate(values) for part in encode_record(index, 0, None, value, ())]
    made = encode_batch(parts, len(values), (0, 0), Sender(-1, -1), -1)
    made[:8] = base_offset.to_bytes(8, "big")
    return bytes(made)


def part(place=PLACE, records=b"", *, end=0, error=0):
    data = FetchResponse.FetchableTopicResponse.PartitionData
    return data(partition_index=place.partition, error_code=error, high_watermark=end, records=records)


class Client:
    """A cluster of one broker that gives the answers it was told, and knows where the log begins and ends."""

    brokers = ("127.0.0.1:9092",)

    def __init__(self, *answers, begin=0, end=0):
        self.answers = list(answers)
        self.asked = []
        self.forgotten = 0
        self.range = {-2: begin, -1: end}

    def leader(self, place, timeout_s=0.0):
        return 1

    def forget(self, topic):
        self.forgotten += 1

    def persist(self, attempt, what, timeout_s=0.0, **where):
        return attempt(1.0)

    def ask(self, request, node, timeout_s=0.0):
        timestamp = request.topics[0].partitions[0].timestamp
        [found] = [type("P", (), {"error_code": 0, "offset": self.range[timestamp]})]
        return type("R", (), {"topics": [type("T", (), {"partitions": [found]})]})

    def send(self, request, node, timeout_s, wake=None):
        self.asked.append({each.partition: each.fetch_offset for topic in request.topics for each in topic.partitions})
        reply = Reply(wake)
        topic = FetchResponse.FetchableTopicResponse(topic=PLACE.topic, partitions=self.answers.pop(0))
        reply.settle(FetchResponse(responses=[topic]))
        return reply


def fetching(*answers, **settings):
    client = Client(*answers, **settings)
    return client, Fetching(client, 1 << 20)


def values(fetched):
    return [record.value for record in fetched.records]


def test_an_answer_without_records_below_the_end_means_that_nothing_is_left_there():
    client, fetches = fetching([part(end=7)])
    fetches.ask([(PLACE, 2)])
    assert fetches.collect() == {PLACE: (2, 7)}
    assert client.asked == [{0: 2}]


def test_a_place_for_which_an_answer_had_no_room_stays_where_it_is():
    _, fetches = fetching([part(records=batch(b"1"), end=1), part(OTHER, end=9)])
    fetches.ask([(PLACE, 0), (OTHER, 3)])
    assert fetches.collect() == {}
    fetched = fetches.take([(PLACE, 0), (OTHER, 3)], 10, 100)
    assert values(fetched) == [b"1"]
    assert fetched.positions == {PLACE: 1}


def test_what_precedes_damage_is_handed_out_first():
    damaged = bytearray(batch(b"2", base_offset=1))
    damaged[-1] ^= 1
    whole = batch(b"1") + bytes(damaged)
    _, fetches = fetching([part(records=whole, end=2)], [part(records=bytes(damaged), end=2)])
    fetches.ask([(PLACE, 0)])
    fetches.collect()
    fetched = fetches.take([(PLACE, 0)], 10, 100)
    assert (values(fetched), fetched.positions) == ([b"1"], {PLACE: 1})
    fetches.ask([(PLACE, 1)])
    fetches.collect()
    with pytest.raises(BusError, match="damaged"):
        fetches.take([(PLACE, 1)], 10, 100)


def test_what_was_asked_before_a_seek_is_not_handed_out_after_it():
    _, fetches = fetching([part(records=batch(b"0", b"1"), end=2)])
    fetches.ask([(PLACE, 0)])
    fetches.collect()
    assert values(fetches.take([(PLACE, 1)], 10, 100)) == []


def test_a_reader_below_the_beginning_goes_on_at_it():
    _, fetches = fetching([part(error=OUT_OF_RANGE)], begin=5, end=9)
    fetches.ask([(PLACE, 2)])
    assert fetches.collect() == {PLACE: (2, 5)}


def test_a_reader_past_the_end_of_a_log_that_lost_its_tail_is_told():
    _, fetches = fetching([part(error=OUT_OF_RANGE)], begin=0, end=9)
    fetches.ask([(PLACE, 12)])
    with pytest.raises(BusError, match="no such offset") as raised:
        fetches.collect()
    assert raised.value.where["end_offset"] == 9


def test_a_leader_that_is_none_any_more_is_looked_for_anew():
    client, fetches = fetching([part(error=NOT_LEADER)])
    fetches.ask([(PLACE, 0)])
    assert fetches.collect() == {}
    assert client.forgotten == 1
    assert fetches.pause_s > 0


class ThreeBrokers(Client):
    """A cluster of which each broker leads one partition, and keeps every question."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def leader(self, place, timeout_s=0.0):
        return place.partition

    def second_line(self, node):
        return f"{node}-second"

    def send(self, request, node, timeout_s, wake=None):
        reply = Reply(wake)
        self.kept.append((node, request.max_bytes, reply))
        return reply


def test_brokers_that_have_nothing_do_not_keep_the_one_that_has_from_being_asked():
    client = ThreeBrokers()
    fetches = Fetching(client, 4 << 20)
    places = [Place("suite.fetching", number) for number in range(3)]
    # A stream has brought the size of questions to its most.
    for _ in range(4):
        fetches._ask_bytes = min(2 * fetches._ask_bytes, 2 << 20)
    fetches.ask([(places[0], 0), (places[2], 0)], 0.5, patient=True)
    fetches.ask([(place, 0) for place in places], 0.5, patient=True)
    assert {node for node, _, _ in client.kept} == {"0-second", "1-second", "2-second"}
    assert sum(size for _, size, _ in client.kept) <= 4 << 20


def test_idle_brokers_that_are_asked_again_and_again_leave_room_for_the_others():
    client = ThreeBrokers()
    fetches = Fetching(client, 4 << 20)
    fetches._ask_bytes = 2 << 20
    positions = [(Place("suite.fetching", number), 0) for number in (0, 2, 1)]
    for _ in range(5):
        fetches.ask(positions, 0.5, patient=True)
        for node, _, reply in client.kept:
            if not reply.is_there:
                topic = FetchResponse.FetchableTopicResponse(
                    topic=PLACE.topic, partitions=[part(Place(PLACE.topic, int(node[0])))]
                )
                reply.settle(FetchResponse(responses=[topic]))
        fetches.collect()
    asked = [node for node, _, _ in client.kept]
    assert asked.count("1-second") == asked.count("0-second") == asked.count("2-second") == 5


class Leaderless(Client):
    """A cluster where some partitions have no leader."""

    def no_answer(self, what, timeout_s, error):
        return BusError(f"{what} found no answer ({error})")

    def __init__(self, *answers, without=()):
        super().__init__(*answers)
        self.without = without

    def leader(self, place, timeout_s=0.0):
        if place in self.without:
            raise Again("no leader")
        return 1


def test_where_no_place_has_a_leader_the_question_is_asked_again_and_fails_in_the_end(monkeypatch):
    fetches = Fetching(Leaderless(without={PLACE}), 1 << 20)
    for _ in range(3):
        fetches.ask([(PLACE, 0)])
        assert fetches.pause_s > 0, "nobody would wake the reader"
        fetches._retry_at = 0.0
    monkeypatch.setattr("refold.bus._kafka_fetching.ANSWER_S", 0.0)
    with pytest.raises(BusError, match="found no answer"):
        fetches.ask([(PLACE, 0)])


def test_a_place_without_a_leader_keeps_no_other_from_being_asked_for():
    client = Leaderless([part(OTHER, records=batch(b"1"), end=1)], without={PLACE})
    fetches = Fetching(client, 1 << 20)
    fetches.ask([(PLACE, 0), (OTHER, 0)])
    assert client.asked == [{1: 0}]
    assert fetches.pause_s <= 0
