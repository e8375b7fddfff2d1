"""What the health group says of nodes: the states that it holds them to be in, signed, page by page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import blake3

from refold.schemas.canonical import Name, Text, Uint, Within, encode, record
from refold.schemas.updates import KeyId

HEALTHY, DEGRADED, SUSPECT, DEAD, REJOINED = "healthy", "degraded", "suspect", "dead", "rejoined"
LEFT = "left"
"""The state of a node that said farewell."""
STATES = (HEALTHY, DEGRADED, SUSPECT, DEAD, REJOINED, LEFT)
NODE, NETWORK, STRAGGLER, DATA = "node", "network", "straggler", "data"
CAUSES = (NODE, NETWORK, STRAGGLER, DATA)
PAGE_NODES = 512
"""Most nodes in one report: about 150 kB."""


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """One node as the health group sees it.

    Parameters
    ----------
    state, cause, kind
        One of `STATES`; of `CAUSES`, or "" where nothing is wrong; and what exactly is wrong, or "".
    since_ms
        Wall clock of the group at the last change of state.
    silence_ms
        How long nothing was heard of it, by the group's monotonic clock.
    phi
        How surprising that silence is: −log10 of the chance that it goes on so long by chance alone.
    score
        How far its measurements lie from its own past and its peers, in deviations.
    round, activity
        As it said last.
    note
        The evidence in words.
    """

    client: Name
    state: Annotated[str, Within(1, 16)]
    cause: Annotated[str, Within(0, 16)]
    kind: Annotated[str, Within(0, 64)]
    since_ms: Uint
    silence_ms: Uint
    phi: float
    score: float
    round: Uint
    activity: Annotated[str, Within(0, 64)]
    note: Text


@record(170)
@dataclass(frozen=True, slots=True)
class HealthReport:
    """What the health group holds of nodes now; the newest of each page counts, while it is fresh.

    Parameters
    ----------
    page, pages
        Which part this is, from 0, and of how many.
    every_ms
        How often the group writes one. Where none came for three times as long the group is gone and its word is stale.
    signature
        By the server's log key, over the record with an empty signature; clients may write to the same topic.
    """

    federation: Name
    member: Name
    page: Uint
    pages: Annotated[int, Within(1, 1 << 16)]
    every_ms: Annotated[int, Within(1, 86_400_000)]
    time_ms: Uint
    nodes: Annotated[tuple[NodeHealth, ...], Within(0, PAGE_NODES)]
    key_id: KeyId = bytes(8)
    signature: Annotated[bytes, Within(0, 64)] = b""

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the canonical bytes with an empty signature, 32 bytes: what is signed."""
        unsigned = replace(self, signature=b"")
        return blake3.blake3(encode(unsigned), derive_key_context="refold 2026 health report").digest()

    def is_stale(self, now_ms: int) -> bool:
        """Whether it is too old to say anything of now."""
        return now_ms - self.time_ms > 3 * self.every_ms
