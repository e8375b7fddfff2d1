"""The audit behind ``refold verify``: proves a federation's logs, rounds and payloads, or names by index what is wrong."""

from refold.consumers.audit.findings import (
    ACCEPTED_ONCE,
    BROKEN,
    CHAIN,
    CHECKS,
    DIGESTS,
    NOTICE,
    ONE_VERDICT,
    PAYLOADS,
    RECEIPTS,
    ROUNDS,
    SNAPSHOTS,
    STANDING,
    STEPS,
    Finding,
    LogCount,
    Progress,
    Summary,
)
from refold.consumers.audit.run import Audit, Report

__all__ = [
    "ACCEPTED_ONCE",
    "BROKEN",
    "CHAIN",
    "CHECKS",
    "DIGESTS",
    "NOTICE",
    "ONE_VERDICT",
    "PAYLOADS",
    "RECEIPTS",
    "ROUNDS",
    "SNAPSHOTS",
    "STANDING",
    "STEPS",
    "Audit",
    "Finding",
    "LogCount",
    "Progress",
    "Report",
    "Summary",
]
