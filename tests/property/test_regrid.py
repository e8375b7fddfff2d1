"""I4 across epochs: values grow until they overflow, the lattice becomes coarser, and every way to a round gives its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refold.schemas.codec import encode_raw
from refold.schemas.errors import IntegrityError, NotFoundError
from refold.schemas.layout import Layout
from refold.state.aggregation import WeightedMean
from refold.state.epochs import Epochs, coarser, regrid, round_off
from refold.state.lattice import MIN_EXPONENT
from refold.state.merging import Part, due, is_line, merge
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import FedAvgM
from refold.state.paths import Leg, MergedEntry, Path, Piece, RoundEntry, find_path
from refold.state.replay import PARAMETERS, rebuild, walk
from refold.state.step import Step, Void, compute_step

SIZES = {"w": 40, "b": 7}


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40), st.integers(1, 80))
def test_rounding_off_is_to_the_nearest_and_ties_go_to_even(values: list[int], bits: int) -> None:
    integers = np.array(values, np.int32)
    round_off(integers, bits)
    assert integers.tolist() == [round(Fraction(value, 1 << bits)) for value in values]


class Grown:
    """Rounds whose tensors grow at will; void ones are answered by a coarser lattice, as a federation does."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        tensors = {name: self.rng.normal(0, 0.3, size).astype("f4") for name, size in SIZES.items()}
        first = initial_state(tensors | {"n": np.array([1, 2])})
        self.schema, self.epochs, self.head = first.schema, Epochs(), 0
        self.states = {0: first}
        self.rounds = {0: self.entry(first, None)}
        self.steps: dict[int, Step] = {}
        self.sums: dict[Piece, tuple[list[bytes], list[bytes]]] = {}
        self.merged: dict[Piece, MergedEntry] = {}

    def entry(self, state: ModelState, parent: int | None, step: Step | None = None, *, begins: bool = False) -> RoundEntry:
        tree, lattice = state.tree(), self.epochs.of(state.round).lattice
        digests = tree.parameters_digest, tree.state_digest
        exponents = step.exponents if step else None
        return RoundEntry(state.round, parent, exponents, dict(state.slot_exponents), *digests, 0, lattice, begins)

    def add(self, growth: float) -> Step | Void:
        """Make a round: each tensor is asked to grow by this share of what its lattice holds."""
        state = self.states[self.head].copy()
        changes = [np.rint(self.rng.uniform(-1, 1, size) * growth * 2.0**31) for size in SIZES.values()]
        arrays = [np.clip(change, -(2**27), 2**27).astype(np.int32) for change in changes] + [np.array([self.head, 5])]
        mean = WeightedMean(state.schema, (0, 0, 0))
        blocks = ((block, arrays[block.tensor][block.elements].copy()) for block in Layout.of(state.schema))
        mean.add(blocks, (0, 0, 0), weight=1, index=0)
        step = compute_step(state, mean.result(), FedAvgM(beta=0.9))
        parent = self.head
        self.epochs.add(parent + 1, parent)
        if isinstance(step, Step):
            step.apply(state, round_=parent + 1)
            self.steps[parent + 1] = step
        state.round = parent + 1
        self.take(state, parent, step if isinstance(step, Step) else None)
        return step

    def regrid(self, void: Void) -> None:
        """Answer a void round."""
        parent = self.rounds[self.head].parent
        assert parent is not None
        state = self.states[parent].copy()
        lattice = coarser(state.schema, void.beyond)
        assert lattice is not None
        regrid(state, lattice)
        state.round = self.head + 1
        self.epochs.add(state.round, parent, lattice)
        self.take(state, parent, begins=True)

    def roll_back(self, parent: int) -> None:
        """Open a round on an earlier one."""
        state = self.states[parent].copy()
        state.round = self.head + 1
        self.epochs.add(state.round, parent)
        self.take(state, parent)

    def take(self, state: ModelState, parent: int, step: Step | None = None, *, begins: bool = False) -> None:
        self.head = state.round
        self.states[state.round] = state
        self.rounds[state.round] = self.entry(state, parent, step, begins=begins)

    def merge(self) -> None:
        """Merge whatever may be merged."""
        for piece in due(self.head):
            if is_line(piece, lambda round_: self.rounds[round_].parent):
                steps = [self.steps[r] for r in range(piece[0] + 1, piece[1] + 1) if r in self.steps]
                parts = [Part(s.exponents, lambda s=s: s.encode(), lambda s=s: s.encode_slots()) for s in steps]  # type: ignore[misc]
                slots = self.rounds[piece[1]].slot_exponents
                total = merge(self.schema, parts, slots)
                self.sums[piece] = list(total.encode()), list(total.encode_slots())
                self.merged[piece] = MergedEntry(*piece, total.exponents, slots)

    def step(self, round_: int, part: str) -> Iterable[bytes]:
        return self.steps[round_].encode() if part == PARAMETERS else self.steps[round_].encode_slots()

    def merged_chunks(self, piece: Piece, part: str) -> Iterable[bytes]:
        return self.sums[piece][part != PARAMETERS]

    def snapshot(self, round_: int, part: str) -> Iterable[bytes]:
        state = self.states[round_]
        if part == PARAMETERS:
            return encode_raw(state.parameters, Layout.of(self.schema))
        flat = [array for arrays in state.slots.values() for array in arrays]
        return encode_raw(flat, Layout.of_slots(self.schema, tuple(state.slots)))


