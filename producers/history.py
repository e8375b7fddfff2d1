"""Any round's state, from the bus: snapshots, steps and the lineage joined for replay."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from refold.bus.contract import Bus, Place
from refold.bus.payloads import PayloadReader
from refold.bus.topics import Topics
from refold.producers.lineage import (
    Guard,
    KeyListener,
    Lineage,
    LineageReader,
    Listener,
    NoticeListener,
    RoundListener,
)
from refold.schemas.canonical import decode
from refold.schemas.errors import IntegrityError, InvalidRecord, NotFoundError
from refold.schemas.events import Genesis, RoundCommitted, SnapshotTaken, StepsMerged
from refold.schemas.merged import piece_of
from refold.schemas.model import ModelSchema
from refold.schemas.payload import Payload
from refold.state.model_state import ModelState
from refold.state.paths import Least, MergedEntry, Path, Piece, RoundEntry, find_path
from refold.state.replay import PARAMETERS, PieceBrokenError, Progress, follow, slots_fit, verify_state

log = logging.getLogger("refold.history")

T = TypeVar("T")


@dataclass(slots=True)
class Chunks:
    """The bytes that replay asks for, read from the bus.

    Parameters
    ----------
    from_genesis
        Round 0 is read from where genesis put it, though it has a snapshot.
    """

    lineage: Lineage
    snapshots: dict[int, SnapshotTaken]
    initial: Payload | None
    steps: PayloadReader
    snapshot_chunks: PayloadReader
    deltas: PayloadReader | None
    merged_steps: dict[Piece, StepsMerged] = field(default_factory=dict)
    from_genesis: bool = False

    def step(self, round_: int, part: str) -> Iterable[bytes]:
        """Yield the chunks of a round's step."""
        event = self.lineage.rounds[round_]
        payload = event.step if part == PARAMETERS else event.slots_step
        return self.steps.read(payload) if payload is not None else ()

    def merged(self, piece: Piece, part: str) -> Iterable[bytes]:
        """Yield the chunks of a merged step."""
        event = self.merged_steps[piece]
        payload = event.step if part == PARAMETERS else event.slots_step
        reader = self.snapshot_chunks if event.attempt else self.steps
        return reader.read(payload) if payload is not None else ()

    def snapshot(self, round_: int, part: str) -> Iterable[bytes]:
        """Yield the chunks of a snapshot; round 0 may come from `deltas`, where genesis put it."""
        taken = self.snapshots.get(round_) if round_ or not self.from_genesis else None
        if taken is None and self.initial is not None and self.deltas is not None:
            return self.deltas.read(self.initial)
        payload = None if taken is None else taken.parameters if part == PARAMETERS else taken.slots
        return self.snapshot_chunks.read(payload) if payload is not None else ()

    def turn_to_genesis(self) -> bool:
        """Read round 0 from where genesis put it; return whether that is another place than before."""
        turned = self.initial is not None and 0 in self.snapshots and not self.from_genesis
        self.from_genesis = self.from_genesis or turned
        return turned


