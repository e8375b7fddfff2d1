"""Merged steps: written beside training, read in the place of many, and never trusted over the log."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import refold
from refold.bus.clock import ManualClock
from refold.bus.contract import Place
from refold.bus.memory import MemoryBus
from refold.bus.payloads import PayloadReader, send_payload
from refold.consumers import merging
from refold.consumers.snapshots import GRACE_MS, Snapshots
from refold.consumers.standby import Seat
from refold.producers.history import History
from refold.schemas.canonical import encode
from refold.schemas.errors import BusError, IntegrityError
from refold.schemas.layout import Layout
from refold.schemas.merged import merged_chunk_key, merged_key, piece_of
from refold.schemas.payload import chunk_digest, describe
from refold.state.aggregation import WeightedMean
from refold.state.merging import due, is_kept, spanning
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import FedAdam, FedAvg, Optimizer
from refold.state.paths import MergedEntry, RoundEntry, find_path
from refold.state.step import Step, compute_step
from refold.testing import LOST, FlakyBus
from refold.testing.rounds import RoundsWriter

ROUNDS = 33
VOID = 7
BRANCH, BRANCH_FROM = 18, 16


class Made:
    """A federation of 33 rounds, the 7th void, the 18th built on the 16th, with every state's digest; served once between."""

    def __init__(self, optimizer: Optimizer, rounds: int = ROUNDS, served_at: int = 0) -> None:
        rng = np.random.default_rng(3)
        initial = {"w": rng.normal(0, 0.1, (40, 50)).astype(np.float32), "n": np.array([1, 2])}
        self.bus = MemoryBus()
        self.federation = refold.create(
            "memory:", initial, bus=self.bus, optimizer=optimizer, snapshots=refold.SnapshotPolicy(1000, 1), insecure=True
        )
        writer = RoundsWriter(self.federation, initial_state(initial))
        self.digests = {0: writer.state.digest}
        kept: ModelState | None = None
        for round_ in range(1, rounds + 1):
            if round_ == BRANCH:
                assert kept is not None
                writer.state = kept
            step = None if round_ == VOID else next_step(writer.state, optimizer, rng)
            writer.add(step)
            self.digests[round_] = writer.state.digest
            kept = writer.state.copy() if round_ == BRANCH_FROM else kept
            if round_ == served_at:
                self.serve()
        writer.close()

    def serve(self, bus: object = None, member: str = "one", at_s: float = 0.0) -> None:
        """Let the group write all that is due, by a clock that shows this time."""
        topics, genesis = self.federation.topics, self.federation.genesis
        clock = ManualClock()
        clock.advance(at_s)
        group = Snapshots(Seat(bus or self.bus, topics, genesis, member, clock))  # type: ignore[arg-type]
        try:
            while group.step(0.0):
                pass
        finally:
            group.close()

    def history(self) -> History:
        history = History(self.bus, self.federation.topics, genesis=self.federation.genesis)
        history.refresh()
        return history


def next_step(state: ModelState, optimizer: Optimizer, rng: np.random.Generator) -> Step:
    change = [np.rint(rng.normal(0, 3000, tensor.size)).astype(np.int64) for tensor in state.schema.tensors]
    arrays = [change[0].astype(np.int32), change[1]]
    mean = WeightedMean(state.schema, (0, 0))
    layout = Layout.of(state.schema)
    mean.add(((b, arrays[b.tensor][b.elements].copy()) for b in layout), (0, 0), weight=1, index=0)
    step = compute_step(state, mean.result(), optimizer)
    assert isinstance(step, Step)
    return step


def damage(made: Made, digest: bytes) -> None:
    """Change a byte of a chunk where it lies."""
    for place, log in made.bus._log.partitions.items():
        if place.topic in (made.federation.topics.steps, made.federation.topics.snapshot_chunks):
            for number, record in enumerate(log._records):
                if record.value is not None and chunk_digest(record.value) == digest:
                    log._records[number] = replace(record, value=record.value[:-1] + bytes([record.value[-1] ^ 1]))


def lie(made: Made, piece: tuple[int, int], other: tuple[int, int]) -> None:
    """Let a merged step's manifest name the chunks of another one."""
    merged = made.history().merged
    told = replace(merged[piece], step=merged[other].step, step_exponents=merged[other].step_exponents)
    assert told.attempt
    with made.bus.producer() as producer:
        producer.send(made.federation.topics.snapshots, encode(told), key=merged_key(*piece), partition=0)


@pytest.fixture(params=[FedAvg(), FedAdam()], ids=["fedavg", "fedadam"])
def made(request: pytest.FixtureRequest) -> Iterator[Made]:
    found = Made(request.param)
    yield found
    found.federation.close()


