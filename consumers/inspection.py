"""Inspecting one update, cheap to dear: what its bytes and genesis alone decide.

`Inspector` has no state but the federation's schema and secret, so that any member, or detection itself, finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from refold.consumers.features import ZEROS, FeatureExtractor, Features
from refold.consumers.limits import Limits
from refold.consumers.sealing import SealingKeys, opened
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import Genesis
from refold.schemas.layout import Layout
from refold.schemas.model import ModelSchema
from refold.schemas.sealing import OVERHEAD_BYTES, SUITE
from refold.schemas.topk import most_bytes, most_entries
from refold.schemas.updates import KINDS, TRAIN, ClientUpdate, UpdateBody
from refold.state.delta import TOPK, check_exponents, decode_update
from refold.state.epochs import Lattice

OPEN_UPDATES = 4
"""So many whole updates may one writer have under way at once, what was left of uploads that were cut off among them."""

LEAST_OPEN_CHUNKS = 64
LEAST_OPEN_BYTES = 16 << 20

MAX_MANIFEST_BYTES = 400_000
"""A manifest fits into what consistency says of it, beside its features, and that into one record."""


LATELY = 64
"""So many manifests are remembered as decoded: each is asked for several times on its way, and one that is repeated again and
again, all the more. What the bytes say does not depend on when they are asked; what counts of it is decided elsewhere."""

SMALL_BYTES = 8 << 10
"""Larger manifests are not remembered: decoded, each may have some ten times its size."""


@lru_cache(maxsize=LATELY)
def _decoded(value: bytes) -> ClientUpdate:
    return decode(value, ClientUpdate)


@dataclass(frozen=True, slots=True)
class Inspector:
    """Checks updates of one federation.

    Parameters
    ----------
    entries
        The most entries of float tensors that an update may carry; None where updates carry all of them.
    keys
        What opens sealed updates.
    limits
        What one client may take up.
    lattices
        The schema on every lattice that the log knows of, by its digest; `learn` adds one.
    """

    federation: str
    schema: ModelSchema
    layout: Layout
    extractor: FeatureExtractor
    entries: int | None
    keys: SealingKeys
    limits: Limits
    lattices: dict[bytes, ModelSchema]

    @classmethod
    def of(cls, genesis: Genesis, secret: bytes, keys: SealingKeys | None = None) -> Inspector:
        """Return the inspector of a federation."""
        schema = genesis.schema
        extractor, policy = FeatureExtractor(schema, secret), genesis.policy
        entries = most_entries(extractor.count, policy.density_ppm) if policy.codec == TOPK else None
        limits = Limits.of(genesis.identity.limits)
        known = {schema.digest: schema}
        return cls(genesis.federation, schema, Layout.of(schema), extractor, entries, keys or SealingKeys(), limits, known)

    def learn(self, lattice: Lattice) -> None:
        """Take note of a lattice that the model came onto."""
        schema = self.schema.on(lattice)
        self.lattices[schema.digest] = schema

    @property
    def most_payload_bytes(self) -> int:
        """What an honest encoder makes of any update at most, unsealed."""
        blocks = len(self.layout)
        most = self.layout.size_bytes + self.layout.size_bytes // 32 + 1024 * (blocks + 1)
        return most if self.entries is None else min(most, most_bytes(self.layout, self.entries))

    @property
    def open_chunks(self) -> int:
        """How many chunks of one writer may wait for their manifest."""
        return self.limits.open_chunks or max(LEAST_OPEN_CHUNKS, OPEN_UPDATES * len(self.layout))

    @property
    def open_chunk_bytes(self) -> int:
        """How many bytes these may have."""
        return self.limits.open_chunk_bytes or max(LEAST_OPEN_BYTES, OPEN_UPDATES * self.most_payload_bytes)

    def open(self, value: bytes | None) -> ClientUpdate:
        """Decode a manifest.

        Raises
        ------
        InvalidRecord
            Its form is wrong; nothing in it can be believed.
        """
        if not value:
            raise InvalidRecord("form", "an empty record")
        if len(value) > MAX_MANIFEST_BYTES:
            raise InvalidRecord("too-large", f"a manifest of {len(value):,} bytes exceeds {MAX_MANIFEST_BYTES:,}")
        return _decoded(value) if len(value) <= SMALL_BYTES else decode(value, ClientUpdate)

    def check_claims(self, body: UpdateBody) -> None:
        """Check what the manifest says of itself against the schema.

        Raises
        ------
        InvalidRecord
            ``wrong-federation``, ``schema``, ``codec``, ``sealing``, ``examples``, ``lengths`` or ``form``.
        """
        if body.federation != self.federation:
            raise InvalidRecord("wrong-federation", f"meant for {body.federation!r}")
        if body.kind not in KINDS or (body.kind == TRAIN) != (body.payload is not None):
            raise InvalidRecord("form", f"an update of kind {body.kind!r} with{'' if body.payload else 'out'} a payload")
        if body.sealing is not None and (body.sealing.suite != SUITE or body.payload is None):
            raise InvalidRecord(
                "sealing", f"sealed with {body.sealing.suite!r}{'' if body.payload else ', and without a payload'}"
            )
        if body.schema_digest not in self.lattices:
            raise InvalidRecord("schema", "made for a model of other tensors, shapes or dtypes, or on another lattice")
        if body.kind != TRAIN:
            return
        self._check_codec(body)
        if not 1 <= body.num_examples < 2**31:
            raise InvalidRecord("examples", f"{body.num_examples} examples")
        if body.raw_bytes != self.layout.size_bytes:
            raise InvalidRecord("lengths", f"says {body.raw_bytes:,} raw bytes where the model has {self.layout.size_bytes:,}")
        self._check_payload(body)

    def _check_codec(self, body: UpdateBody) -> None:
        """Refuse a codec that cannot be judged beside the federation's own: whole deltas make a sparse one look strange."""
        check_exponents(body.codec, body.exponents, self.schema)
        if (body.codec == TOPK) != (self.entries is not None):
            asked = "whole deltas" if self.entries is None else TOPK
            raise InvalidRecord("codec", f"{body.codec} where the plan asks for {asked}")

    def _check_payload(self, body: UpdateBody) -> None:
        """Refuse a payload that no honest encoder makes, before a byte of it is read."""
        assert body.payload is not None
        blocks = len(self.layout)
        most = self.most_payload_bytes
        if body.sealing is not None:
            most += OVERHEAD_BYTES * max(1, blocks)
        if len(body.payload.chunks) > max(1, blocks) or body.payload.size_bytes > most:
            raise InvalidRecord(
                "lengths", f"{len(body.payload.chunks)} chunks of {body.payload.size_bytes:,} bytes for {blocks} blocks"
            )

        allowed = self.limits.update_bytes
        if allowed and body.payload.size_bytes > allowed:
            raise InvalidRecord("too-large", f"{body.payload.size_bytes:,} bytes where an update may have {allowed:,}")

    def examine(self, body: UpdateBody, chunks: Iterable[bytes]) -> Features:
        """Decode a training update block by block and return its features.

        Raises
        ------
        InvalidRecord
            ``codec``, ``compression``, ``decryption``, ``layout``, ``lengths``, ``not-finite``, ``out-of-range`` or
            ``zero-update``.
        KeyLackingError
            It is sealed, and its key is not here.
        """
        features, schema = self.extractor.start(), self.lattices.get(body.schema_digest, self.schema)
        untouched = True
        plain = opened(chunks, body.sealing, self.federation, body, self.keys)
        for block, integers in decode_update(body.codec, body.exponents, plain, schema):
            tensor = schema.tensors[block.tensor]
            if not tensor.is_float:
                untouched = untouched and not integers.any()
                continue
            features.add(block, integers, 2.0 ** (body.exponents[block.tensor] - tensor.exponent))
        if features.is_zero and (untouched or any(tensor.is_float for tensor in self.schema.tensors)):
            raise InvalidRecord("zero-update", "changes nothing")
        found = features.finish()
        carried = found.count - int(found.facts[:, ZEROS].sum())
        if self.entries is not None and carried > self.entries:
            raise InvalidRecord("codec", f"carries {carried:,} entries where the plan asks for {self.entries:,}")
        return found