class History:
    """Follows `rounds` and `snapshots`, and rebuilds states from them.

    Parameters
    ----------
    genesis
        Lets round 0 be read from `deltas`, for those who may read it; clients go without and use the genesis snapshot.
    guard
        Called with every commit of `rounds` before it is folded.
    slots
        False for who never asks for optimizer slots: ways are then compared without their bytes.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        *,
        genesis: Genesis | None = None,
        on_receipt: Listener | None = None,
        on_round: RoundListener | None = None,
        on_key: KeyListener | None = None,
        on_notice: NoticeListener | None = None,
        guard: Guard | None = None,
        slots: bool = True,
    ) -> None:
        self._slots = slots
        self._bus = bus
        self._topics = topics
        self.rounds = LineageReader(
            bus,
            topics,
            on_receipt=on_receipt,
            on_round=on_round,
            on_key=on_key,
            on_notice=on_notice,
            guard=guard,
        )
        self._place = Place(topics.snapshots, 0)
        self._manifests = bus.consumer()
        self._manifests.assign([self._place])
        self.snapshots: dict[int, SnapshotTaken] = {}
        self.merged: dict[Piece, StepsMerged] = {}
        self._known_rounds: dict[int, RoundEntry] = {}
        self._known_merged: dict[Piece, MergedEntry] = {}
        self._chunks = Chunks(
            self.rounds.lineage,
            self.snapshots,
            genesis.initial if genesis else None,
            PayloadReader(bus, topics.steps),
            PayloadReader(bus, topics.snapshot_chunks, near_records=0),
            PayloadReader(bus, topics.deltas) if genesis else None,
            self.merged,
        )

    @property
    def lineage(self) -> Lineage:
        """The rounds as far as they were read."""
        return self.rounds.lineage

    @property
    def schema(self) -> ModelSchema:
        """The model's schema, on the lattice that it was founded with.

        Raises
        ------
        NotFoundError
            The federation is not open yet.
        """
        if self.lineage.opened is None:
            raise NotFoundError("the federation is not open yet", hint="start its server: `refold serve`")
        return self.lineage.opened.schema

    def refresh(self) -> Lineage:
        """Take in all rounds and snapshot manifests that are there now."""
        self.rounds.read_to_end()
        end = self._bus.end_offset(self._place)
        while self._manifests.position(self._place) < end:
            for record in self._manifests.poll(1.0):
                self._take_manifest(record.key or b"", record.value)
        return self.lineage

    def _take_manifest(self, key: bytes, value: bytes | None) -> None:
        """Take the newest value of each key; a manifest that cannot be read is as good as none."""
        piece = piece_of(key)
        if piece is not None:
            self.merged.pop(piece, None)
            self._take_merged(piece, value)
        elif key.isdigit() and len(key) <= 18:
            self.snapshots.pop(int(key), None)
            self._take_snapshot(int(key), value)

    def _take_snapshot(self, round_: int, value: bytes | None) -> None:
        taken = _read_manifest(value, SnapshotTaken, f"round {round_}")
        if taken is not None and taken.round == round_ and self._agrees(taken.round, taken.state_digest):
            self.snapshots[round_] = taken

    def _take_merged(self, piece: Piece, value: bytes | None) -> None:
        made = _read_manifest(value, StepsMerged, f"the merged step {piece}")
        if made is None or made.piece != piece:
            return
        if self._agrees(made.last, made.last_digest) and self._agrees(made.first, made.first_digest):
            self.merged[piece] = made

    def _agrees(self, round_: int, state_digest: bytes) -> bool:
        """Whether a manifest is of this federation and round: the log knows the digests."""
        if self.lineage.state_digest(round_) is None:
            self.rounds.read_to_end()  # Its round was committed before it was written, if it is one of ours.
        return self.lineage.state_digest(round_) == state_digest

    def find_path(
        self,
        round_: int,
        *,
        held: int | None = None,
        start: int | None = None,
        without: Collection[Piece | int] = (),
        least: Least = "steps",
    ) -> Path:
        """Return the cheapest way to a round as the log stands; parameters as in `rebuild`.

        Parameters
        ----------
        held
            A round whose state costs nothing.
        without
            Steps and snapshots that are not to be had.
        """
        steps = {piece for piece in without if isinstance(piece, tuple)}
        starts = {known: size for known, size in self._starts(start).items() if known not in without}
        return find_path(
            round_, self._entries(), starts, self._merged_entries().values(), held=held, without=steps, least=least
        )

    def rebuild(
        self,
        round_: int,
        *,
        held: ModelState | None = None,
        slots: bool = True,
        verify: bool = True,
        threads: int = 1,
        start: int | None = None,
        least: Least = "steps",
        progress: Progress | None = None,
    ) -> ModelState:
        """Return a round's state, verified against its recorded digest unless told otherwise.

        A snapshot or step that turns out to be broken is passed over with a warning, and the next way is taken.

        Parameters
        ----------
        held
            A state to start from, given away.
        start
            Start from the snapshot of this round and no other.
        least
            What the way is chosen by, as in `find_path`.
        progress
            Told how many bytes of how many were read.

        Raises
        ------
        NotFoundError
            No such round, or nothing leads to it.
        IntegrityError
            No way leads to the recorded state.
        """
        entries = self._entries()
        without: set[Piece | int] = set()
        self._chunks.from_genesis = False
        failure: IntegrityError | None = None
        if held is not None and slots and not slots_fit(held, entries):
            held = None
        while True:
            try:
                path = self.find_path(round_, held=held.round if held else None, start=start, without=without, least=least)
            except NotFoundError as error:
                raise failure or error from None
            is_held = held is not None and held.round == path.start
            try:
                state = self._follow(path, held, slots=slots, threads=threads, progress=progress)
                if verify:
                    verify_state(state, entries[round_], slots=slots, threads=threads)
                return state
            except IntegrityError as error:
                suspects = _suspects(path, error, is_held=is_held)
                without |= suspects - {0} if 0 in suspects and self._chunks.turn_to_genesis() else suspects
                failure, held = error, None
                log.warning("round %d is not to be had from round %d (%s); taking another way", round_, path.start, error)

    def _follow(
        self, path: Path, held: ModelState | None, *, slots: bool, threads: int, progress: Progress | None
    ) -> ModelState:
        return follow(
            path,
            self.schema,
            self._entries(),
            self._chunks,
            merged=self._merged_entries(),
            held=held,
            slots=slots,
            threads=threads,
            progress=progress,
        )

    def _starts(self, only: int | None = None) -> dict[int, int]:
        """Return the rounds whose state lies somewhere whole, with its bytes; of one alone if told so."""
        found = {round_: _sizes(taken.parameters, taken.slots, self._slots) for round_, taken in self.snapshots.items()}
        if self._chunks.initial is not None:
            found.setdefault(0, _size(self._chunks.initial))
        return found if only is None else {round_: size for round_, size in found.items() if round_ == only}

    def _entries(self) -> dict[int, RoundEntry]:
        """Return every round as replay knows it; rounds are never reused, so only new ones are looked at."""
        opened = self.lineage.opened
        if opened is None:
            raise NotFoundError("the federation is not open yet", hint="start its server: `refold serve`")
        entries = self._known_rounds
        entries.setdefault(0, RoundEntry(0, None, None, {}, opened.parameters_digest, opened.state_digest))
        for round_ in range(len(entries), self.lineage.head + 1):
            entries[round_] = entry_of(self.lineage.rounds[round_], self.lineage, slots=self._slots)
        return entries

    def _merged_entries(self) -> dict[Piece, MergedEntry]:
        for piece in self._known_merged.keys() - self.merged.keys():
            del self._known_merged[piece]
        for piece in self.merged.keys() - self._known_merged.keys():
            self._known_merged[piece] = merged_entry_of(self.merged[piece], slots=self._slots)
        return self._known_merged

    def close(self) -> None:
        """Let go of the readers."""
        self.rounds.close()
        self._manifests.close()
        for reader in (self._chunks.steps, self._chunks.snapshot_chunks, self._chunks.deltas):
            if reader:
                reader.close()


def entry_of(event: RoundCommitted, lineage: Lineage, *, slots: bool = True) -> RoundEntry:
    """Return what replay knows of a committed round that the lineage holds; its bytes with those of the slots or without."""
    return RoundEntry(
        event.round,
        event.parent,
        event.step_exponents if event.step is not None else None,
        dict(event.slot_exponents),
        event.parameters_digest,
        event.state_digest,
        _sizes(event.step, event.slots_step, slots),
        lineage.epochs.of(event.round).lattice,
        event.round in lineage.regrids,
    )


def merged_entry_of(event: StepsMerged, *, slots: bool = True) -> MergedEntry:
    """Return what replay knows of a merged step; its bytes with those of the slots or without."""
    size = _sizes(event.step, event.slots_step, slots)
    return MergedEntry(event.first, event.last, event.step_exponents, dict(event.slot_exponents), size)


def _sizes(parameters: Payload | None, of_slots: Payload | None, slots: bool) -> int:
    return _size(parameters) + (_size(of_slots) if slots else 0)


def _size(payload: Payload | None) -> int:
    return payload.size_bytes if payload is not None else 0


def _read_manifest(value: bytes | None, kind: type[T], what: str) -> T | None:
    try:
        return decode(value, kind) if value is not None else None
    except InvalidRecord as error:
        log.warning("the manifest of %s cannot be read: %s", what, error)
        return None


def _suspects(path: Path, error: IntegrityError, *, is_held: bool) -> set[Piece | int]:
    """Return what to do without after a failure: the piece that could not be read, else what the log does not hold itself.

    Where the result was another state than the recorded one, that is the merged steps, or where there were none the state
    that the way began with.
    """
    if isinstance(error, PieceBrokenError):
        return {error.piece}
    merged: set[Piece | int] = {leg.piece for leg in path.legs if leg.merged}
    if merged or is_held:
        return merged
    return {path.start}
