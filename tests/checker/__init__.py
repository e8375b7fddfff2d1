"""A checker that knows the log and the invariants, and none of the code that wrote it.

It follows the chains by itself, counts verdicts against everything that ever lay in `updates`, and folds the model with its own
arithmetic. Of Refold it uses the record types, the decoding of a client's delta, the definition of a state's digest, and how a
topic is read. Fault tests give it real buses, the simulation those in memory.

Kinds of events that it does not know are counted and passed over.
"""

from __future__ import annotations

from tests.checker.chain import Kept, Step, follow, read_place, read_topic
from tests.checker.findings import Findings, Log
from tests.checker.folding import fold
from tests.checker.rounds import check_receipts, check_rounds, waits_for_rounds
from tests.checker.verdicts import check_accepted_once, check_branches, check_dense, check_positions, check_verdicts

__all__ = ["Findings", "Kept", "Log", "Step", "check_log", "follow", "read_place", "read_topic"]


def check_log(log: Log, *, folds: bool = True) -> Findings:
    """Check a federation's whole log.

    Parameters
    ----------
    folds
        Also fold the model of every round, where nothing else is wrong.
    """
    findings = Findings(stale=log.stale, updates=len(log.sent))
    check_dense(findings, "accepted", log.accepted)
    check_dense(findings, "rounds", log.rounds)
    judged = check_verdicts(findings, log)
    check_positions(findings, log)
    check_accepted_once(findings, log)
    check_branches(findings, log)
    check_rounds(findings, log)
    check_receipts(findings, log)
    covered_index = log.rounds[-1].commit.position.accepted_index if log.rounds else 0
    is_covered = not log.accepted or not waits_for_rounds(log.accepted, covered_index)
    findings.settled = is_covered and judged == len(log.sent) and bool(log.rounds)
    if folds and not findings.violations:
        fold(findings, log)
    return findings
