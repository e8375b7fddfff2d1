"""What the members of a Kafka group tell each other: what each reads and holds, and what its leader gives to whom.

The bytes are those of Kafka's own consumer protocol, so that Kafka's tools show the group's members and their partitions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from refold.bus._groups import Member, share_out
from refold.bus.contract import Place
from refold.schemas.errors import NotFoundError


def pack_claim(topics: Iterable[str], held: Iterable[Place], generation: int) -> bytes:
    """Say what a member reads and what it holds since which generation."""
    kind = ConsumerProtocolSubscription.TopicPartition
    owned = [kind(topic=topic, partitions=numbers) for topic, numbers in _by_topic(held)]
    packed: bytes = ConsumerProtocolSubscription(
        version=2, topics=list(topics), user_data=None, owned_partitions=owned, generation_id=generation
    ).encode()
    return packed


def share(claims: Mapping[str, bytes], partitions: Callable[[str], int]) -> dict[str, frozenset[Place]]:
    """Share all places out among members, but give nobody what another still claims.

    Parameters
    ----------
    claims
        What each member said, by its name.
    partitions
        How many partitions a topic has; NotFoundError if there is none.
    """
    readers: list[Member] = []
    owned: list[tuple[int, str, Place]] = []
    for name, packed in claims.items():
        reads, held, generation = _unpack_claim(packed)
        readers.append(Member(name, None, reads, 0.0, 0.0))
        owned += [(generation, name, place) for place in held]
    # Who missed a generation may claim what was given away since: the newest claim counts.
    holders = {place: name for _, name, place in sorted(owned)}
    topics = {topic for reader in readers for topic in reader.topics}
    places = [place for topic in topics for place in _places(topic, partitions)]
    given = {place: name for place, name in share_out(readers, places, holders).items() if holders.get(place, name) == name}
    return {name: frozenset(place for place, owner in given.items() if owner == name) for name in claims}


def _unpack_claim(packed: bytes) -> tuple[tuple[str, ...], list[Place], int]:
    try:
        claim = ConsumerProtocolSubscription.decode(packed)
        held = [Place(part.topic, number) for part in claim.owned_partitions or () for number in part.partitions]
        if not all(isinstance(topic, str) for topic in (*claim.topics, *(place.topic for place in held))):
            raise TypeError("a topic without a name")  # Kafka's protocol can say that.
        return tuple(sorted(set(claim.topics))), held, claim.generation_id
    except (ValueError, TypeError, IndexError, struct.error):
        # Whoever joins with something else reads nothing, and stops nobody.
        return (), [], -1


def _places(topic: str, partitions: Callable[[str], int]) -> list[Place]:
    try:
        return [Place(topic, number) for number in range(partitions(topic))]
    except NotFoundError:
        return []  # Deleted since a member subscribed to it: nobody can read it.


def pack_assignment(places: Iterable[Place]) -> bytes:
    """Say what a member is given."""
    kind = ConsumerProtocolAssignment.TopicPartition
    parts = [kind(topic=topic, partitions=numbers) for topic, numbers in _by_topic(places)]
    packed: bytes = ConsumerProtocolAssignment(version=1, assigned_partitions=parts, user_data=None).encode()
    return packed


def unpack_assignment(packed: bytes) -> frozenset[Place]:
    """Return what a member is given."""
    if not packed:
        return frozenset()
    parts = ConsumerProtocolAssignment.decode(packed).assigned_partitions
    return frozenset(Place(part.topic, number) for part in parts for number in part.partitions)


def _by_topic(places: Iterable[Place]) -> list[tuple[str, list[int]]]:
    grouped = groupby(sorted(places), lambda place: place.topic)
    return [(topic, [place.partition for place in found]) for topic, found in grouped]
