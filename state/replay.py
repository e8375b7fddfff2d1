"""Replay: the state of any round, from the nearest state that is known, by adding or taking away steps.

Which way is gone, `refold.state.paths` says. Replay decides nothing: no rule, clock or random number, only recorded integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refold.schemas.digests import DigestTree
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema
from refold.state.epochs import regrid
from refold.state.fold import fold_chunks, load_chunks
from refold.state.model_state import ModelState
from refold.state.paths import Least, Leg, MergedEntry, Path, Piece, RoundEntry, find_path
from refold.state.step import open_slots

PARAMETERS, SLOTS = "parameters", "slots"

Progress = Callable[[int, int], None]


class PieceBrokenError(IntegrityError):
    """A step or a snapshot that lies on a way cannot be used; another way may do without it.

    Parameters
    ----------
    piece
        The step, or the snapshot's round.
    """

    def __init__(self, message: str, piece: Piece | int, *, hint: str = "", **where: object) -> None:
        super().__init__(message, hint=hint, **where)
        self.piece = piece


class Source(Protocol):
    """Where replay gets bytes. Chunks come in order, each already checked against its digest."""

    def step(self, round_: int, part: str) -> Iterable[bytes]:
        """Return the chunks of a round's step; `part` is `PARAMETERS` or `SLOTS`."""

    def merged(self, piece: Piece, part: str) -> Iterable[bytes]:
        """Return the chunks of a merged step."""

    def snapshot(self, round_: int, part: str) -> Iterable[bytes]:
        """Return the raw chunks of a snapshot."""


def rebuild(
    wanted: int,
    schema: ModelSchema,
    rounds: Mapping[int, RoundEntry],
    snapshots: Iterable[int] | Mapping[int, int],
    source: Source,
    *,
    merged: Mapping[Piece, MergedEntry] | None = None,
    held: ModelState | None = None,
    without: Collection[Piece] = (),
    least: Least = "steps",
    slots: bool = True,
    verify: bool = True,
    threads: int = 1,
    expected: Callable[[int], DigestTree | None] | None = None,
    progress: Progress | None = None,
) -> ModelState:
    """Return the state of a round by the cheapest way.

    Parameters
    ----------
    snapshots, without, least
        As `find_path`.
    merged
        The merged steps there are.
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
    progress
        Told how many bytes of how many were read.

    Raises
    ------
    NotFoundError
        As `find_path`.
    PieceBrokenError
        A step or snapshot on the way cannot be read; names it.
    IntegrityError
        The result is not what was recorded; names the round.
    """
    usable = held if held is not None and (not slots or slots_fit(held, rounds)) else None
    merged = merged or {}
    start = usable.round if usable is not None else None
    path = find_path(wanted, rounds, snapshots, merged.values(), held=start, without=without, least=least)
    state = follow(path, schema, rounds, source, merged=merged, held=usable, slots=slots, threads=threads, progress=progress)
    if verify:
        tree = expected(wanted) if expected else None
        verify_state(state, rounds[wanted], slots=slots, threads=threads, expected=tree)
    return state


def follow(
    path: Path,
    schema: ModelSchema,
    rounds: Mapping[int, RoundEntry],
    source: Source,
    *,
    merged: Mapping[Piece, MergedEntry],
    held: ModelState | None = None,
    slots: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
) -> ModelState:
    """Return the state that a path leads to, unverified; parameters as in `rebuild`.

    Raises
    ------
    PieceBrokenError
        As `rebuild`.
    """
    source = _Counted(source, path.read_bytes, progress) if progress is not None else source
    if held is not None and held.round == path.start:
        state = held
    else:
        state = load_snapshot(rounds[path.start], schema, source, slots=slots, threads=threads)
    if not slots:
        state.slots, state.slot_exponents = {}, {}
    walk(state, path, rounds, source, merged=merged, slots=slots, threads=threads)
    return state


