"""What a log can prove: to who audits it, and to who holds a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from refold.consumers.audit.findings import Progress
from refold.consumers.audit.run import Audit, Report, silent
from refold.consumers.proving import checkpoints_of, covering, last_index, prove_inclusion
from refold.evidence import Evidence
from refold.opened import Opened
from refold.schemas.errors import NotFoundError, TryAgainError
from refold.schemas.kept import Kept
from refold.schemas.proofs import InclusionProof


class Auditing(Opened):
    """What anyone may ask of a log: whether it holds together, and proofs of what is in it."""

    def verify(
        self, *, quick: bool = False, against: Iterable[str | Path | Kept] = (), progress: Progress | None = None
    ) -> Report:
        """Audit the whole federation; see `refold.consumers.audit`. Never raises for what it finds.

        Parameters
        ----------
        quick
            Read the logs alone: no replay, no steps derived again.
        against
            What was kept outside: files or folders of checkpoints (a client's outbox is one), other copies of the log.
        """
        with Evidence(self.name, against) as kept:
            signed = [one.signed for one in kept.kept]
            audit = Audit(self.bus, self.topics, quick=quick, against=signed, copies=kept.copies, keys=self.keyring.sealing)
            return audit.report(progress or silent)

    def checkpoints(self) -> list[Kept]:
        """Return every signed checkpoint of the log, the newest last: worth keeping anywhere else."""
        return checkpoints_of(self.bus, self.topics, self.genesis)

    def prove(self, index: int, *, kept: Kept | None = None, progress: Progress | None = None) -> InclusionProof:
        """Prove to anyone that an event of `accepted` is in the log that was signed.

        Parameters
        ----------
        kept
            The checkpoint to rest it on; the newest if None.

        Raises
        ------
        NotFoundError
            The checkpoint does not cover the event, or the log has ended before it.
        TryAgainError
            No checkpoint covers the event yet.
        """
        chosen = kept or self._covering(index)
        return prove_inclusion(self.bus, self.topics, index, chosen, progress or silent)

    def _covering(self, index: int) -> Kept:
        try:
            return covering(index, self.checkpoints())
        except TryAgainError:
            if self.ended and index > (last := last_index(self.bus, self.topics)):
                raise NotFoundError(f"the log ends at {last}", index=index, hint="`refold log` prints its events") from None
            raise
