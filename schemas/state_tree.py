"""`StateTree`: what a node sends when it holds another state of a round than the log's, so that the difference can be named.

It holds digests alone, in the order of the model's layout: names and shapes are the log's. So it is small, nothing of a node's
parameters is in it, and whoever reads it can tell whether it is of the digest that the node told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Annotated

import blake3

from refold.schemas.canonical import Digest, Name, Uint, Within, encode, record
from refold.schemas.digests import PARAMETERS, DigestTree, TensorNode, digest
from refold.schemas.layout import Layout
from refold.schemas.model import ModelSchema
from refold.schemas.updates import KeyId, Nonce

BLOCKS, TENSORS = "blocks", "tensors"
MOST_DIGESTS = 1 << 14
"""Digests in one tree: 557 kB, the blocks of two thousand million parameters. Of a larger model its tensors' are sent."""

MOST_PLACES = 8
"""Places that are named before it is said how many more there are."""

Place = tuple[str, int | None]
"""A tensor and one of its blocks, or None where it is not known which."""


@record(180)
@dataclass(frozen=True, slots=True)
class StateTree:
    """The digests of the parameters that a client holds, told when their root is not the log's.

    Parameters
    ----------
    session_index, session_nonce, beat
        The heartbeat that told of the root.
    round, parameters_digest
        As that heartbeat has them: the digest is the root of this tree.
    depth
        Whose digests these are: ``blocks``, in the layout's order, or ``tensors``, in the schema's.
    signature
        By the key that `key_id` names, over the record with an empty signature; empty where clients are not identified.
    """

    federation: Name
    client: Name
    session_index: Uint
    session_nonce: Nonce
    beat: Uint
    round: Uint
    parameters_digest: Digest
    depth: Annotated[str, Within(1, 16)]
    digests: Annotated[tuple[Digest, ...], Within(0, MOST_DIGESTS)]
    key_id: KeyId = bytes(8)
    signature: Annotated[bytes, Within(0, 64)] = b""

    @property
    def signed_digest(self) -> bytes:
        """BLAKE3 of the canonical bytes with an empty signature, 32 bytes: what is signed."""
        unsigned = replace(self, signature=b"")
        return blake3.blake3(encode(unsigned), derive_key_context="refold 2026 state tree").digest()


def told_digests(tree: DigestTree) -> tuple[str, tuple[bytes, ...]]:
    """Return what to send of a tree: its blocks' digests where there is room for them, else its tensors'."""
    leaves = tuple(leaf for node in tree.parameters for leaf in node.leaves)
    if len(leaves) <= MOST_DIGESTS:
        return BLOCKS, leaves
    return TENSORS, tuple(node.digest for node in tree.parameters)


def root_of(told: StateTree, schema: ModelSchema) -> bytes | None:
    """Return the root that a tree's digests lead to; None where their number is not the model's."""
    if told.depth == TENSORS and len(told.digests) == len(schema.tensors):
        return digest(b"".join(told.digests), PARAMETERS)
    if told.depth == BLOCKS and len(told.digests) == len(Layout.of(schema)):
        return DigestTree(_nodes(told, schema)).parameters_digest
    return None


def differing(told: StateTree, schema: ModelSchema, truth: DigestTree) -> list[Place]:
    """Name where a tree of the right shape differs from the log's."""
    if told.depth == BLOCKS:
        return DigestTree(_nodes(told, schema)).differences(DigestTree(truth.parameters))
    pairs = zip(truth.parameters, told.digests, strict=True)
    return [(node.name, None) for node, found in pairs if node.digest != found]


def _nodes(told: StateTree, schema: ModelSchema) -> tuple[TensorNode, ...]:
    layout, leaves = Layout.of(schema), iter(told.digests)
    counts = (sum(1 for _ in layout.of_tensor(position)) for position in range(len(schema.tensors)))
    return tuple(
        TensorNode(tensor.name, tensor.dtype, tensor.shape, tensor.exponent, tuple(islice(leaves, count)))
        for tensor, count in zip(schema.tensors, counts, strict=True)
    )


def named(schema: ModelSchema, places: Sequence[Place]) -> str:
    """Say in words where states differ: tensors by name, and of each the runs of elements.

    Parameters
    ----------
    places
        In the order of a tree, slots as ``slot/tensor``.
    """
    words = [word for name, of_tensor in groupby(places, itemgetter(0)) for word in _words(schema, name, of_tensor)]
    more = f" and {len(words) - MOST_PLACES} more places" if len(words) > MOST_PLACES else ""
    return "; ".join(words[:MOST_PLACES]) + more


def _words(schema: ModelSchema, name: str, places: Iterator[Place]) -> Iterator[str]:
    """Yield a tensor's runs of blocks that lie side by side."""
    blocks = [block for _, block in places if block is not None]
    position = schema.positions.get(name, schema.positions.get(name.partition("/")[2]))
    if not blocks or position is None:
        yield name
        return
    layout = list(Layout.of(schema).of_tensor(position))
    for _, run in groupby(enumerate(blocks), lambda item: item[1] - item[0]):
        numbers = [block for _, block in run]
        first, last = layout[numbers[0]], layout[numbers[-1]]
        what = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]} to {numbers[-1]}"
        yield f"{name}, {what} of {len(layout)} (elements {first.start} to {last.start + last.count - 1})"
