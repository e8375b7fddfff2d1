"""The digest tree of a state: blocks, tensors, parameters and slots, state.

A leaf is BLAKE3 over a block's little-endian integers. Blocks depend on the schema alone (`refold.schemas.layout`), so the tree
is the same for every chunk size, thread count and machine, and where two roots differ, the leaves say in which block of which
tensor. Every kind of node has a domain of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import blake3
import msgpack
import numpy as np

from refold.schemas.layout import Block, Integers, Layout
from refold.schemas.model import ModelSchema

LEAF = "refold 2026 state leaf"
TENSOR = "refold 2026 state tensor"
PARAMETERS = "refold 2026 state parameters"
SLOTS = "refold 2026 state slots"
STATE = "refold 2026 state"


def digest(data: bytes | memoryview, domain: str) -> bytes:
    """BLAKE3 of the bytes in a domain, 32 bytes: equal bytes in two domains have different digests."""
    return blake3.blake3(data, derive_key_context=domain).digest()


def leaf_digest(integers: Integers) -> bytes:
    """Digest of a block's integers, int32 or int64, as they lie in little-endian memory."""
    little = np.ascontiguousarray(integers, dtype=integers.dtype.newbyteorder("<"))
    return digest(little.view(np.uint8).data, LEAF)


@dataclass(frozen=True)
class TensorNode:
    """One tensor of the tree: what it is, and the digest of each of its blocks."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    exponent: int
    leaves: tuple[bytes, ...]

    @cached_property
    def digest(self) -> bytes:
        """Digest over name, dtype, shape, exponent and leaves, 32 bytes."""
        about = msgpack.packb((self.name, self.dtype, self.shape, self.exponent), use_bin_type=True)
        return digest(struct.pack("<I", len(about)) + about + b"".join(self.leaves), TENSOR)


@dataclass(frozen=True)
class DigestTree:
    """The digests of a whole state.

    Parameters
    ----------
    parameters
        A node for each tensor of the schema.
    slots
        A node for each float tensor of each optimizer slot, named ``slot/tensor``; empty before the first applied round.
    """

    parameters: tuple[TensorNode, ...]
    slots: tuple[TensorNode, ...] = ()

    @cached_property
    def parameters_digest(self) -> bytes:
        """What a client that holds only the parameters can check."""
        return digest(_joined(self.parameters), PARAMETERS)

    @cached_property
    def slots_digest(self) -> bytes:
        """Digest of the optimizer's slots."""
        return digest(_joined(self.slots), SLOTS)

    @cached_property
    def state_digest(self) -> bytes:
        """Digest of parameters and slots."""
        return state_digest(self.parameters_digest, self.slots_digest)

    def differences(self, other: DigestTree) -> list[tuple[str, int | None]]:
        """Name the blocks that differ: (tensor, block of the tensor), or (tensor, None) where the tensor itself is another.

        A tensor that only one of the two has is named with None.
        """
        mine = {node.name: node for node in (*self.parameters, *self.slots)}
        theirs = {node.name: node for node in (*other.parameters, *other.slots)}
        found: list[tuple[str, int | None]] = []
        for name in dict.fromkeys([*mine, *theirs]):
            found += _compare(name, mine.get(name), theirs.get(name))
        return found


def state_digest(parameters_digest: bytes, slots_digest: bytes) -> bytes:
    """Return the digest of a state from those of its halves."""
    return digest(parameters_digest + slots_digest, STATE)


def parameters_nodes(schema: ModelSchema, arrays: Sequence[Integers], *, threads: int = 1) -> tuple[TensorNode, ...]:
    """Digest a model's parameters, one flat array for each tensor of the schema."""
    leaves = _leaves(arrays, Layout.of(schema), threads)
    return tuple(TensorNode(t.name, t.dtype, t.shape, t.exponent, leaves[i]) for i, t in enumerate(schema.tensors))


def slots_nodes(
    schema: ModelSchema,
    slots: Mapping[str, Sequence[Integers]],
    exponents: Mapping[str, Sequence[int]],
    *,
    threads: int = 1,
) -> tuple[TensorNode, ...]:
    """Digest an optimizer's slots, in the mapping's order; integer tensors have none."""
    names = tuple(slots)
    arrays = [array for name in names for array in slots[name]]
    leaves = iter(_leaves(arrays, Layout.of_slots(schema, names), threads))
    every = [(name, index, next(leaves)) for name in names for index in range(len(schema.tensors))]
    return tuple(
        TensorNode(f"{name}/{schema.tensors[i].name}", "int32", schema.tensors[i].shape, exponents[name][i], tensor_leaves)
        for name, i, tensor_leaves in every
        if schema.tensors[i].is_float
    )


def _leaves(arrays: Sequence[Integers], layout: Layout, threads: int) -> list[tuple[bytes, ...]]:
    def of_block(block: Block) -> bytes:
        return leaf_digest(arrays[block.tensor][block.elements])

    found: list[list[bytes]] = [[] for _ in layout.sizes]
    for block, leaf in zip(layout, _each(of_block, layout, threads), strict=True):
        found[block.tensor].append(leaf)
    return [tuple(leaves) for leaves in found]


def _each(work: Callable[[Block], bytes], blocks: Iterable[Block], threads: int) -> Iterable[bytes]:
    """Hash in order, on `threads` threads: blake3 lets go of the interpreter while it hashes."""
    if threads == 1:
        return map(work, blocks)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, blocks))


def _joined(nodes: tuple[TensorNode, ...]) -> bytes:
    return b"".join(node.digest for node in nodes)


def _compare(name: str, mine: TensorNode | None, theirs: TensorNode | None) -> list[tuple[str, int | None]]:
    if mine is None or theirs is None:
        return [(name, None)]
    if (mine.dtype, mine.shape, mine.exponent) != (theirs.dtype, theirs.shape, theirs.exponent):
        return [(name, None)]
    pairs = zip(mine.leaves, theirs.leaves, strict=True)
    return [(name, block) for block, (left, right) in enumerate(pairs) if left != right]
