"""The accepted log as aggregation and verification fold it: open updates, closed rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from refold.bus.payloads import PayloadReader
from refold.consumers.sealing import SealingKeys, opened
from refold.schemas.errors import IntegrityError
from refold.schemas.events import Member, RoundClosed, UpdateAccepted
from refold.schemas.layout import Block, Integers
from refold.schemas.model import ModelSchema
from refold.state.aggregation import Aggregate, WeightedMean, least_exponents
from refold.state.delta import decode_update
from refold.state.order import MEAN, OrderStatistic


@dataclass(slots=True)
class OpenUpdates:
    """Accepted training updates that no closed round holds yet, with their index in the log."""

    by_digest: dict[bytes, tuple[int, UpdateAccepted]] = field(default_factory=dict)

    def fold(self, index: int, event: object) -> None:
        """Take an event in."""
        if isinstance(event, UpdateAccepted) and event.payload is not None:
            self.by_digest[event.origin.digest] = (index, event)

    def take(self, closed: RoundClosed) -> list[tuple[Member, int, UpdateAccepted]]:
        """Return the members that are applied, with index and verdict, and forget them all.

        Raises
        ------
        IntegrityError
            A member was never accepted.
        """
        members = []
        for member in closed.members:
            found = self.by_digest.pop(member.digest, None)
            if found is None:
                raise IntegrityError(
                    f"round {closed.round} has a member that was never accepted", client=member.client, round=closed.round
                )
            if member.weight:
                members.append((member, *found))
        return members


@dataclass(frozen=True, slots=True)
class Deltas:
    """Where accepted updates' payloads are read, and what opens those that are sealed.

    Parameters
    ----------
    schema_of
        Gives the schema on the lattice of a round, an update's base.
    """

    federation: str
    schema_of: Callable[[int], ModelSchema]
    reader: PayloadReader
    keys: SealingKeys

    def blocks_of(self, event: UpdateAccepted) -> Iterator[tuple[Block, Integers]]:
        """Yield an accepted update's blocks.

        Raises
        ------
        IntegrityError
            Its payload is gone or changed.
        KeyLackingError
            It is sealed, and its key is not here.
        """
        assert event.payload is not None
        chunks = opened(self.reader.read(event.payload), event.sealing, self.federation, event.origin, self.keys)
        return decode_update(event.codec, event.exponents, chunks, self.schema_of(event.origin.base_round))


def aggregate(members: list[tuple[Member, int, UpdateAccepted]], deltas: Deltas, rule: str, schema: ModelSchema) -> Aggregate:
    """Return what a round's recorded rule makes of its members, exactly; all of them on the schema's lattice.

    Raises
    ------
    IntegrityError, KeyLackingError
        As `Deltas.blocks_of`.
    """
    least = least_exponents([event.exponents for _, _, event in members])
    # The result is the same in any order; this one reads each partition once from front to back.
    ordered = sorted(members, key=_lies_at)
    if rule != MEAN:
        with OrderStatistic(schema, least, rule) as statistic:
            for _, index, event in ordered:
                statistic.add(deltas.blocks_of(event), event.exponents, index=index)
            return statistic.result()
    mean = WeightedMean(schema, least)
    for member, index, event in ordered:
        mean.add(deltas.blocks_of(event), event.exponents, weight=member.weight, index=index)
    return mean.result()


def _lies_at(member: tuple[Member, int, UpdateAccepted]) -> tuple[int, int]:
    hint = member[2].payload.hint if member[2].payload else None
    return (hint.partition, hint.first_offset) if hint else (-1, 0)
