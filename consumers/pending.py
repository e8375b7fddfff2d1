"""An update on its way through detection."""

from __future__ import annotations

from dataclasses import dataclass

import blake3

from refold.consumers.features import Features
from refold.schemas.events import Origin
from refold.schemas.identity import KeyRequest
from refold.schemas.updates import UpdateBody


@dataclass(slots=True)
class Pending:
    """An update without a verdict.

    Parameters
    ----------
    checked_offset
        Where in `checked` it was told of; the log's position stays at or below it until the verdict.
    body, digest
        None and the record's own digest where nobody can be held to it.
    manifest
        The record's bytes, where they are an update.
    reason, detail
        Why it is refused already; "" for a candidate.
    packed
        Features of a sound training update.
    request
        A client's request for a key, which this is instead of an update.
    signature
        The client's, where the record is an update.
    fault, fault_detail
        Why it is refused wherever the log stands, or "".
    """

    partition: int
    offset: int
    checked_offset: int
    first_chunk: int
    body: UpdateBody | None
    digest: bytes
    manifest: bytes
    reason: str = ""
    detail: str = ""
    packed: bytes | None = None
    request: KeyRequest | None = None
    signature: bytes = b""
    fault: str = ""
    fault_detail: str = ""

    @property
    def source(self) -> tuple[int, int]:
        """Partition and offset in `updates`."""
        return (self.partition, self.offset)

    @property
    def client(self) -> str:
        """The client that is held to it, or ""."""
        return self.body.client if self.body else ""

    def disown(self, reason: str) -> None:
        """Make it nobody's: what it was signed with counts no more."""
        self.detail = f"claims to be {self.client!r}"
        self.body, self.packed, self.reason = None, None, reason
        self.digest = blake3.blake3(self.manifest).digest()

    def features(self) -> Features:
        """Return the features of a sound training update."""
        assert self.packed is not None
        return Features.unpack(self.packed)

    def origin(self) -> Origin:
        """Return what its verdict says of it."""
        assert self.body is not None
        body = self.body
        return Origin(
            self.partition,
            self.offset,
            self.digest,
            body.client,
            body.key_id,
            body.session_index,
            body.session_nonce,
            body.sequence,
            body.kind,
            body.base_round,
        )
