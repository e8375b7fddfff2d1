"""Which way leads to a round: the cheapest, over single and merged steps, from any state that can be had whole.

Rounds form a tree (a rollback starts a branch). An edge joins a round to its parent, by its own step, or to an ancestor, by a
merged step; either can be gone both ways, except into a round that began an epoch (a coarser lattice), which only goes forward.
Known rounds are those that have a snapshot, or one that the caller holds.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from refold.schemas.errors import NotFoundError

SlotExponents = Mapping[str, tuple[int, ...]]
Least = Literal["bytes", "steps"]
Piece = tuple[int, int]
"""The round before a step and the round after it: a single step's are a parent and its child."""


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
    step_bytes
        Bytes of its step, that of the slots included.
    lattice
        The exponent E of each tensor; empty where it is the schema's own.
    begins_epoch
        Its state is its parent's on this lattice, which is a coarser one.
    """

    round: int
    parent: int | None
    step_exponents: tuple[int, ...] | None
    slot_exponents: SlotExponents
    parameters_digest: bytes
    state_digest: bytes
    step_bytes: int = 0
    lattice: tuple[int, ...] = ()
    begins_epoch: bool = False


@dataclass(frozen=True, slots=True)
class MergedEntry:
    """What replay knows of a merged step: the exact sum of the steps of the rounds after `first` up to `last`.

    Parameters
    ----------
    step_exponents
        j of each tensor.
    slot_exponents
        The lattice of the optimizer's slots after `last`.
    step_bytes
        As in `RoundEntry`.
    """

    first: int
    last: int
    step_exponents: tuple[int, ...]
    slot_exponents: SlotExponents
    step_bytes: int = 0

    @property
    def piece(self) -> Piece:
        """What names it among all steps."""
        return self.first, self.last


@dataclass(frozen=True, slots=True)
class Leg:
    """One step of a way, added (sign 1) or taken away (sign −1); `merged` where it is one of several rounds."""

    first: int
    last: int
    sign: int
    merged: bool = False

    @property
    def start(self) -> int:
        """The round before this leg is gone."""
        return self.first if self.sign > 0 else self.last

    @property
    def end(self) -> int:
        """The round after it."""
        return self.last if self.sign > 0 else self.first

    @property
    def piece(self) -> Piece:
        """What names the step among all."""
        return self.first, self.last


@dataclass(frozen=True, slots=True)
class Path:
    """The way to a round.

    Parameters
    ----------
    start
        The known round it starts from.
    legs
        The steps, in the order in which they are gone.
    read_bytes
        What is read on the way: the steps', and the snapshot's where it starts from one.
    """

    start: int
    legs: tuple[Leg, ...]
    read_bytes: int = 0

    @property
    def end(self) -> int:
        """The round it leads to."""
        return self.legs[-1].end if self.legs else self.start


Cost = tuple[int, int]


def find_path(
    wanted: int,
    rounds: Mapping[int, RoundEntry],
    known: Iterable[int] | Mapping[int, int],
    merged: Iterable[MergedEntry] = (),
    *,
    held: int | None = None,
    without: Collection[Piece] = (),
    least: Least = "steps",
) -> Path:
    """Return the cheapest way to `wanted` from any known round.

    Parameters
    ----------
    rounds
        Rounds by number; those that are not known lead nowhere.
    known
        Rounds that have a snapshot, with its bytes where they are known.
    held
        A round whose state the caller has: it costs nothing.
    without
        Steps that are not to be had.
    least
        What makes a way cheap: ``steps``, the time of who has log and processor side by side (reading a snapshot counts as
        one), or ``bytes``, that of a client behind a thin line. The other one decides between equals.

    Raises
    ------
    NotFoundError
        No such round, or no known round that leads to it.
    """
    if wanted not in rounds:
        raise NotFoundError("no such round", round=wanted, hint=f"the newest is {max(rounds, default=None)}")
    if held is not None and held in (wanted, rounds[wanted].parent) and (held, wanted) not in without:
        # The next round, which clients ask for all the time: no search over the whole log.
        legs = () if held == wanted else (Leg(held, wanted, 1),)
        return Path(held, legs, rounds[wanted].step_bytes if legs else 0)
    starts = {round_: (1, size) for round_, size in _sized(known)}
    if held is not None:
        starts[held] = (0, 0)
    found = _search(wanted, _Ways(rounds, merged, without), starts, by_bytes=least == "bytes")
    if found is None:
        raise NotFoundError("no snapshot leads to this round", round=wanted)
    return found


def _sized(known: Iterable[int] | Mapping[int, int]) -> Iterable[tuple[int, int]]:
    return known.items() if isinstance(known, Mapping) else ((round_, 0) for round_ in known)


class _Ways:
    """The legs that end at a round."""

    def __init__(self, rounds: Mapping[int, RoundEntry], merged: Iterable[MergedEntry], without: Collection[Piece]) -> None:
        self._rounds = rounds
        self._without = without
        self._children: dict[int, list[int]] = {}
        for entry in rounds.values():
            if entry.parent is not None:
                self._children.setdefault(entry.parent, []).append(entry.round)
        self._merged: dict[int, list[MergedEntry]] = {}
        for piece in merged:
            for end in piece.piece:
                self._merged.setdefault(end, []).append(piece)

    def into(self, round_: int) -> Iterator[tuple[Leg, Cost]]:
        """Yield the legs that end here, each with its steps and bytes."""
        entry = self._rounds[round_]
        if entry.parent is not None and entry.parent in self._rounds:
            yield from self._single(entry, 1)
        for child in self._children.get(round_, ()):
            if not self._rounds[child].begins_epoch:
                yield from self._single(self._rounds[child], -1)
        for piece in self._merged.get(round_, ()):
            if piece.piece not in self._without:
                yield Leg(*piece.piece, 1 if piece.last == round_ else -1, merged=True), (1, piece.step_bytes)

    def _single(self, entry: RoundEntry, sign: int) -> Iterator[tuple[Leg, Cost]]:
        assert entry.parent is not None
        if (entry.parent, entry.round) not in self._without:
            yield Leg(entry.parent, entry.round, sign), (int(entry.step_exponents is not None), entry.step_bytes)


def _search(wanted: int, ways: _Ways, starts: Mapping[int, Cost], *, by_bytes: bool) -> Path | None:
    """Go from the wanted round outwards, cheapest first, until no known round can be cheaper than the best one found.

    Source: Dijkstra, "A note on two problems in connexion with graphs", 1959.
    """
    following: dict[int, Leg | None] = {}
    waiting: list[tuple[Cost, int, int, Leg | None]] = [((0, 0), 0, wanted, None)]
    best: tuple[Cost, int, int] | None = None
    seen = 0
    while waiting and (best is None or waiting[0][0] < best[0]):
        cost, _, round_, leg = heapq.heappop(waiting)
        if round_ in following:
            continue
        following[round_] = leg
        if round_ in starts:
            whole = _plus(cost, starts[round_], by_bytes=by_bytes)
            if best is None or whole < best[0]:
                best = whole, round_, whole[0 if by_bytes else 1]
        for way, price in ways.into(round_):
            if way.start not in following:
                seen += 1
                heapq.heappush(waiting, (_plus(cost, price, by_bytes=by_bytes), seen, way.start, way))
    return None if best is None else Path(best[1], tuple(_legs(best[1], following)), best[2])


def _plus(cost: Cost, price: Cost, *, by_bytes: bool) -> Cost:
    """Add steps and bytes to a cost whose first part decides."""
    steps, size = price
    return (cost[0] + size, cost[1] + steps) if by_bytes else (cost[0] + steps, cost[1] + size)


def _legs(start: int, following: Mapping[int, Leg | None]) -> Iterator[Leg]:
    leg = following[start]
    while leg is not None:
        yield leg
        leg = following[leg.end]
