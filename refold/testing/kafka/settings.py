"""A broker's settings, said once: the launcher starts nodes with them, and a test holds ``docker/compose.yaml`` to them."""

from __future__ import annotations

from collections.abc import Mapping

EXTERNAL, INTERNAL, CONTROLLER = "EXTERNAL", "INTERNAL", "CONTROLLER"
"""Listeners: for clients, between brokers (a proxy in front of the clients' leaves it alone), for the quorum."""

PLACED = frozenset({"node.id", "listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"})
"""What depends on where a node runs, so that a launcher and a compose file cannot share it."""


def shared_settings(nodes: int) -> dict[str, str]:
    """Return what every node of a cluster is told, wherever it runs.

    Parameters
    ----------
    nodes
        1, or 3 of which one may be lost.
    """
    copies, in_sync = (1, 1) if nodes == 1 else (3, 2)
    return {
        "process.roles": "broker,controller",
        "listener.security.protocol.map": f"{EXTERNAL}:PLAINTEXT,{INTERNAL}:PLAINTEXT,{CONTROLLER}:PLAINTEXT",
        "inter.broker.listener.name": INTERNAL,
        "controller.listener.names": CONTROLLER,
        # With acks=all, a record that was acknowledged is on this many nodes: the loss of one loses none.
        "default.replication.factor": str(copies),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(copies),
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": str(in_sync),
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        # A node that lacks acknowledged records must not become leader: better no answer than a log with a hole.
        "unclean.leader.election.enable": "false",
        # A misspelt name must fail, not make a topic with one partition and a week's retention.
        "auto.create.topics.enable": "false",
        # The first member of a group need not wait 3 s for others; Refold's groups are small.
        "group.initial.rebalance.delay.ms": "0",
        # Tests hold members frozen past their session; the default of 6 s would make each of them wait as long.
        "group.min.session.timeout.ms": "1000",
    }


def to_properties(settings: Mapping[str, str]) -> str:
    """Return settings as the text of a ``server.properties``."""
    return "".join(f"{name}={value}\n" for name, value in settings.items())
