"""The logs of nodes as the health group hears them: of a client's own process, and of who watches files beside it."""

from __future__ import annotations

from collections.abc import Collection

from refold.consumers.logsight.sight import LogSight
from refold.schemas.condition import LogDigest

FILES = "'s log files"
MOST_CHARACTERS = 300


class NodeLogs:
    """Looks at the digests of believed beats, and says what is unusual in words that go on after the node's name."""

    def __init__(self) -> None:
        self._sight = LogSight()

    def take(self, client: str, digest: LogDigest, now_s: float, *, is_watching: bool) -> str:
        """Take in what a beat that is believed says of a log; return what is unusual about it, or ""."""
        name = client + (FILES if is_watching else "")
        found = self._sight.take(name, digest, now_s)
        if not found:
            return ""
        worst = max(found, key=lambda one: one.score)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        said = worst.sentence.removeprefix(name).strip()
        return (said if len(said) <= MOST_CHARACTERS else said[: MOST_CHARACTERS - 1] + "…") + more

    def failed(self, client: str, now_s: float) -> None:
        """Take note that a node was found dead: what its logs said just before is what to look for."""
        self._sight.failed(client, now_s)
        self._sight.failed(client + FILES, now_s)

    def keep(self, active: Collection[str]) -> None:
        """Forget nodes that may no longer take part."""
        for name in self._sight.nodes():
            if name not in active and name.removesuffix(FILES) not in active:
                self._sight.forget(name)
