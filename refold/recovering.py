"""Going back to an earlier round, and going on from there."""

from __future__ import annotations

from refold.opened import Opened
from refold.schemas.rollback import Calibration, RollBack


class Recovering(Opened):
    """What an operator does about a model that has itself failed."""

    def roll_back(
        self, round_: int, reason: str = "rolled back by the operator", *, calibration: Calibration | None = None
    ) -> bytes:
        """Let training go on from an earlier round; return the command's id. Needs the operator's key.

        A round is opened whose parent is that one and whose state is that one's; nothing is deleted, and no number is used
        again. Updates that clients made from the rounds that are left are refused as such, without blame.

        Parameters
        ----------
        calibration
            How training goes on at first; see `repair`. None goes on as it did from that round.
        """
        return self.command(RollBack(round_, reason, calibration))
