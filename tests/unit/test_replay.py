from collections.abc import Iterable

import numpy as np
import pytest

from refold.schemas.codec import encode_raw
from refold.schemas.errors import IntegrityError, NotFoundError
from refold.schemas.layout import BLOCK, Layout
from refold.state.aggregation import WeightedMean
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import FedAdam, FedAvg, Optimizer
from refold.state.paths import RoundEntry, find_path
from refold.state.replay import PARAMETERS, SLOTS, rebuild
from refold.state.step import Step, compute_step

SIZE = BLOCK + 100


class History:
    """Rounds made one after the other, with every state kept to compare with."""

    def __init__(self, optimizer: Optimizer, *, chunk_bytes: int = 1_000_000) -> None:
        self.rng = np.random.default_rng(17)
        self.optimizer = optimizer
        self.chunk_bytes = chunk_bytes
        weights = self.rng.normal(0, 0.1, SIZE).astype(np.float32)
        self.states = {0: initial_state({"w": weights, "n": np.array([1, 2])})}
        self.rounds = {0: self.entry(self.states[0], None, None)}
        self.steps: dict[int, Step] = {}
        self.reads: list[tuple[str, int, str]] = []
        self.broken: set[tuple[str, int]] = set()

    @property
    def schema(self):  # type: ignore[no-untyped-def]
        return self.states[0].schema

    def entry(self, state: ModelState, parent: int | None, step: Step | None) -> RoundEntry:
        tree = state.tree()
        exponents = step.exponents if step else None
        return RoundEntry(state.round, parent, exponents, dict(state.slot_exponents), tree.parameters_digest, tree.state_digest)

    def add(self, round_: int, parent: int) -> None:
        state = self.states[parent].copy()
        change = np.rint(self.rng.normal(0, 3000, SIZE)).astype(np.int32)
        mean = WeightedMean(self.schema, (0, 0))
        arrays = [change, np.array([round_, -round_])]
        mean.add(((b, arrays[b.tensor][b.elements].copy()) for b in Layout.of(self.schema)), (0, 0), weight=1, index=0)
        step = compute_step(state, mean.result(), self.optimizer)
        assert isinstance(step, Step)
        step.apply(state, round_=round_)
        self.steps[round_], self.states[round_] = step, state
        self.rounds[round_] = self.entry(state, parent, step)

    def add_void(self, round_: int, parent: int) -> None:
        self.states[round_] = self.states[parent].copy()
        self.states[round_].round = round_
        self.rounds[round_] = self.entry(self.states[round_], parent, None)

    def step(self, round_: int, part: str) -> Iterable[bytes]:
        self.reads.append(("step", round_, part))
        step = self.steps[round_]
        chunks = step.encode if part == PARAMETERS else step.encode_slots
        return self.spoilt(("step", round_), chunks(max_chunk_bytes=self.chunk_bytes))

    def snapshot(self, round_: int, part: str) -> Iterable[bytes]:
        self.reads.append(("snapshot", round_, part))
        state = self.states[round_]
        if part == PARAMETERS:
            chunks = encode_raw(state.parameters, Layout.of(self.schema), max_chunk_bytes=self.chunk_bytes)
        else:
            layout = Layout.of_slots(self.schema, tuple(state.slots))
            chunks = encode_raw(
                [a for arrays in state.slots.values() for a in arrays], layout, max_chunk_bytes=self.chunk_bytes
            )
        return self.spoilt(("snapshot", round_), chunks)

    def spoilt(self, name: tuple[str, int], chunks: Iterable[bytes]) -> Iterable[bytes]:
        return (chunk[:-1] for chunk in chunks) if name in self.broken else chunks

    def rebuilt(self, round_: int, *snapshots: int, **options: object) -> ModelState:
        return rebuild(round_, self.schema, self.rounds, snapshots, self, **options)  # type: ignore[arg-type]


def branching(optimizer: Optimizer, **options: int) -> History:
    """Rounds 0 … 4 in a row, 5 void, and a rollback: 6 and 7 built on 2."""
    history = History(optimizer, **options)
    for round_ in (1, 2, 3, 4):
        history.add(round_, round_ - 1)
    history.add_void(5, 4)
    history.add(6, 2)
    history.add(7, 6)
    return history


@pytest.fixture(scope="module", params=[FedAvg(), FedAdam()], ids=["fedavg", "fedadam"])
def history(request: pytest.FixtureRequest) -> History:
    return branching(request.param)


@pytest.fixture(autouse=True)
def _forget_reads(request: pytest.FixtureRequest) -> None:
    if "history" in request.fixturenames:
        held = request.getfixturevalue("history")
        held.reads.clear()
        held.broken.clear()


