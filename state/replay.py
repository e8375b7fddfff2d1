"""Replay: the state of any round, from the nearest state that is known, by adding or taking away steps.

Rounds form a tree (a rollback starts a branch), snapshots are known nodes of it, and so may be a state that the caller holds.
The way from a known round to the wanted one goes back to their last common round and forward from there. Replay decides
nothing: no rule, clock or random number, only recorded integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refold.schemas.digests import StateTree
from refold.schemas.errors import IntegrityError, InvalidRecord, NotFoundError
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema
from refold.state.fold import fold_chunks, load_chunks
from refold.state.model_state import ModelState
from refold.state.step import open_slots

PARAMETERS, SLOTS = "parameters", "slots"

SlotExponents = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class RoundEntry:
    """What replay knows of a round.

    Parameters
    ----------
    parent
        The round it was built on; None for round 0.
    step_exponents
        j of each tensor; None where there is no step: round 0, or a void round, whose state is its parent's.
    slot_exponents
        The lattice of the optimizer's slots after this round; empty where there are none yet.
    parameters_digest, state_digest
        What was recorded.
    """

    round: int
    parent: int | None
    step_exponents: tuple[int, ...] | None
    slot_exponents: SlotExponents
    parameters_digest: bytes
    state_digest: bytes


class Source(Protocol):
    """Where replay gets bytes. Chunks come in order, each already checked against its digest."""

    def step(self, round_: int, part: str) -> Iterable[bytes]:
        """Return the chunks of a round's step; `part` is `PARAMETERS` or `SLOTS`."""

    def snapshot(self, round_: int, part: str) -> Iterable[bytes]:
        """Return the raw chunks of a snapshot."""


@dataclass(frozen=True, slots=True)
class Path:
    """The way to a round.

    Parameters
    ----------
    start
        The known round it starts from.
    back
        Rounds whose steps are taken away, newest first.
    forward
        Rounds whose steps are added, oldest first.
    """

    start: int
    back: tuple[int, ...]
    forward: tuple[int, ...]

    @property
    def steps(self) -> int:
        """How many rounds lie on the way."""
        return len(self.back) + len(self.forward)


def find_path(wanted: int, rounds: Mapping[int, RoundEntry], known: Iterable[int]) -> Path:
    """Return the shortest way to `wanted` from any known round; between equals from the one named first.

    Parameters
    ----------
    rounds
        Rounds by number; those that are not known lead nowhere.
    known
        Rounds whose state can be had whole: those with a snapshot, or one that the caller holds.

    Raises
    ------
    NotFoundError
        No such round, or no known round that leads to it.
    """
    if wanted not in rounds:
        raise NotFoundError("no such round", round=wanted, hint=f"the newest is {max(rounds, default=None)}")
    known = list(dict.fromkeys(known))
    if wanted in known:
        return Path(wanted, (), ())
    if known and rounds[wanted].parent == known[0]:
        return Path(known[0], (), (wanted,))  # The next round, which clients ask for all the time: no walk over the whole log.
    ancestors = {round_: distance for distance, round_ in enumerate(_line(wanted, rounds))}
    best: Path | None = None
    for start in known:
        best = _path_from(start, wanted, rounds, ancestors, best.steps if best else None) or best
    if best is None:
        raise NotFoundError("no snapshot leads to this round", round=wanted)
    return best


def rebuild(
    wanted: int,
    schema: ModelSchema,
    rounds: Mapping[int, RoundEntry],
    snapshots: Iterable[int],
    source: Source,
    *,
    held: ModelState | None = None,
    slots: bool = True,
    verify: bool = True,
    threads: int = 1,
    expected: Callable[[int], StateTree | None] | None = None,
) -> ModelState:
    """Return the state of a round.

    Parameters
    ----------
    snapshots
        Rounds that have one.
    held
        A state the caller already has and gives away: it may be changed in place and returned.
    slots
        False rebuilds parameters alone, as clients do.
    verify
        Compare the result's digest with the recorded one.
    threads
        Threads that decode and add; the result does not depend on them.
    expected
        A round's digest tree, if one is at hand: then a difference is named by tensor and block.

    Raises
    ------
    NotFoundError
        As `find_path`.
    IntegrityError
        A step or snapshot cannot be read, or the result is not what was recorded; names the round.
    """
    usable = held if held is not None and (not slots or _slots_fit(held, rounds)) else None
    starts = sorted(snapshots) if usable is None else [usable.round, *sorted(snapshots)]
    path = find_path(wanted, rounds, starts)
    if usable is not None and usable.round == path.start:
        state = usable
    else:
        state = load_snapshot(rounds[path.start], schema, source, slots=slots, threads=threads)
    if not slots:
        state.slots, state.slot_exponents = {}, {}
    walk(state, path, rounds, source, slots=slots, threads=threads)
    if verify:
        tree = expected(wanted) if expected else None
        verify_state(state, rounds[wanted], slots=slots, threads=threads, expected=tree)
    return state


def load_snapshot(
    entry: RoundEntry, schema: ModelSchema, source: Source, *, slots: bool = True, threads: int = 1
) -> ModelState:
    """Return the state that a snapshot holds.

    Raises
    ------
    IntegrityError
        The snapshot cannot be read.
    """
    layout = Layout.of(schema)
    state = ModelState(schema, entry.round, _room(layout))
    with _Reading("snapshot", entry.round):
        load_chunks(state.parameters, layout, source.snapshot(entry.round, PARAMETERS), threads=threads)
        if slots and entry.slot_exponents:
            names = tuple(entry.slot_exponents)
            slot_layout = Layout.of_slots(schema, names)
            flat = _room(slot_layout)
            load_chunks(flat, slot_layout, source.snapshot(entry.round, SLOTS), threads=threads)
            each = len(schema.tensors)
            state.slots = {name: flat[place * each : (place + 1) * each] for place, name in enumerate(names)}
            state.slot_exponents = dict(entry.slot_exponents)
    return state


