"""What decides about snapshots: the policy that holds, what was reported of models, failures, and rates measured here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from refold.bus.contract import Bus
from refold.bus.ledger import Entry, LedgerReader
from refold.bus.topics import Topics
from refold.consumers.checkpoint_policy import Since, SnapshotRules
from refold.consumers.modelwatch import ModelWatch
from refold.producers.history import History
from refold.schemas.errors import UsageError
from refold.schemas.events import Genesis, ModelReported, PolicyChanged, Regridded, RolledBack, RoundClosed, UpdateAccepted
from refold.schemas.policies import SNAPSHOTS
from refold.schemas.updates import EVALUATE, TRAIN


@dataclass(slots=True)
class Rates:
    """Seconds measured, each the newest: a snapshot written, one read, a round's step replayed. 0 before the first."""

    write_s: float = 0.0
    load_s: float = 0.0
    replay_s: float = 0.0


@dataclass(slots=True)
class SnapshotLog:
    """A fold over `accepted`.

    Parameters
    ----------
    values
        What was reported of each round's model, the higher the worse.
    writers, first_ms, last_ms
        Changes of the writer, and the time that the log spans.
    """

    rules: SnapshotRules
    kind: str
    values: dict[int, float] = field(default_factory=dict)
    writers: int = 0
    first_ms: int = 0
    last_ms: int = 0
    _watch: ModelWatch = field(default_factory=ModelWatch)
    _newest: int = 0
    _writer: str = ""

    @classmethod
    def of(cls, genesis: Genesis) -> SnapshotLog:
        """Return what holds right after genesis."""
        return cls(SnapshotRules.founded(genesis.snapshots), EVALUATE if genesis.policy.evaluate_every else TRAIN)

    def fold(self, entry: Entry) -> None:
        """Take a commit in."""
        commit = entry.commit
        self.writers += commit.writer != self._writer
        self._writer, self.last_ms = commit.writer, commit.time_ms
        self.first_ms = self.first_ms or commit.time_ms
        for event in entry.events:
            match event:
                case PolicyChanged() if event.subject == SNAPSHOTS:
                    self._changed(event)
                case UpdateAccepted() if event.origin.base_round == self._newest and event.origin.kind == self.kind:
                    self._watch.report(event.origin.client, dict(event.metrics))
                case RoundClosed():
                    self._watch.close(event.parent)
                    self._take_reading()
                    self._newest = event.round
                case RolledBack():
                    self._watch.back_to(event.parent)
                    self._newest = event.round
                case Regridded():
                    self._newest = event.round
                case ModelReported() if event.value is not None:
                    self._watch.take_value(event.round, event.value, good_when_high=event.metric != "loss")
                    self._take_reading()

    def _changed(self, event: PolicyChanged) -> None:
        try:
            self.rules = SnapshotRules.of(event.settings)
        except UsageError:
            return  # Of a newer Refold, whose settings this one does not know.

    def _take_reading(self) -> None:
        if self._watch.readings:
            self.values[self._watch.readings[-1].round] = self._watch.readings[-1].value

    @property
    def between_failures_s(self) -> float:
        """Mean time between changes of the writer; infinite where there was none. The maker of the federation is no server."""
        changes = self.writers - 2
        return (self.last_ms - self.first_ms) / 1000 / changes if changes > 0 else math.inf


class SnapshotFacts:
    """Follows `accepted`."""

    def __init__(self, bus: Bus, topics: Topics, genesis: Genesis) -> None:
        self._reader = LedgerReader(bus, topics.accepted)
        self.log = SnapshotLog.of(genesis)
        self.rates = Rates()

    def follow(self) -> bool:
        """Take in what is there now; return whether the policy changed."""
        before = self.log.rules
        for entry in self._reader.read_to_end():
            self.log.fold(entry)
        return self.log.rules != before

    @property
    def rules(self) -> SnapshotRules:
        """The policy that holds."""
        return self.log.rules

    def since(self, history: History, now_ms: int) -> Since:
        """Return what happened since the newest snapshot on the branch of the newest round."""
        lineage = history.lineage
        at, rounds, size = lineage.head, 0, 0
        while at not in history.snapshots and at in lineage.rounds:
            made = lineage.rounds[at]
            size += sum(payload.size_bytes for payload in (made.step, made.slots_step) if payload is not None)
            at, rounds = made.parent, rounds + 1
        taken = history.snapshots.get(at)
        seconds = max(0.0, (now_ms - taken.time_ms) / 1000) if taken is not None else 0.0
        rates = self.rates
        measured = (rates.write_s, rates.load_s, rates.replay_s, self.log.between_failures_s)
        return Since(lineage.head, rounds, size, seconds, *measured)

    def kept(self, history: History) -> dict[int, str]:
        """Return which snapshots stay and why: what the policy keeps, and those that begin an epoch."""
        found = self.rules.kept(history.snapshots, self.log.values)
        for round_ in history.snapshots.keys() & history.lineage.regrids.keys():
            found[round_] = ", ".join(filter(None, ("epoch", found.get(round_, ""))))
        return dict(sorted(found.items()))

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()
