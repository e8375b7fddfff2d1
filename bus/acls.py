"""Who needs which right on a Kafka cluster with ACLs: for each role the least with which it works.

A right to write or read brings the right to see the topic (Describe) along. Producers number what they send, for which a right
to write anywhere is enough (Kafka 3.0 and newer). Rights are per topic: that a client writes in its own name alone is what
signatures are for.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from refold.bus.topics import KEPT
from refold.schemas.errors import UsageError

TOPIC: Literal["topic"] = "topic"
GROUP: Literal["group"] = "group"
ADMIN_FILE = "admin.properties"

WRITTEN_BY_SERVERS = (
    "checked",
    "accepted",
    "deltas",
    "features",
    "rounds",
    "steps",
    "snapshots",
    "snapshot-chunks",
    "quarantine",
    "alerts",
    "health",
)
PRUNED = ("deltas", "features", "quarantine")
SERVING = ("consistency", "detection", "aggregation", "snapshots", "health")


@dataclass(frozen=True, slots=True)
class Grant:
    """Operations on some topics or groups.

    Parameters
    ----------
    names
        Without the federation's name; ``""`` with `prefixed` is all of the federation.
    prefixed
        The names are what others begin with.
    why
        What it is needed for.
    """

    operations: tuple[str, ...]
    kind: Literal["topic", "group"]
    names: tuple[str, ...]
    why: str
    prefixed: bool = False

    def resources(self, federation: str) -> list[str]:
        """Return the full names."""
        return [f"{federation}.{name}" for name in self.names]


ROLES: Mapping[str, tuple[Grant, ...]] = {
    "client": (
        Grant(("Write",), TOPIC, ("updates", "health"), "sends updates and signs of life"),
        Grant(
            ("Read",),
            TOPIC,
            ("rounds", "steps", "snapshots", "snapshot-chunks"),
            "reads plans, receipts and the model's states",
        ),
    ),
    "server": (
        Grant(("Read",), TOPIC, tuple(KEPT), "judges, sums, prunes, goes on where the log ends"),
        Grant(("Write",), TOPIC, WRITTEN_BY_SERVERS, "writes verdicts, rounds and what they name"),
        Grant(("Write",), TOPIC, ("commands",), "says what it found out of the model; orders need an operator's signature"),
        Grant(("Delete",), TOPIC, ("updates", "checked", *PRUNED), "deletes what is judged, and payloads by policy"),
        Grant(("DescribeConfigs",), TOPIC, tuple(KEPT), "refuses to start on topics that lose data"),
        Grant(("Read",), GROUP, (*SERVING, "attached.alert-delivery"), "shares the work with other servers"),
        Grant(("Describe",), GROUP, ("copy",), "refuses to serve a copy that is not whole"),
    ),
    "operator": (
        Grant(("Write",), TOPIC, ("commands",), "orders: enrol, revoke, end"),
        Grant(("Read",), TOPIC, ("accepted", "rounds"), "sees what became of an order"),
    ),
    "auditor": (
        Grant(("Read",), TOPIC, tuple(KEPT), "verifies, exports, rebuilds, attaches consumers"),
        Grant(("DescribeConfigs",), TOPIC, tuple(KEPT), "examines topics with `refold doctor`"),
        Grant(("Read",), GROUP, ("attached.",), "stores how far an attached consumer has come", prefixed=True),
        Grant(("Describe",), GROUP, (*SERVING, "copy"), "sees how far servers and copies have come"),
    ),
    "founder": (
        Grant(
            ("Create", "Read", "Write", "Delete", "DescribeConfigs"),
            TOPIC,
            ("",),
            "makes the topics, for `refold init` and `refold import`; take it back afterwards with --remove in place of --add",
            prefixed=True,
        ),
        Grant(("Read",), GROUP, ("copy",), "keeps two imports from writing at once"),
    ),
}
"""Role → what it may do; whoever has two roles is given both."""


def check_role(role: str) -> str:
    """Return a role's name; UsageError if there is none."""
    if role not in ROLES:
        raise UsageError(f"no role {role!r}", hint=f"there are {', '.join(ROLES)}")
    return role


def command(grant: Grant, federation: str, brokers: str, principals: Sequence[str]) -> str:
    """Return the command that gives principals what a grant says."""
    words = ["kafka-acls.sh", "--bootstrap-server", brokers, "--command-config", ADMIN_FILE, "--add"]
    words += [word for principal in principals for word in ("--allow-principal", principal)]
    words += [word for operation in grant.operations for word in ("--operation", operation)]
    words += [word for name in grant.resources(federation) for word in (f"--{grant.kind}", name)]
    words += ["--resource-pattern-type", "prefixed"] if grant.prefixed else []
    return shlex.join(words)