def _room(layout: Layout) -> list[Integers]:
    """Return arrays to be filled: parts of one for each width, which the system can back with large pages."""
    arrays: list[Integers] = []
    whole: dict[int, Integers] = {
        32: np.empty(sum(size for size, width in zip(layout.sizes, layout.widths, strict=True) if width == 32), np.int32),
        64: np.empty(sum(size for size, width in zip(layout.sizes, layout.widths, strict=True) if width == 64), np.int64),
    }
    for size, width in zip(layout.sizes, layout.widths, strict=True):
        arrays.append(whole[width][:size])
        whole[width] = whole[width][size:]
    return arrays


def walk(
    state: ModelState, path: Path, rounds: Mapping[int, RoundEntry], source: Source, *, slots: bool = True, threads: int = 1
) -> None:
    """Bring a state along a path, in place. A failure leaves it half changed: throw it away.

    Raises
    ------
    IntegrityError
        A step cannot be read, or slots that a round opened are not zero before it.
    """
    for round_ in path.back:
        _fold(state, rounds[round_], source, -1, slots, threads)
        parent = rounds[round_].parent
        if slots and state.slots and parent is not None and not rounds[parent].slot_exponents:
            _close_slots(state, round_)
    for round_ in path.forward:
        _fold(state, rounds[round_], source, 1, slots, threads)
    state.round = path.forward[-1] if path.forward else _landing(path, rounds)


def verify_state(
    state: ModelState, entry: RoundEntry, *, slots: bool = True, threads: int = 1, expected: StateTree | None = None
) -> StateTree:
    """Compare a state with what was recorded of its round, and return its digest tree.

    Raises
    ------
    IntegrityError
        They differ; names the round, and with an expected tree the first tensor and block.
    """
    tree = state.tree(slots=slots, threads=threads)
    if slots:
        same = tree.state_digest == entry.state_digest
    else:
        same = tree.parameters_digest == entry.parameters_digest
    if same:
        return tree
    found = tree.differences(expected) if expected else []
    tensor, block = found[0] if found else (None, None)
    raise IntegrityError(
        "the rebuilt state is not the recorded one",
        hint="rebuild from another snapshot to see whether a snapshot or a step is at fault",
        round=entry.round,
        tensor=tensor,
        block=block,
    )


def _slots_fit(held: ModelState, rounds: Mapping[int, RoundEntry]) -> bool:
    """Whether a state has the slots of its round; one rebuilt without them has not."""
    return held.round in rounds and dict(held.slot_exponents) == dict(rounds[held.round].slot_exponents)


def _line(round_: int, rounds: Mapping[int, RoundEntry]) -> list[int]:
    """Return a round and its ancestors, newest first, as far as they are known."""
    line = []
    following: int | None = round_
    while following is not None and following in rounds:
        line.append(following)
        following = rounds[following].parent
    return line


def _path_from(
    start: int, wanted: int, rounds: Mapping[int, RoundEntry], ancestors: Mapping[int, int], most: int | None
) -> Path | None:
    """Return the way from one known round, or None where there is none shorter than `most`."""
    back: list[int] = []
    at: int | None = start
    while at is not None and at in rounds and at not in ancestors:
        if most is not None and len(back) >= most:
            return None
        back.append(at)
        at = rounds[at].parent
    if at is None or at not in ancestors or (most is not None and len(back) + ancestors[at] >= most):
        return None
    forward: list[int] = []
    following = wanted
    while following != at:
        forward.append(following)
        parent = rounds[following].parent
        assert parent is not None  # `at` is an ancestor of `wanted`.
        following = parent
    return Path(start, tuple(back), tuple(reversed(forward)))


def _landing(path: Path, rounds: Mapping[int, RoundEntry]) -> int:
    if not path.back:
        return path.start
    parent = rounds[path.back[-1]].parent
    assert parent is not None  # A round that was taken away has one.
    return parent


def _fold(state: ModelState, entry: RoundEntry, source: Source, sign: int, slots: bool, threads: int) -> None:
    if entry.step_exponents is None:
        return
    layout = Layout.of(state.schema)
    with _Reading("step", entry.round):
        chunks = source.step(entry.round, PARAMETERS)
        fold_chunks(state.parameters, layout, chunks, entry.step_exponents, sign=sign, threads=threads)
        if slots and entry.slot_exponents:
            open_slots(state, entry.slot_exponents)
            flat, slot_layout = _flat_slots(state)
            fold_chunks(flat, slot_layout, source.step(entry.round, SLOTS), (0,) * len(flat), sign=sign, threads=threads)


def _flat_slots(state: ModelState) -> tuple[Sequence[Integers], Layout]:
    return [array for arrays in state.slots.values() for array in arrays], Layout.of_slots(state.schema, tuple(state.slots))


def _close_slots(state: ModelState, round_: int) -> None:
    if any(array.any() for arrays in state.slots.values() for array in arrays):
        raise IntegrityError("slots that this round opened are not zero before it", round=round_)
    state.slots, state.slot_exponents = {}, {}


@dataclass(frozen=True, slots=True)
class _Reading:
    """Says of our own bytes that cannot be read whose they are."""

    what: str
    round: int

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidRecord):
            raise IntegrityError(f"a {self.what} cannot be read: {error}", round=self.round) from error
