"""Agreement of nodes with the log: what clients and servers hold, beyond each single update.

What beats give away (`refold.consumers.astray`) becomes alerts, trees that clients send are looked at, and updates whose
clients contradict themselves are refused. Nothing here is written to a log but the refusals, as every refusal is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Record
from refold.bus.topics import Topics
from refold.consumers.astray import Servers, Strayed, false_tree
from refold.consumers.hearing import Hearing
from refold.consumers.locating import Locator
from refold.consumers.pending import Pending
from refold.consumers.roster import Roster
from refold.consumers.trees import TreeReader
from refold.producers.lineage import Lineage
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import Genesis
from refold.schemas.keys import SERVER_HEARTBEAT_TAG, key_id, verify
from refold.schemas.state_tree import StateTree
from refold.schemas.updates import ServerHeartbeat, server_heartbeat_digest

SERVER_TYPE = b"refold.ServerHeartbeat"
DIVERGENCE, REFUSE, TELL = "divergence", "refuse", "tell"
DIVERGENCES = (REFUSE, TELL)


class Agreement:
    """What an active member of detection knows of nodes' states."""

    def __init__(self, bus: Bus, topics: Topics, genesis: Genesis, clock: Clock, hearing: Hearing) -> None:
        self._genesis = genesis
        self._hearing = hearing
        self._trees = TreeReader()
        self._servers = Servers()
        self._locator = Locator(bus, topics, genesis, clock)
        self._is_told_only = dict(genesis.defence.settings).get(DIVERGENCE) == TELL or genesis.defence.mode == "none"

    def hear(self, records: Sequence[Record], roster: Roster, lineage: Lineage) -> list[Strayed]:
        """Take in what was read of `health`, after its beats were heard; return what people should know."""
        found, self._hearing.strayed = self._hearing.strayed, []
        for beat in self._server_beats(records):
            found += self._servers.take(beat, lineage.parameters_digest, lineage.state_digest)
        for tree, why in self._trees.take(records, roster, self._hearing.astray, lineage.schema_of):
            if why:
                found.append(false_tree(tree.client, why))
            else:
                self._locator.ask(tree)
        return found + [self._named(*compared) for compared in self._locator.found()]

    def _server_beats(self, records: Iterable[Record]) -> Iterable[ServerHeartbeat]:
        keys = {key_id(public): public for public in self._genesis.log_keys}
        for record in records:
            if record.header("ce_type") != SERVER_TYPE:
                continue
            try:
                beat = decode(record.value or b"", ServerHeartbeat)
            except InvalidRecord:
                continue
            if beat.federation != self._genesis.federation or not beat.holds:
                continue
            public = keys.get(beat.key_id)
            is_signed = public is not None and verify(
                public, SERVER_HEARTBEAT_TAG, server_heartbeat_digest(beat), beat.signature
            )
            if is_signed or not keys:
                yield beat

    def _named(self, tree: StateTree, where: str) -> Strayed:
        what = f"{tree.client} differs from the log's round {tree.round} in {where}"
        return Strayed(tree.client, "warning", what, "where the same client loses the same place again, test its memory")

    def refuse(self, waiting: Iterable[Pending], roster: Roster) -> None:
        """Refuse updates whose client contradicts itself.

        One that signed two heartbeats under one number is refused like one that did so with updates, and is frozen by it. One
        whose newest word is that it holds another state of the base than the log's cannot have trained from what it names.
        """
        if not roster.required:
            return
        for item in waiting:
            if item.body is None or item.reason:
                continue
            if item.client in self._hearing.lying:
                item.reason, item.detail = "equivocation", "two heartbeats of one number tell of two states"
            elif not self._is_told_only and self._hearing.astray.contradicts(item.body):
                item.reason, item.detail = "diverged", "by its own heartbeat its client holds another state of the base round"

    def close(self) -> None:
        """Let go of everything."""
        self._locator.close()
