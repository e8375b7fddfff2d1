"""What a federation keeps of updates, and what it forgets: sealing keys, erasure, pruning."""

from __future__ import annotations

from refold.bus.clock import SystemClock
from refold.consumers.commands import send_command
from refold.opened import Opened
from refold.schemas.erasure import ChangePruning, EraseClient, KeyClient


class Forgetting(Opened):
    """What an operator does about updates that need not, or must not, be kept."""

    def seal(self, name: str) -> bytes:
        """Let a client seal its updates from now on to a key of its own; return the command's id. Needs the operator's key.

        The private half is made in the key folder; every machine that serves needs a copy of it.
        """
        operator = self.keyring.operator()
        key = self.keyring.sealing.create(name)
        return send_command(self.bus, self.topics, KeyClient(name, key.public), operator, SystemClock())

    def erase(self, name: str, reason: str = "erased by the operator") -> bytes:
        """Void a client's sealing keys; return the command's id. Needs the operator's key.

        Servers destroy the keys once every round that needs them is made. The log, its rounds and rebuilds stay as they are.
        """
        return self.command(EraseClient(name, reason))

    def prune(self, *, keep_rounds: int | None = None, before_round: int | None = None) -> bytes:
        """Let payloads of old rounds go; return the command's id. Needs the operator's key.

        Parameters
        ----------
        keep_rounds
            Of how many rounds, the newest, payloads are kept from now on; 0 keeps those of all. None leaves that as it is.
        before_round
            Those of rounds below this one go at once. None leaves that as it is.
        """
        return self.command(ChangePruning(keep_rounds, before_round))