def lines(head: int = ROUNDS // merging.ROUNDS_A_TURN * merging.ROUNDS_A_TURN) -> set[tuple[int, int]]:
    """Return the spans that there must be: those that the branch does not break."""
    return {piece for piece in due(head) if not piece[0] < BRANCH <= piece[1]}


def test_every_span_of_two_to_the_n_rounds_is_merged_unless_a_branch_breaks_it(made: Made) -> None:
    made.serve()
    assert made.history().merged.keys() == lines()
    report = made.federation.verify(quick=False)
    assert report.summary.merged == len(lines())
    assert not [finding for finding in report.findings if finding.check == "snapshots"]


def test_every_round_comes_out_by_merged_steps_both_ways_and_from_any_state_held(made: Made) -> None:
    made.serve()
    history = made.history()
    for round_, digest in made.digests.items():
        assert history.rebuild(round_).digest == digest
    for held in (0, 5, 16, 17, 29, ROUNDS):
        for round_ in (0, 1, 6, 12, 16, 24, 31):
            found = history.rebuild(round_, held=history.rebuild(held))
            assert (found.digest, found.round) == (made.digests[round_], round_)


def test_a_far_round_is_few_steps_away_and_fewer_bytes(made: Made) -> None:
    made.serve()
    history = made.history()
    assert [leg.piece for leg in history.find_path(16, held=0).legs] == [(0, 16)]
    backwards = history.find_path(0, held=15)
    assert {leg.sign for leg in backwards.legs} <= {1, -1}
    assert len(backwards.legs) <= 3
    singles = sum(history._entries()[round_].step_bytes for round_ in range(1, 17))
    assert history.find_path(16, held=0, least="bytes").read_bytes < singles / 3


def test_a_member_that_dies_between_chunks_and_manifests_leaves_work_that_the_next_one_does(made: Made) -> None:
    topics = made.federation.topics
    for topic in (topics.snapshot_chunks, topics.snapshots):
        fails = FlakyBus(made.bus, lambda name, value, topic=topic: LOST if name == topic and value else None)  # type: ignore[misc]
        with pytest.raises(BusError):
            made.serve(fails, topic)
    assert not made.history().merged
    made.serve(member="two")
    before = made.bus.end_offset(Place(topics.snapshots, 0))
    made.serve(member="three")
    assert made.history().merged.keys() == lines()
    assert made.bus.end_offset(Place(topics.snapshots, 0)) == before, "what is there is not written again"


def test_a_broken_merged_step_is_passed_over_with_a_warning(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    made.serve()
    history = made.history()
    for piece in ((0, 16), (0, 8)):
        event = history.merged[piece]
        damage(made, event.step.chunks[0])
    with caplog.at_level(logging.WARNING):
        assert history.rebuild(16, start=0).digest == made.digests[16]
    assert "merged step cannot be read" in caplog.text
    assert history.rebuild(9).digest == made.digests[9]
    findings = [finding.what for finding in made.federation.verify().findings]
    assert any("rounds 1 to 16 cannot be read" in what for what in findings)


def test_a_merged_step_that_is_another_one_never_gives_a_wrong_state(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    made.serve()
    lie(made, (0, 16), (8, 16))
    history = made.history()
    with caplog.at_level(logging.WARNING):
        assert history.rebuild(16, start=0).digest == made.digests[16]
    assert "not the recorded one" in caplog.text
    findings = [finding.what for finding in made.federation.verify().findings]
    assert any("not the sum" in what or "of other slots" in what for what in findings)


def test_a_broken_single_step_is_bridged_by_the_merged_one(made: Made) -> None:
    made.serve()
    history = made.history()
    history.lineage.rounds[4] = replace(history.lineage.rounds[4], step=describe([b"lost"], inline_bytes=-1))
    assert history.rebuild(3, start=0).digest == made.digests[3]
    assert history.rebuild(4, start=0).digest == made.digests[4], "by the merged step of rounds 3 and 4"
    history.merged.clear()
    with pytest.raises(IntegrityError):
        history.rebuild(4, start=0)


def test_a_client_that_was_away_reads_the_fewest_bytes_and_sees_how_far_it_is(made: Made) -> None:
    made.serve()
    history, told = made.history(), []
    held = history.rebuild(1, slots=False)
    way = history.find_path(31, held=1, least="bytes")
    found = history.rebuild(31, held=held, slots=False, least="bytes", progress=lambda done, total: told.append((done, total)))
    assert found.parameters_digest == history.lineage.parameters_digest(31)
    assert len(way.legs) < 15
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] <= told[-1][1] == way.read_bytes


def live_chunks(made: Made) -> set[bytes]:
    """Return the keys of merged steps' chunks that compaction would leave."""
    newest: dict[bytes, bytes | None] = {}
    for place, log in made.bus._log.partitions.items():
        if place.topic == made.federation.topics.snapshot_chunks:
            newest |= {record.key or b"": record.value for record in log._records}
    return {key for key, value in newest.items() if value is not None and b"+" in key}


def named_chunks(made: Made) -> set[bytes]:
    """Return the keys of the chunks that merged steps' manifests name."""
    found = set()
    for piece, event in made.history().merged.items():
        for part, payload in ((b"p", event.step), (b"s", event.slots_step)):
            chunks = payload.chunks if payload is not None else ()
            found |= {merged_chunk_key(piece, event.attempt, part, index) for index in range(len(chunks))}
    return found


def test_short_merged_steps_of_long_ago_are_let_go_with_their_chunks_and_not_written_again() -> None:
    made = Made(FedAdam(), rounds=150, served_at=60)
    assert (0, 2) not in made.history().merged
    assert (48, 50) in made.history().merged, "nobody let it go yet"
    made.serve()
    kept = {piece for piece in due(150) if not piece[0] < BRANCH <= piece[1] and is_kept(piece, 150)}
    assert made.history().merged.keys() == kept
    assert all(last - first >= 32 or last > 150 - 32 for first, last in kept)
    assert live_chunks(made) == named_chunks(made)
    before = made.bus.end_offset(Place(made.federation.topics.snapshots, 0))
    made.serve(member="two")
    assert made.bus.end_offset(Place(made.federation.topics.snapshots, 0)) == before
    history = made.history()
    for round_ in (1, 17, 31, 64, 95, 127, 150):
        assert history.rebuild(round_, held=history.rebuild(150 - round_)).digest == made.digests[round_]
    assert not [finding for finding in made.federation.verify().findings if finding.check == "snapshots"]


def test_a_member_that_dies_letting_go_of_merged_steps_leaves_chunks_that_are_swept() -> None:
    made = Made(FedAvg(), rounds=100, served_at=40)
    chunks = made.federation.topics.snapshot_chunks
    fails = FlakyBus(made.bus, lambda name, value: LOST if name == chunks and value is None else None)
    with pytest.raises(BusError):
        made.serve(fails, "one")
    assert live_chunks(made) > named_chunks(made)
    made.serve(member="two", at_s=time.time() + 2 * GRACE_MS / 1000)
    assert live_chunks(made) == named_chunks(made)


def test_merged_steps_from_when_their_chunks_lay_in_steps_are_read_there(made: Made) -> None:
    made.serve()
    event = made.history().merged[16, 24] if (16, 24) in made.history().merged else made.history().merged[0, 16]
    topics = made.federation.topics
    with made.bus.producer() as producer:
        payloads = []
        for payload in (event.step, event.slots_step):
            chunks = list(PayloadReader(made.bus, topics.snapshot_chunks).read(payload)) if payload is not None else []
            sent = send_payload(producer, topics.steps, 1, chunks, key=b"16", inline_bytes=0) if payload is not None else None
            producer.flush()
            payloads.append(sent.placed() if sent is not None else None)
        former = replace(event, step=payloads[0], slots_step=payloads[1], attempt=b"")
        producer.send(topics.snapshots, encode(former), key=merged_key(*event.piece), partition=0)
    history = made.history()
    assert history.merged[event.piece].attempt == b""
    assert [leg.piece for leg in history.find_path(event.last, held=event.first).legs] == [event.piece]
    held = history.rebuild(event.first)
    assert history.rebuild(event.last, held=held).digest == made.digests[event.last]
    assert not [finding for finding in made.federation.verify().findings if finding.check == "snapshots"]


def test_a_span_is_taken_together_from_the_longest_pieces_that_are_there() -> None:
    assert spanning((0, 8), []) == [(number, number + 1) for number in range(8)]
    assert spanning((0, 8), [(0, 2), (0, 4), (4, 6), (0, 8), (6, 10)]) == [(0, 4), (4, 6), (6, 7), (7, 8)]


@pytest.mark.parametrize("key", [b"0", b"0+", b"+4", b"a+4", b"1+2+3", b"9" * 20 + b"+2", b"-1+4"])
def test_other_keys_name_no_merged_step(key: bytes) -> None:
    assert piece_of(key) is None
    assert piece_of(merged_key(8, 16)) == (8, 16)


def test_the_cheapest_way_counts_bytes_or_steps_as_asked() -> None:
    rounds = {r: RoundEntry(r, r - 1 if r else None, (0,) if r else None, {}, b"", b"", 10) for r in range(9)}
    merged = [MergedEntry(0, 8, (0,), {}, 100)]
    assert [leg.piece for leg in find_path(8, rounds, {0: 500}, merged).legs] == [(0, 8)]
    assert len(find_path(8, rounds, {0: 500}, merged, least="bytes").legs) == 8
    assert find_path(8, rounds, {0: 500, 8: 60}, merged, held=0, least="bytes").start == 8
