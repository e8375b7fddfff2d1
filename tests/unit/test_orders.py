"""What a command comes to, by where the log stands when it is taken."""

from __future__ import annotations

import numpy as np
import pytest

import refold
from refold.bus.ledger import Entry
from refold.bus.memory import MemoryBus
from refold.consumers.healing import AUTOMATIC, healed
from refold.consumers.orders import obeyed
from refold.consumers.roster import Roster
from refold.schemas.commits import Commit, Position
from refold.schemas.events import RoundClosed
from refold.schemas.plans import settings
from refold.schemas.policies import HEALING, PolicyChanged, ReportModel
from refold.schemas.rollback import RolledBack


class Log:
    """A roster and what is told to it: the server's program finds each round's model as good as it says."""

    def __init__(self) -> None:
        federation = refold.create("memory:", {"w": np.zeros(4, "f4")}, bus=MemoryBus(), insecure=True)
        self.roster, self.commands = Roster.of(federation.genesis), 0
        federation.close()
        self.tell(PolicyChanged(HEALING, settings({"mode": AUTOMATIC})))

    def tell(self, *events: object) -> None:
        commit = Commit(1, 0, bytes(32), "w", 0, Position(), len(events), (), None)
        self.roster.fold(Entry(commit, bytes(32), 0, events))

    def close(self) -> None:
        branches, policy = self.roster.branches, self.roster.genesis.policy
        plan = branches.plan_after(policy, branches.nodes[branches.head].exponents, (), ())
        round_ = branches.head + 1
        self.tell(RoundClosed(round_, round_ - 1, (), "weighted_mean", "fedavg", (), "complete", plan))

    def report(self, round_: int, accuracy: float) -> list[object]:
        self.commands += 1
        events = obeyed(self.roster, ReportModel(round_, "accuracy", accuracy, "", 0), self.commands.to_bytes(16, "big"))
        self.tell(*events)
        return events

    def heal(self) -> RolledBack | None:
        roster = self.roster
        event = healed(roster.healing, roster.branches, roster.recent, roster.genesis.policy)
        self.tell(*[event] if event is not None else [])
        return event


@pytest.fixture
def log() -> Log:
    made = Log()
    for round_ in range(1, 12):
        made.close()
        made.report(round_, 0.9 + 0.001 * (round_ % 3))
    return made


def test_a_report_that_comes_after_its_branch_was_left_takes_nobody_back_once_more(log: Log) -> None:
    log.close()
    log.close()
    assert log.report(12, 0.1)
    back = log.heal()
    assert back is not None
    assert (back.abandoned, back.parent) == (13, 11)
    assert not log.report(13, 0.1)
    assert log.heal() is None
    log.close()
    assert log.report(15, 0.9)
    assert log.heal() is None
