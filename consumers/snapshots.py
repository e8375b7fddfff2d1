"""Group `snapshots`: takes and prunes snapshots by policy and merges steps, beside training. One member is active.

What it does about merged steps, `refold.consumers.merging` says; about steps that cannot be read, `refold.consumers.mending`.

A snapshot is written in this order:

1. Its chunks are acknowledged in `snapshot-chunks`, under keys of this attempt alone. A crash after this leaves an attempt that
   no manifest names; the sweeper removes it once it is older than the grace.
2. Its manifest is acknowledged in `snapshots`. Only now is it a snapshot.

One is pruned in this order:

1. The manifest's tombstone. A crash after this leaves chunks for the sweeper.
2. The chunks' tombstones.

A snapshot only saves time. It is never trusted over the log, which holds its digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from refold.bus.closing import close_all
from refold.bus.contract import Place
from refold.bus.payloads import Sent, send_payload
from refold.bus.ranges import records_in
from refold.bus.topics import event_headers
from refold.consumers.mending import Mending
from refold.consumers.merging import Merging
from refold.consumers.modelcheck import Evaluation, ModelCheck
from refold.consumers.sealing import SealingKeys
from refold.consumers.snapshot_facts import SnapshotFacts
from refold.consumers.standby import Seat, Standby
from refold.producers.history import History
from refold.schemas.canonical import encode
from refold.schemas.codec import encode_raw
from refold.schemas.errors import IntegrityError
from refold.schemas.events import SnapshotTaken
from refold.schemas.layout import Layout
from refold.state.model_state import ModelState

GRACE_MS = 3_600_000
"""Age of an attempt without a manifest after which its chunks are swept."""


class Snapshots(Standby):
    """One member of the group."""

    name = "snapshots"

    def __init__(self, seat: Seat, *, keys: SealingKeys | None = None, evaluation: Evaluation | None = None) -> None:
        keys = keys or SealingKeys()
        super().__init__(seat, topic=seat.topics.rounds, start=lambda seat: _Active(seat, keys, evaluation))


class _Active:
    """The member that holds the place."""

    def __init__(self, seat: Seat, keys: SealingKeys, evaluation: Evaluation | None) -> None:
        bus, topics, genesis, clock = seat.bus, seat.topics, seat.genesis, seat.clock
        self._bus, self._topics, self._clock, self._member = bus, topics, clock, seat.member
        self._history = History(bus, topics, genesis=genesis)
        self._producer = bus.producer()
        self._partitions = bus.topics()[topics.snapshot_chunks].partitions
        self._state: ModelState | None = None
        self._check = ModelCheck(bus, topics, self._history, clock, seat.log_key, evaluation)
        self._facts = SnapshotFacts(bus, topics, genesis)
        self._merging = Merging(bus, topics, self._history, self._producer, clock)
        self._mending = Mending(seat, self._history, keys)
        self._history.refresh()
        self._sweep()

    def turn(self) -> bool:
        before = self._history.lineage.next_index
        lineage = self._history.refresh()
        if lineage.opened is None:
            return False
        lost = self._mending.turn()
        if lost is not None and lost > max(self._history.snapshots, default=0):
            self._check.require_newest()  # From the newest snapshot on, it is the only way, but for merged steps.
        if self._facts.follow() and self._history.snapshots:
            self._prune()
        due = self._due()
        if due is not None and not self._check.is_passed_over(due):
            self._take_or_report(due)
            self._prune()
        elif self._check.turn():
            return True
        elif self._merging.turn():
            self._history.refresh()
            return True
        return due is not None or lineage.next_index != before

    def _due(self) -> int | None:
        """Return the round to snapshot now: genesis and what begins an epoch first, then the newest that the policy wants.

        Of those that are asked for by number, one that cannot be had keeps nothing else from its turn.
        """
        rounds, taken = self._history.lineage.rounds, self._history.snapshots
        asked = [0, *self._history.lineage.regrids, *self._facts.rules.tags]
        there = [round_ for round_ in asked if (round_ in rounds or not round_) and round_ not in taken]
        lacking = [round_ for round_ in there if not self._check.is_passed_over(round_)]
        return lacking[0] if lacking else self._facts.rules.due(self._facts.since(self._history, self._clock.wall_ms()))

    def _take_or_report(self, round_: int) -> None:
        """Take a snapshot; where nothing leads to the round, nor can be mended, report it, so that training goes back.

        Raises
        ------
        IntegrityError
            There is none to go back to.
        """
        try:
            self._take(round_)
        except IntegrityError as error:
            if not self._check.fault(round_, error):
                raise

    def _take(self, round_: int) -> None:
        held, self._state = self._state, None
        state = self._rebuilt(round_, held if held and held.round <= round_ else None)
        attempt, begun_s = os.urandom(8), self._clock.monotonic_s()
        # 1. Chunks.
        layout = Layout.of(state.schema)
        parameters = self._send(round_, attempt, b"p", encode_raw(state.parameters, layout))
        slots = self._send_slots(round_, attempt, state)
        self._producer.flush()
        # 2. The manifest.
        tree = state.tree()
        reader = self._history.rounds.reader
        manifest = SnapshotTaken(
            round_,
            attempt,
            tree.parameters_digest,
            tree.state_digest,
            parameters.placed(),
            slots.placed() if slots else None,
            tuple(state.slot_exponents.items()),
            reader.chain.next_index,
            reader.chain.head,
            self._clock.wall_ms(),
        )
        self._send_manifest(round_, encode(manifest))
        self._facts.rates.write_s = self._clock.monotonic_s() - begun_s
        self._history.refresh()
        self._state = state
        if self._facts.rules.recovery_s:
            self._measure_loading(round_)

    def _rebuilt(self, round_: int, held: ModelState | None) -> ModelState:
        """Return a round's state, and take note of how long replaying a step takes."""
        path = self._history.find_path(round_, held=held.round if held else None)
        begun_s = self._clock.monotonic_s()
        state = self._mending.rebuild(round_, held)
        if path.legs and held is not None and path.start == held.round:
            self._facts.rates.replay_s = (self._clock.monotonic_s() - begun_s) / len(path.legs)
        return state

    def _measure_loading(self, round_: int) -> None:
        """Read back what was just written: a budget for recovery needs to know what that takes."""
        begun_s = self._clock.monotonic_s()
        self._history.rebuild(round_, start=round_)
        self._facts.rates.load_s = self._clock.monotonic_s() - begun_s

    def _send_slots(self, round_: int, attempt: bytes, state: ModelState) -> Sent | None:
        if not state.slots:
            return None
        flat = [array for arrays in state.slots.values() for array in arrays]
        layout = Layout.of_slots(state.schema, tuple(state.slots))
        return self._send(round_, attempt, b"s", encode_raw(flat, layout))

    def _send(self, round_: int, attempt: bytes, part: bytes, chunks: Iterable[bytes]) -> Sent:
        return send_payload(
            self._producer,
            self._topics.snapshot_chunks,
            self._partitions,
            chunks,
            key=str(round_).encode(),
            key_of=lambda index: chunk_key(round_, attempt, part, index),
        )

    def _send_manifest(self, round_: int, value: bytes | None) -> None:
        key = str(round_).encode()
        headers = event_headers(
            "SnapshotTaken",
            source=self._topics.snapshots,
            subject=f"round {round_}",
            identity=str(round_),
            time_ms=self._clock.wall_ms(),
        )
        self._producer.send(self._topics.snapshots, value, key=key, partition=0, headers=headers)
        self._producer.flush()

    def _prune(self) -> None:
        """Let go of what no rule of the policy keeps."""
        kept = self._facts.kept(self._history)
        for round_ in sorted(self._history.snapshots.keys() - kept.keys()):
            taken = self._history.snapshots[round_]
            self._send_manifest(round_, None)
            self._drop_chunks(taken)
        self._history.refresh()

    def _drop_chunks(self, taken: SnapshotTaken) -> None:
        for part, payload in ((b"p", taken.parameters), (b"s", taken.slots)):
            if payload is None or payload.hint is None:
                continue
            for index in range(len(payload.chunks)):
                key = chunk_key(taken.round, taken.attempt, part, index)
                self._producer.send(self._topics.snapshot_chunks, None, key=key, partition=payload.hint.partition)
        self._producer.flush()

    def _sweep(self) -> None:
        """Remove chunks of attempts that no manifest names, sparing those that may still be under way."""
        named = {taken.attempt for taken in self._history.snapshots.values()}
        named |= {merged.attempt for merged in self._history.merged.values() if merged.attempt}
        before_ms = self._clock.wall_ms() - GRACE_MS
        for partition in range(self._partitions):
            place = Place(self._topics.snapshot_chunks, partition)
            live = {}
            for record in records_in(self._bus, place, self._bus.begin_offset(place), self._bus.end_offset(place) - 1):
                live[record.key or b""] = None if record.value is None else record.timestamp_ms
            for key, written_ms in live.items():
                if written_ms is not None and written_ms < before_ms and attempt_of(key) not in named:
                    self._producer.send(place.topic, None, key=key, partition=partition)
        self._producer.flush()

    def close(self) -> None:
        close_all(self._history, self._check, self._facts, self._merging, self._mending, self._producer)


def chunk_key(round_: int, attempt: bytes, part: bytes, index: int) -> bytes:
    """Return the key of a chunk: its round, its writer's attempt, its part of the state and its number."""
    return b"%d/%s/%s/%d" % (round_, attempt.hex().encode(), part, index)


def attempt_of(key: bytes) -> bytes:
    """Return the attempt that a chunk's key names; empty bytes where it names none."""
    fields = key.split(b"/")
    try:
        return bytes.fromhex(fields[1].decode()) if len(fields) == 4 else b""
    except ValueError:
        return b""
