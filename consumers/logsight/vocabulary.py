"""Which templates each node of a federation has shown, in bounded memory.

All nodes share one table of templates; what a node has shown is a set of places in it, kept as the bits of one number: half a
kilobyte a node at most. A place belongs to the node that brought it, until another node shows the same; then it is everyone's.
A node that brings more than `OF_ONE_NODE` that nobody else shows loses its own oldest ones, so that it can fill no more than
its part of the table.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import blake3

MOST_PLACES = 4096
OF_ONE_NODE = 128


@dataclass(slots=True)
class _Place:
    bit: int
    owner: str | None
    nodes: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A template that a node shows.

    Parameters
    ----------
    bit
        Its place in the table; None where there is no room for it.
    is_known
        The node has shown it before.
    peers
        How many others have.
    """

    bit: int | None
    is_known: bool
    peers: int


class Vocabulary:
    """Templates by what they say, and who has shown them."""

    def __init__(self, *, most_places: int = MOST_PLACES, of_one_node: int = OF_ONE_NODE) -> None:
        self._of_one_node = of_one_node
        self._places: dict[bytes, _Place] = {}
        self._free = list(range(most_places - 1, -1, -1))
        self._shown: dict[str, int] = {}
        self._own: dict[str, OrderedDict[bytes, None]] = {}

    def show(self, node: str, level: int, text: str) -> Shown:
        """Take note that a node shows a template."""
        name = blake3.blake3(b"%d " % level + text.encode()).digest(16)
        seen = self._shown.get(node, 0)
        place = self._places.get(name) or self._placed(node, name)
        if place is None:
            return Shown(None, False, 0)
        if seen >> place.bit & 1:
            return Shown(place.bit, True, place.nodes - 1)
        peers = place.nodes
        place.nodes += 1
        self._shown[node] = self._shown.get(node, 0) | 1 << place.bit
        if place.owner is not None and place.owner != node:
            self._own[place.owner].pop(name, None)
            place.owner = None
        return Shown(place.bit, False, peers)

    def forget(self, node: str) -> None:
        """Let go of a node that is gone for good. What others have shown as well stays."""
        for name in self._own.pop(node, OrderedDict()):
            self._drop(name)
        seen = self._shown.pop(node, 0)
        for place in self._places.values():
            place.nodes -= seen >> place.bit & 1

    def nodes(self) -> int:
        """How many nodes have shown anything."""
        return len(self._shown)

    def _placed(self, node: str, name: bytes) -> _Place | None:
        own = self._own.setdefault(node, OrderedDict())
        if len(own) >= self._of_one_node:
            oldest, _ = own.popitem(last=False)
            self._shown[node] &= ~(1 << self._places[oldest].bit)
            self._drop(oldest)
        if not self._free:
            return None
        place = self._places[name] = _Place(self._free.pop(), node, 0)
        own[name] = None
        return place

    def _drop(self, name: bytes) -> None:
        self._free.append(self._places.pop(name).bit)
