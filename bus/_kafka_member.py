"""What a member of a Kafka group says to its coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kafka.protocol.consumer import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    OffsetCommitRequest,
    SyncGroupRequest,
)

from refold.bus._kafka_sharing import pack_assignment
from refold.bus.contract import Committed, Place

PROTOCOL = "refold"
PROTOCOL_TYPE = "consumer"
NOBODY = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a member is to its coordinator.

    Parameters
    ----------
    instance
        Its stable name, or None.
    name
        The name that the coordinator gave it, `NOBODY` before.
    generation
        The group's, when it last joined; -1 before.
    """

    group: str
    instance: str | None
    name: str = NOBODY
    generation: int = -1


def heartbeat(me: Identity) -> Any:
    """Say that a member lives."""
    return HeartbeatRequest(group_id=me.group, generation_id=me.generation, member_id=me.name, group_instance_id=me.instance)


def join(me: Identity, claim: bytes, session_timeout_s: float, rebalance_timeout_s: float) -> Any:
    """Ask to be a member of the group's next generation."""
    return JoinGroupRequest(
        group_id=me.group,
        session_timeout_ms=int(session_timeout_s * 1000),
        rebalance_timeout_ms=int(rebalance_timeout_s * 1000),
        member_id=me.name,
        group_instance_id=me.instance,
        protocol_type=PROTOCOL_TYPE,
        protocols=[JoinGroupRequest.JoinGroupRequestProtocol(name=PROTOCOL, metadata=claim)],
        max_version=7,
    )


def sync(me: Identity, shared: Mapping[str, frozenset[Place]]) -> Any:
    """Ask what a member is given; the leader says who is given what."""
    kind = SyncGroupRequest.SyncGroupRequestAssignment
    return SyncGroupRequest(
        group_id=me.group,
        generation_id=me.generation,
        member_id=me.name,
        group_instance_id=me.instance,
        protocol_type=PROTOCOL_TYPE,
        protocol_name=PROTOCOL,
        assignments=[kind(member_id=name, assignment=pack_assignment(places)) for name, places in shared.items()],
        max_version=5,
    )


def leave(me: Identity) -> Any:
    """Leave; a member that does not know its name yet leaves by its stable one."""
    identity = LeaveGroupRequest.MemberIdentity(member_id=me.name, group_instance_id=me.instance)
    return LeaveGroupRequest(group_id=me.group, members=[identity], min_version=3)


def commit(me: Identity, offsets: Mapping[Place, Committed]) -> Any:
    """Store positions, as a member or as nobody: that is allowed while the group has no members."""
    topic_kind = OffsetCommitRequest.OffsetCommitRequestTopic
    topics = [
        topic_kind(
            name=topic,
            partitions=[
                topic_kind.OffsetCommitRequestPartition(
                    partition_index=place.partition,
                    committed_offset=at.next_offset,
                    committed_leader_epoch=-1,
                    committed_metadata=at.metadata,
                )
                for place, at in pairs
            ],
        )
        for topic, pairs in groupby(sorted(offsets.items()), lambda pair: pair[0].topic)
    ]
    return OffsetCommitRequest(
        group_id=me.group,
        generation_id_or_member_epoch=me.generation,
        member_id=me.name,
        group_instance_id=me.instance,
        topics=topics,
        max_version=8,
    )


def first_error(response: Any) -> int:
    """Return the first error code of a commit's answer, 0 if all was stored."""
    return next((part.error_code for topic in response.topics for part in topic.partitions if part.error_code), 0)