class Source:
    """The rounds' bytes, as replay asks for them."""

    def __init__(self, grown: Grown) -> None:
        self.step, self.merged, self.snapshot = grown.step, grown.merged_chunks, grown.snapshot


def grow(grown: Grown, growths: list[float]) -> int:
    """Make rounds, each void one followed by a coarser lattice; a growth of −1 goes back to half of the rounds."""
    begun = 0
    for growth in growths:
        if growth < 0 and grown.head > 1:
            grown.roll_back(grown.head // 2)
            continue
        outcome = grown.add(abs(growth))
        if isinstance(outcome, Void):
            grown.regrid(outcome)
            begun += 1
    return begun


def assert_every_way_agrees(grown: Grown) -> None:
    """Rebuild every round from every snapshot that leads to it, by single steps and merged ones, on one thread and two."""
    grown.merge()
    source, apart = Source(grown), 0
    for wanted, entry in grown.rounds.items():
        for start in range(wanted % 3, len(grown.rounds), 3):
            for merged in ({}, grown.merged):
                try:
                    state = rebuild(wanted, grown.schema, grown.rounds, [start], source, merged=merged, threads=1 + start % 2)
                except NotFoundError:
                    apart += 1
                    continue
                assert state.digest == entry.state_digest
                assert state.schema == grown.states[wanted].schema
        assert rebuild(wanted, grown.schema, grown.rounds, [0], source).digest == entry.state_digest
        held = grown.states[0].copy()
        assert rebuild(wanted, grown.schema, grown.rounds, [], source, held=held).digest == entry.state_digest
    assert not apart or any(entry.begins_epoch for entry in grown.rounds.values())


GROWTHS = st.lists(st.sampled_from([0.02, 0.06, 0.06, 0.06, -1.0]), min_size=1, max_size=14)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), GROWTHS)
def test_every_way_to_a_round_gives_its_bytes_whatever_epochs_lie_between(seed: int, growths: list[float]) -> None:
    grown = Grown(seed)
    grow(grown, growths)
    assert_every_way_agrees(grown)


def test_values_that_grow_for_ever_are_held_on_ever_coarser_lattices(seed: int) -> None:
    grown = Grown(seed)
    begun = 0
    while begun < 2 or grown.head < 12:  # A walk at random: 10 to 40 rounds.
        begun += grow(grown, [0.06])
    assert_every_way_agrees(grown)
    assert len(grown.steps) > len(grown.rounds) // 2, "most rounds are applied"


def test_no_way_leads_back_out_of_an_epoch_and_no_merged_step_crosses_its_beginning(seed: int) -> None:
    grown = Grown(seed)
    grow(grown, [0.06] * 20)
    grown.merge()
    begun = next(round_ for round_, entry in grown.rounds.items() if entry.begins_epoch)
    assert grown.merged
    assert not [piece for piece in grown.merged if piece[0] < begun <= piece[1]]
    with pytest.raises(NotFoundError):
        find_path(0, grown.rounds, [begun], grown.merged.values())
    parent = grown.rounds[begun].parent
    assert parent is not None
    with pytest.raises(IntegrityError, match="finer lattice"):
        walk(grown.states[begun].copy(), Path(begun, (Leg(parent, begun, -1),)), grown.rounds, Source(grown))


def test_a_rollback_goes_back_to_the_lattice_of_its_round(seed: int) -> None:
    grown = Grown(seed)
    grow(grown, [0.06] * 20)
    grown.roll_back(3)
    assert grown.epochs.of(grown.head).first == 0
    assert rebuild(grown.head, grown.schema, grown.rounds, [0], Source(grown)).schema == grown.schema


def test_a_lattice_becomes_coarser_for_the_tensors_named_alone_and_has_an_end(seed: int) -> None:
    schema = Grown(seed).schema
    before = [tensor.exponent for tensor in schema.tensors]
    assert coarser(schema, [1]) == (before[0], before[1] - 6, 0)
    assert coarser(schema, []) is coarser(schema, [2]) is None
    assert coarser(schema.on((MIN_EXPONENT + 5, before[1], 0)), [0]) is None


def test_a_state_comes_onto_no_finer_lattice(seed: int) -> None:
    state = Grown(seed).states[0]
    finer = (state.schema.tensors[0].exponent + 1, *(tensor.exponent for tensor in state.schema.tensors[1:]))
    for lattice in (finer, finer[:1], (*(tensor.exponent for tensor in state.schema.tensors[:2]), -1)):
        with pytest.raises(IntegrityError, match="finer lattice"):
            regrid(state.copy(), lattice)


def test_a_change_that_is_not_finite_or_beyond_the_dtype_asks_for_no_other_lattice() -> None:
    state = initial_state({"h": np.full(4, 60000, "f2"), "n": np.array(1)})
    mean = WeightedMean(state.schema, (0, 0))
    arrays = [np.full(4, (1 << 27), np.int32), np.array([1])]
    mean.add(((b, arrays[b.tensor][b.elements].copy()) for b in Layout.of(state.schema)), (0, 0), weight=1, index=0)
    outcome = compute_step(state, mean.result(), FedAvgM(lr=100.0))
    assert isinstance(outcome, Void)
    assert outcome.beyond == ()