@dataclass(slots=True)
class _Counted:
    """Tells how much of a way was read."""

    source: Source
    total: int
    progress: Progress
    done: int = 0

    def step(self, round_: int, part: str) -> Iterator[bytes]:
        return self._counted(self.source.step(round_, part))

    def merged(self, piece: Piece, part: str) -> Iterator[bytes]:
        return self._counted(self.source.merged(piece, part))

    def snapshot(self, round_: int, part: str) -> Iterator[bytes]:
        return self._counted(self.source.snapshot(round_, part))

    def _counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self.done += len(chunk)
            self.progress(self.done, max(self.done, self.total))


def load_snapshot(
    entry: RoundEntry, schema: ModelSchema, source: Source, *, slots: bool = True, threads: int = 1
) -> ModelState:
    """Return the state that a snapshot holds.

    Raises
    ------
    PieceBrokenError
        The snapshot cannot be read.
    """
    layout = Layout.of(schema)
    state = ModelState(schema.on(entry.lattice), entry.round, _room(layout))
    with _Reading("snapshot", entry.round, entry.round):
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
    state: ModelState,
    path: Path,
    rounds: Mapping[int, RoundEntry],
    source: Source,
    *,
    merged: Mapping[Piece, MergedEntry] | None = None,
    slots: bool = True,
    threads: int = 1,
) -> None:
    """Bring a state along a path, in place. A failure leaves it half changed: throw it away.

    Raises
    ------
    PieceBrokenError
        A step cannot be read, or slots that it opened are not zero before it.
    IntegrityError
        The path leads back out of an epoch.
    """
    for leg in path.legs:
        step = (merged or {})[leg.piece] if leg.merged else rounds[leg.last]
        _fold(state, leg, step, source, slots, threads)
        if not leg.merged and rounds[leg.last].begins_epoch:
            if leg.sign < 0:
                raise IntegrityError("no way leads back onto a finer lattice", round=leg.last)
            regrid(state, rounds[leg.last].lattice)
        if leg.sign < 0 and slots and state.slots and not rounds[leg.first].slot_exponents:
            _close_slots(state, leg)
    state.round = path.end


def verify_state(
    state: ModelState, entry: RoundEntry, *, slots: bool = True, threads: int = 1, expected: DigestTree | None = None
) -> DigestTree:
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


def slots_fit(held: ModelState, rounds: Mapping[int, RoundEntry]) -> bool:
    """Whether a state has the slots of its round; one rebuilt without them has not."""
    return held.round in rounds and dict(held.slot_exponents) == dict(rounds[held.round].slot_exponents)


def _fold(state: ModelState, leg: Leg, step: RoundEntry | MergedEntry, source: Source, slots: bool, threads: int) -> None:
    if step.step_exponents is None:
        return
    layout = Layout.of(state.schema)
    with _Reading("merged step" if leg.merged else "step", leg.last, leg.piece):
        chunks = _chunks(source, leg, PARAMETERS)
        fold_chunks(state.parameters, layout, chunks, step.step_exponents, sign=leg.sign, threads=threads)
        if slots and step.slot_exponents:
            open_slots(state, step.slot_exponents)
            flat, slot_layout = _flat_slots(state)
            fold_chunks(flat, slot_layout, _chunks(source, leg, SLOTS), (0,) * len(flat), sign=leg.sign, threads=threads)


def _chunks(source: Source, leg: Leg, part: str) -> Iterable[bytes]:
    return source.merged(leg.piece, part) if leg.merged else source.step(leg.last, part)


def _flat_slots(state: ModelState) -> tuple[Sequence[Integers], Layout]:
    return [array for arrays in state.slots.values() for array in arrays], Layout.of_slots(state.schema, tuple(state.slots))


def _close_slots(state: ModelState, leg: Leg) -> None:
    if any(array.any() for arrays in state.slots.values() for array in arrays):
        raise PieceBrokenError("slots that this round opened are not zero before it", leg.piece, round=leg.last)
    state.slots, state.slot_exponents = {}, {}


@dataclass(frozen=True, slots=True)
class _Reading:
    """Says of our own bytes that cannot be read whose they are."""

    what: str
    round: int
    piece: Piece | int

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidRecord | IntegrityError):
            raise PieceBrokenError(f"a {self.what} cannot be read: {error}", self.piece, round=self.round) from error