@pytest.mark.parametrize("snapshots", [(0,), (3,), (4,), (7,), (5,), (0, 6), (1, 4, 7)])
def test_every_round_is_rebuilt_from_any_snapshot(history: History, snapshots: tuple[int, ...]) -> None:
    for round_, state in history.states.items():
        found = history.rebuilt(round_, *snapshots)
        assert found.round == round_
        assert found.digest == state.digest
        assert found.slot_exponents == state.slot_exponents


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_do_not_matter(history: History, threads: int) -> None:
    assert history.rebuilt(7, 4, threads=threads).digest == history.states[7].digest


@pytest.mark.parametrize("chunk_bytes", [1, 300_000])
def test_the_size_of_chunks_does_not_matter(history: History, chunk_bytes: int) -> None:
    other = branching(history.optimizer, chunk_bytes=chunk_bytes)
    assert other.rebuilt(7, 3).digest == history.states[7].digest


def test_the_nearest_snapshot_is_taken_whichever_side_it_lies_on(history: History) -> None:
    history.rebuilt(1, 0, 2, 4)
    assert history.reads[0] == ("snapshot", 0, PARAMETERS)
    history.reads.clear()
    history.rebuilt(3, 0, 4)
    assert history.reads[0] == ("snapshot", 4, PARAMETERS)


def test_a_path_over_a_rollback_goes_back_to_the_common_round(history: History) -> None:
    path = find_path(7, history.rounds, [4])
    assert [(leg.start, leg.end) for leg in path.legs] == [(4, 3), (3, 2), (2, 6), (6, 7)]


def test_a_state_that_is_held_saves_the_snapshot(history: History) -> None:
    found = history.rebuilt(4, 0, 2, held=history.states[3].copy())
    assert found.digest == history.states[4].digest
    assert {(kind, round_) for kind, round_, _ in history.reads} == {("step", 4)}


def test_a_snapshot_that_is_nearer_than_the_held_state_is_taken(history: History) -> None:
    assert history.rebuilt(4, 4, held=history.states[1].copy()).digest == history.states[4].digest


def test_parameters_alone_are_rebuilt_without_reading_slots(history: History) -> None:
    found = history.rebuilt(7, 4, slots=False)
    assert found.parameters_digest == history.states[7].parameters_digest
    assert not found.slots
    assert SLOTS not in {part for _, _, part in history.reads}


def test_a_held_state_without_slots_is_not_a_start_for_one_with_slots(history: History) -> None:
    held = history.rebuilt(3, 0, slots=False)
    assert history.rebuilt(4, 0, held=held).digest == history.states[4].digest


def test_a_round_that_does_not_exist_is_not_found(history: History) -> None:
    with pytest.raises(NotFoundError, match="no such round"):
        history.rebuilt(8, 0)
    with pytest.raises(NotFoundError, match="no snapshot"):
        history.rebuilt(3)


def test_a_line_whose_beginning_is_not_known_is_walked_as_far_as_it_goes(history: History) -> None:
    known = {round_: entry for round_, entry in history.rounds.items() if round_ >= 3}
    assert [leg.end for leg in find_path(4, known, [3]).legs] == [4]
    with pytest.raises(NotFoundError):
        find_path(4, known, [6])


@pytest.mark.parametrize(("broken", "round_"), [(("step", 2), 2), (("snapshot", 1), 1)])
def test_bytes_that_cannot_be_read_are_named_by_their_round(history: History, broken: tuple[str, int], round_: int) -> None:
    history.broken.add(broken)
    with pytest.raises(IntegrityError) as caught:
        history.rebuilt(2, 1)
    assert caught.value.where["round"] == round_


def test_a_result_that_is_not_the_recorded_one_is_located(history: History) -> None:
    held = history.states[3].copy()
    held.parameters[0][BLOCK + 1] += 1
    with pytest.raises(IntegrityError) as caught:
        history.rebuilt(4, held=held, expected=lambda round_: history.states[round_].tree())
    assert caught.value.where == {"round": 4, "tensor": "w", "block": 1}
    unchecked = history.states[3].copy()
    unchecked.parameters[0][0] += 1
    assert history.rebuilt(4, held=unchecked, verify=False).digest != history.states[4].digest


def test_slots_that_a_round_opened_must_be_zero_before_it() -> None:
    history = branching(FedAdam())
    held = history.states[1].copy()
    held.slots["m"][0][5] += 1
    with pytest.raises(IntegrityError, match="not zero"):
        history.rebuilt(0, held=held)
