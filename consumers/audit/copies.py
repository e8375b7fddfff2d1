"""A log beside another copy of it: the first event in which the two part, exactly."""

from __future__ import annotations

from collections.abc import Iterator

from refold.bus.comparing import Parting, parting
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.consumers.audit.findings import AGAINST, Finding
from refold.schemas.errors import IntegrityError


def audit_copy(bus: Bus, copy: Bus, topics: Topics) -> Iterator[Finding]:
    """Yield where this log is not what a copy of it holds. A copy that ends sooner is an older one, and no fault.

    Which of two that part is the right one, a copy alone cannot tell; a checkpoint can.
    """
    for topic in (topics.accepted, topics.rounds):
        try:
            parted, _ = parting(bus, copy, topic)
        except IntegrityError as error:
            yield Finding(AGAINST, f"it cannot be held against the copy: {error.message}", error.hint, topic)
            continue
        if parted is None or parted.right is None:
            continue
        yield _missing(parted) if parted.left is None else _unequal(parted)


def _missing(parted: Parting) -> Finding:
    assert parted.right is not None
    what = f"the log ends after {parted.index} events, and the copy goes on"
    return Finding(AGAINST, what, "its tail was lost or cut off; restore it from the copy", parted.topic, 0, index=parted.index)


def _unequal(parted: Parting) -> Finding:
    assert parted.left is not None
    index = next((index for index, _, _ in parted.events()), parted.index)
    what = f"event {index} is not the copy's" if any(parted.events()) else f"the commit of event {index} is not the copy's"
    hint = "one of the two was written anew: a checkpoint kept elsewhere tells which (`refold diff --with` shows both)"
    return Finding(AGAINST, what, hint, parted.topic, 0, parted.left.offset, index)
