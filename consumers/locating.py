"""Naming the tensors and blocks in which a node's state differs from the log's, beside everything else.

What a node sends are digests. The log's own digests of a round's blocks are not kept, so the round is rebuilt once. That takes
as long as a rebuild takes, so it is done in a thread of its own, for a bounded share of its time: no verdict waits for it, and
a client that goes astray on purpose makes the server do no more than that.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict, deque
from contextlib import suppress

from refold.bus.clock import Clock
from refold.bus.closing import close_all
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.producers.history import History
from refold.schemas.digests import DigestTree
from refold.schemas.errors import RefoldError
from refold.schemas.events import Genesis
from refold.schemas.state_tree import StateTree, differing, named

log = logging.getLogger("refold.detection")

REMEMBERED_TREES = 8
MOST_WAITING = 64
REST = 9
"""After a rebuild nothing is rebuilt for nine times as long: a tenth of one core at most."""

Found = tuple[StateTree, str]


class Locator:
    """Compares state trees with the log's.

    Parameters
    ----------
    rebuilds
        How many rounds were rebuilt.
    """

    def __init__(self, bus: Bus, topics: Topics, genesis: Genesis, clock: Clock) -> None:
        self._bus, self._topics, self._genesis, self._clock = bus, topics, genesis, clock
        self._waiting: OrderedDict[str, StateTree] = OrderedDict()
        self._found: deque[Found] = deque(maxlen=MOST_WAITING)
        self._trees: OrderedDict[int, DigestTree] = OrderedDict()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._next_s = -math.inf
        self.rebuilds = 0

    def found(self) -> list[Found]:
        """Return what was compared since the last call: trees, and in words where they differ."""
        return [self._found.popleft() for _ in range(len(self._found))]

    def ask(self, tree: StateTree) -> None:
        """Let a tree, known to be of the model's shape, be compared; a client's newest takes the place of its last.

        Where too many wait the newest client's is left: the same trouble in so many nodes is better looked for elsewhere.
        """
        with self._changed:
            if tree.client not in self._waiting and len(self._waiting) >= MOST_WAITING:
                return
            self._waiting[tree.client] = tree
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="refold-locating", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        history: History | None = None
        try:
            while (tree := self._next()) is not None:
                try:
                    history = history or History(self._bus, self._topics, genesis=self._genesis, slots=False)
                    log_tree = self._log_tree(history, tree.round)
                    schema = history.lineage.schema_of(tree.round)
                    self._found.append((tree, named(schema, differing(tree, schema, log_tree))))
                except (RefoldError, MemoryError) as error:
                    log.warning("where %s differs in round %d cannot be said: %s", tree.client, tree.round, error)
                except Exception:
                    # A client's tree ends no group, nor this thread (I7): only its places stay unnamed. What was held may be
                    # half changed and is read anew.
                    log.exception("where %s differs in round %d cannot be said", tree.client, tree.round)
                    _let_go(history)
                    history = None
        finally:
            _let_go(history)

    def _next(self) -> StateTree | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting)
            return None if self._stopped else self._waiting.popitem(last=False)[1]

    def _log_tree(self, history: History, round_: int) -> DigestTree:
        if round_ not in self._trees:
            self._wait_until(self._next_s)
            begun_s = self._clock.monotonic_s()
            try:
                history.refresh()
                self._trees[round_] = history.rebuild(round_, slots=False).tree(slots=False)
                self.rebuilds += 1
            finally:
                now_s = self._clock.monotonic_s()
                self._next_s = now_s + REST * (now_s - begun_s)
            while len(self._trees) > REMEMBERED_TREES:
                self._trees.popitem(last=False)
        return self._trees[round_]

    def _wait_until(self, monotonic_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, max(0.0, monotonic_s - self._clock.monotonic_s()))

    def close(self) -> None:
        """Stop, once the rebuild that is under way is done."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()


def _let_go(history: History | None) -> None:
    """Close a history; a bus that fails now has nothing more to do with it."""
    with suppress(RefoldError):
        close_all(history)
