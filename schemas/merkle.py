"""Merkle trees over a log: one hash stands for all of its first n events, and short proofs show what it stands for.

A tree is known by the roots of its perfect subtrees alone, about log2(n) hashes, so a log of any length is folded in constant
memory. A proof is the roots of a few ranges of leaves that do not overlap; `inclusion_ranges` and `consistency_ranges` name
them, and one pass over the log yields them (`Gatherer`), or a `Span` that was kept.

Source: RFC 6962 and RFC 9162, section 2.1, with SHA-256: what Certificate Transparency uses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

LEAF, NODE = b"\x00", b"\x01"
EMPTY = hashlib.sha256().digest()
"""Root of a tree without leaves."""

MAX_PATH = 64
"""Hashes of the longest proof: a log has fewer than 2^63 events."""

Range = tuple[int, int]
"""Leaves from the first number, included, to the second, not included."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf, 32 bytes."""
    return hashlib.sha256(LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node, 32 bytes."""
    return hashlib.sha256(NODE + left + right).digest()


class Span:
    """Leaves `begin` to `end` of a log, known by the perfect subtrees that they fill. From 0 it is the tree itself.

    `add` takes amortized two hashes; memory is at most 2 · log2(end) hashes.
    """

    def __init__(self, begin: int = 0) -> None:
        self.begin = self.end = begin
        self._nodes: list[tuple[int, int, bytes]] = []  # first leaf, number of leaves, hash; in order

    def add(self, leaf: bytes) -> None:
        """Append a leaf's hash."""
        first, size, found = self.end, 1, leaf
        while self._nodes and self._nodes[-1][1] == size and self._nodes[-1][0] % (2 * size) == 0:
            first, _, left = self._nodes.pop()
            found, size = node_hash(left, found), 2 * size
        self._nodes.append((first, size, found))
        self.end += 1

    def root(self, first: int | None = None, end: int | None = None) -> bytes:
        """Return the root over a range of leaves, the whole span if not given.

        Raises
        ------
        ValueError
            The range cuts through a subtree that is only known as a whole.
        """
        first, end = self.begin if first is None else first, self.end if end is None else end
        if first == end:
            return EMPTY
        chosen = [node for node in self._nodes if first <= node[0] and node[0] + node[1] <= end]
        if sum(size for _, size, _ in chosen) != end - first:
            raise ValueError(f"leaves {first} to {end} are not known apart")
        root = chosen[-1][2]
        for _, _, left in reversed(chosen[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> Span:
        """Return a span of its own that goes on from here."""
        other = Span(self.begin)
        other.end, other._nodes = self.end, list(self._nodes)
        return other


class Gatherer:
    """Takes the leaves of a log in order, once, and yields the roots of ranges that do not overlap.

    Memory: about log2(n) hashes for the range being filled, and one for each that is done.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._wanted = list(ranges)
        self._spans = {wanted: Span(wanted[0]) for wanted in ranges}
        self._due = sorted(ranges)
        self._next = 0

    def add(self, leaf: bytes) -> None:
        """Take the next leaf's hash."""
        if self._due and self._next >= self._due[0][0]:
            self._spans[self._due[0]].add(leaf)
            if self._next + 1 == self._due[0][1]:
                del self._due[0]
        self._next += 1

    def hashes(self) -> tuple[bytes, ...]:
        """Return the ranges' roots, in the order in which they were given.

        Raises
        ------
        ValueError
            The log ended before the last of them.
        """
        if self._due:
            raise ValueError(f"the log ends after {self._next} leaves, before {self._due[-1][1]}")
        return tuple(self._spans[wanted].root() for wanted in self._wanted)


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Return the ranges whose roots prove that leaf `index` is in the tree of the first `size` leaves, from the leaf upwards.

    Raises
    ------
    ValueError
        There is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not among {size}")
    first, end, path = 0, size, list[Range]()
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((first, middle))
            first = middle
    return path[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """Return the ranges whose roots prove that the first `old` leaves of a tree of `new` are those of the older tree.

    Each lies wholly before `old` or wholly behind it. None are needed where nothing was added, or the old tree is empty.

    Raises
    ------
    ValueError
        The tree has shrunk.
    """
    if not 0 <= old <= new:
        raise ValueError(f"{new} leaves do not extend {old}")
    if old in (0, new):
        return []
    first, end, path, is_whole = 0, new, list[Range](), True
    while end != old:
        middle = first + _split(end - first)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((first, middle))
            first, is_whole = middle, False
    return ([] if is_whole else [(first, end)]) + path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the path leads from a leaf's hash at `index` to the root of a tree of `size` leaves."""
    if not 0 <= index < size or not _well_formed(path):
        return False
    found, at, last, rest = leaf, index, size - 1, list(path)
    while last:
        if at % 2 or at == last:
            while at % 2 == 0:  # The last node of a level without a right neighbour rises unchanged.
                at, last = at >> 1, last >> 1
            if not rest:
                return False
            found = node_hash(rest.pop(0), found)
        elif rest:
            found = node_hash(found, rest.pop(0))
        else:
            return False
        at, last = at >> 1, last >> 1
    return not rest and found == root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether the path shows that the tree of `new` leaves extends the tree of `old`."""
    if not 0 <= old <= new or not _well_formed(path):
        return False
    if old == new or old == 0:
        return not path and (old_root == (new_root if old else EMPTY))
    # An old tree that fills one perfect subtree is its own first node.
    nodes = [old_root, *path] if old & (old - 1) == 0 else list(path)
    at, last = old - 1, new - 1
    while at % 2:
        at, last = at >> 1, last >> 1
    if not nodes:
        return False
    older = newer = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if at % 2 or at == last:
            older, newer = node_hash(node, older), node_hash(node, newer)
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            newer = node_hash(newer, node)
        at, last = at >> 1, last >> 1
    return last == 0 and older == old_root and newer == new_root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Return the root over the hashes of all leaves."""
    tree = Span()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()


def _split(size: int) -> int:
    """Return the largest power of two below a size."""
    return 1 << (size - 1).bit_length() - 1


def _well_formed(path: Sequence[bytes]) -> bool:
    return len(path) <= MAX_PATH and all(len(node) == 32 for node in path)
