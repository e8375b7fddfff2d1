"""Any round's state, from the bus: snapshots, steps and the lineage joined for replay."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

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
from refold.schemas.events import Genesis, RoundCommitted, SnapshotTaken
from refold.schemas.model import ModelSchema
from refold.schemas.payload import Payload
from refold.state.model_state import ModelState
from refold.state.replay import PARAMETERS, RoundEntry, find_path, rebuild

log = logging.getLogger("refold.history")


@dataclass(slots=True)
class Chunks:
    """The bytes that replay asks for, read from the bus."""

    lineage: Lineage
    snapshots: dict[int, SnapshotTaken]
    initial: Payload | None
    steps: PayloadReader
    snapshot_chunks: PayloadReader
    deltas: PayloadReader | None

    def step(self, round_: int, part: str) -> Iterable[bytes]:
        """Yield the chunks of a round's step."""
        event = self.lineage.rounds[round_]
        payload = event.step if part == PARAMETERS else event.slots_step
        return self.steps.read(payload) if payload is not None else ()

    def snapshot(self, round_: int, part: str) -> Iterable[bytes]:
        """Yield the chunks of a snapshot; round 0 may come from `deltas`, where genesis put it."""
        taken = self.snapshots.get(round_)
        if taken is None and self.initial is not None and self.deltas is not None:
            return self.deltas.read(self.initial)
        payload = None if taken is None else taken.parameters if part == PARAMETERS else taken.slots
        return self.snapshot_chunks.read(payload) if payload is not None else ()


class History:
    """Follows `rounds` and `snapshots`, and rebuilds states from them.

    Parameters
    ----------
    genesis
        Lets round 0 be read from `deltas`, for those who may read it; clients go without and use the genesis snapshot.
    guard
        Called with every commit of `rounds` before it is folded.
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
    ) -> None:
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
        self._known_rounds: dict[int, RoundEntry] = {}
        self._chunks = Chunks(
            self.rounds.lineage,
            self.snapshots,
            genesis.initial if genesis else None,
            PayloadReader(bus, topics.steps),
            PayloadReader(bus, topics.snapshot_chunks),
            PayloadReader(bus, topics.deltas) if genesis else None,
        )

    @property
    def lineage(self) -> Lineage:
        """The rounds as far as they were read."""
        return self.rounds.lineage

    @property
    def schema(self) -> ModelSchema:
        """The model's schema.

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
        if not key.isdigit() or len(key) > 18:
            return
        self.snapshots.pop(int(key), None)
        try:
            taken = decode(value, SnapshotTaken) if value is not None else None
        except InvalidRecord as error:
            log.warning("snapshot manifest %s cannot be read: %s", key.decode(), error)
            return
        if taken is not None and taken.round == int(key) and self._agrees(taken):
            self.snapshots[taken.round] = taken

    def _agrees(self, taken: SnapshotTaken) -> bool:
        """Whether a snapshot is of this federation and round: the log knows the digests."""
        if self.lineage.state_digest(taken.round) is None:
            self.rounds.read_to_end()  # Its round was committed before it was taken, if it is one of ours.
        return self.lineage.state_digest(taken.round) == taken.state_digest

    def rebuild(
        self,
        round_: int,
        *,
        held: ModelState | None = None,
        slots: bool = True,
        verify: bool = True,
        threads: int = 1,
        start: int | None = None,
    ) -> ModelState:
        """Return a round's state, verified against its recorded digest unless told otherwise.

        A snapshot that turns out to be broken is passed over with a warning, and the next way is taken.

        Parameters
        ----------
        held
            A state to start from, given away.
        start
            Start from the snapshot of this round and no other.

        Raises
        ------
        NotFoundError
            No such round, or nothing leads to it.
        IntegrityError
            No way leads to the recorded state.
        """
        entries = self._entries()
        candidates = self._starts() if start is None else {start} & self._starts()
        while True:
            path = find_path(round_, entries, ([held.round] if held else []) + sorted(candidates))
            try:
                return rebuild(
                    round_,
                    self.schema,
                    entries,
                    sorted(candidates),
                    self._chunks,
                    held=held,
                    slots=slots,
                    verify=verify,
                    threads=threads,
                )
            except IntegrityError as error:
                candidates = candidates - {path.start}
                if held is not None:
                    held = None
                    candidates = self._starts()
                if not candidates:
                    raise
                log.warning("round %d is not to be had from round %d (%s); taking another way", round_, path.start, error)

    def _starts(self) -> set[int]:
        return set(self.snapshots) | ({0} if self._chunks.initial is not None else set())

    def _entries(self) -> dict[int, RoundEntry]:
        """Return every round as replay knows it; rounds are never reused, so only new ones are looked at."""
        opened = self.lineage.opened
        if opened is None:
            raise NotFoundError("the federation is not open yet", hint="start its server: `refold serve`")
        entries = self._known_rounds
        entries.setdefault(0, RoundEntry(0, None, None, {}, opened.parameters_digest, opened.state_digest))
        for round_ in range(len(entries), self.lineage.head + 1):
            entries[round_] = _entry(self.lineage.rounds[round_])
        return entries

    def close(self) -> None:
        """Let go of the readers."""
        self.rounds.close()
        self._manifests.close()
        for reader in (self._chunks.steps, self._chunks.snapshot_chunks, self._chunks.deltas):
            if reader:
                reader.close()


def _entry(event: RoundCommitted) -> RoundEntry:
    return RoundEntry(
        event.round,
        event.parent,
        event.step_exponents if event.step is not None else None,
        dict(event.slot_exponents),
        event.parameters_digest,
        event.state_digest,
    )
