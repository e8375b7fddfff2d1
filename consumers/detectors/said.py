"""What detectors said of clients before: a bounded fold over verdicts, asked for a cohort's clients at a time."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from refold.schemas.events import Score

VALUES = 16
"""So many values of each detector are remembered of a client; no detector looks further back."""

CLIENTS = 20_000
"""Of so many clients; the one that was judged longest ago is forgotten first."""


@dataclass(slots=True)
class Said:
    """Past values by client and detector."""

    clients: OrderedDict[str, dict[str, deque[float]]] = field(default_factory=OrderedDict)

    def take(self, client: str, scores: Sequence[Score]) -> None:
        """Remember a judgement."""
        values = self.clients.setdefault(client, {})
        self.clients.move_to_end(client)
        for score in scores:
            values.setdefault(score.detector, deque(maxlen=VALUES)).append(score.value)
        if len(self.clients) > CLIENTS:
            self.clients.popitem(last=False)

    def of(self, clients: Iterable[str]) -> dict[str, dict[str, list[float]]]:
        """Return what each detector said of these clients before, oldest first: ``[client][detector]``."""
        known = (client for client in clients if client in self.clients)
        return {client: {name: list(values) for name, values in self.clients[client].items()} for client in known}
