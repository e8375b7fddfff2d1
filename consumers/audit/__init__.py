"""The audit behind ``refold verify``: proves a federation's logs, rounds and payloads, or names by index what is wrong."""

from refold.consumers.audit.findings import BROKEN, CHECKS, NOTICE, Finding, LogCount, Progress, Summary
from refold.consumers.audit.run import Audit, Report

__all__ = ["BROKEN", "CHECKS", "NOTICE", "Audit", "Finding", "LogCount", "Progress", "Report", "Summary"]
