"""Making proofs from a log: one pass over `accepted`, whatever is proven."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from refold.bus.contract import Bus
from refold.bus.ledger import LedgerReader, read_all
from refold.bus.topics import Topics
from refold.consumers.audit.findings import Progress
from refold.schemas.errors import IntegrityError, NotFoundError, TryAgainError
from refold.schemas.events import Checkpointed, Genesis
from refold.schemas.kept import Kept
from refold.schemas.keys import key_id
from refold.schemas.merkle import Gatherer, consistency_ranges, inclusion_ranges, leaf_hash
from refold.schemas.proofs import ConsistencyProof, InclusionProof, Proof

P = TypeVar("P", bound=Proof)


def checkpoints_of(bus: Bus, topics: Topics, genesis: Genesis) -> list[Kept]:
    """Return every checkpoint in `rounds`, by number of events.

    Raises
    ------
    NotFoundError
        Genesis names no log key: nobody signs this log.
    IntegrityError
        A checkpoint is not signed by one that it names.
    """
    if not genesis.log_keys:
        hint = "it was made before there were any; keep a copy of the log instead: `refold export`"
        raise NotFoundError("this federation has no log key, and so no checkpoints", hint=hint)
    signers = {key_id(key): key for key in genesis.log_keys}
    found = []
    for entry in read_all(bus, topics.rounds):
        for event in entry.events:
            if isinstance(event, Checkpointed):
                if not event.signed.is_signed_by(genesis.log_keys):
                    raise IntegrityError(
                        "a checkpoint is not signed by a log key of genesis", topic=topics.rounds, offset=entry.offset
                    )
                found.append(Kept(event.signed, signers[event.signed.key_id]))
    return found


def covering(index: int, checkpoints: list[Kept]) -> Kept:
    """Return the newest checkpoint, which must cover an event.

    Raises
    ------
    TryAgainError
        None does yet.
    """
    if not checkpoints or checkpoints[-1].events <= index:
        hint = "the next round brings one; is the server running?"
        raise TryAgainError(f"no checkpoint covers event {index} yet", hint=hint)
    return checkpoints[-1]


def last_index(bus: Bus, topics: Topics) -> int:
    """Return the index of the last event of `accepted`; −1 if it has none."""
    return max((entry.commit.next_index for entry in read_all(bus, topics.accepted)), default=0) - 1


def prove_inclusion(bus: Bus, topics: Topics, index: int, kept: Kept, progress: Progress) -> InclusionProof:
    """Prove that an event is in the log that a checkpoint was signed for.

    Raises
    ------
    IntegrityError
        This log is not that one.
    NotFoundError
        The checkpoint does not cover the event, or the log ends before.
    """
    if index >= kept.events:
        raise NotFoundError(f"the checkpoint covers {kept.events} events, up to index {kept.events - 1}", index=index)
    gathered, event = Gatherer(inclusion_ranges(index, kept.events)), b""
    for at, data in enumerate(_events(bus, topics, kept.events, progress)):
        gathered.add(leaf_hash(data))
        event = data if at == index else event
    return _held(InclusionProof(index, event, gathered.hashes(), kept), topics)


def prove_consistency(bus: Bus, topics: Topics, old: Kept, new: Kept, progress: Progress) -> ConsistencyProof:
    """Prove that the log of one checkpoint begins with that of another.

    Raises
    ------
    IntegrityError
        It does not, or this log is not theirs.
    NotFoundError
        The log ends before.
    """
    old, new = sorted((old, new), key=lambda kept: kept.events)
    gathered = Gatherer(consistency_ranges(old.events, new.events))
    for data in _events(bus, topics, new.events, progress):
        gathered.add(leaf_hash(data))
    return _held(ConsistencyProof(old, new, gathered.hashes()), topics)


def _events(bus: Bus, topics: Topics, count: int, progress: Progress) -> Iterator[bytes]:
    """Yield the bytes of the first events of `accepted`."""
    reader, given = LedgerReader(bus, topics.accepted, decodes=False), 0
    try:
        for entry in reader.read_to_end():
            yield from entry.encoded[: count - given]
            given = min(count, entry.commit.next_index)
            progress("events", given, count)
            if given == count:
                return
    finally:
        reader.close()
    raise NotFoundError(f"the log ends after {given} events, and the checkpoint covers {count}", topic=topics.accepted)


def _held(proof: P, topics: Topics) -> P:
    if not proof.holds:
        raise IntegrityError(
            "this log is not the one that was signed",
            topic=topics.accepted,
            hint="`refold verify --against FILE` says where they part",
        )
    return proof
