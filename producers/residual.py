"""What a client left out of its sparse updates, on its disk: the memory of error feedback.

The *residual* is an int32 for each float parameter, in lattice steps: what this client wanted to change and has not sent. Every
update sends the largest entries of its change and the residual together (`refold.state.largest`), and leaves an amount unsent;
the residual grows by that amount once the update is part of a round, and only then:

- accepted and applied: the residual takes the unsent amount in;
- refused, or kept with weight 0 or in a round that is void: the residual stays as it was before. The round's work is lost as it
  is with any codec; to add it to the residual would count it twice, since the client trains again from the same parameters;
- refused as an ``anomaly``: the residual is halved. An honest client that took part for long carries more than newcomers do. If
  they are most of the cohort, its update looks too long; were the residual kept whole, so would all its next ones (measured, 3
  clients that 7 join: 25 % of honest updates refused, with halving 2 %);
- rolled back: a residual that rests on a round which is no ancestor of the one trained from is forgotten;
- regridded: a residual in steps of another lattice is forgotten.

Amounts are added, so that it does not matter which of two waiting updates hears of its fate first.

Durable steps, those of the outbox among them:

1. The unsent amount is durable, in a file named by the update's digest. A crash after this: the update was never kept; a later
   start removes the file, once its round is over.
2. The update is durable in the outbox; from now on it is sent as the same bytes.
3. The update's fate is known from `rounds`: the residual is replaced, and carries the digest of the update that it took in. A
   crash before: the fate is read again and this is done again.
4. The unsent amount is removed. A crash before: the digest in the residual tells that it was taken in.
5. The update leaves the outbox.

A client that loses its disk, or whose residual is damaged, begins again from zero: late changes are lost, nothing else. On disk
lie 4 bytes for each float parameter, and as many again for each update that waits; in memory nothing between tasks.

Sources: Seide et al., 1-bit stochastic gradient descent, 2014; Karimireddy et al., Error feedback fixes SignSGD, 2019.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from refold.producers.lineage import Lineage
from refold.producers.outbox import owner_of
from refold.producers.residual_file import Amount, Basis, read_amount, read_basis, write_amount
from refold.schemas.errors import ConfigurationError
from refold.schemas.events import Receipt, RoundCommitted
from refold.schemas.files import sync_folder
from refold.schemas.model import ModelSchema
from refold.schemas.reasons import ANOMALY
from refold.schemas.updates import UpdateBody
from refold.state.largest import REST_LIMIT

log = logging.getLogger("refold.client")

ACCEPTED, APPLIED = "accepted", "applied"
NONE = bytes(32)


class Residual:
    """One client's residual, and the unsent amounts of updates whose fate is not known.

    Parameters
    ----------
    folder
        The outbox's. Other clients may have theirs in it.
    private
        The client adds noise to what it sends: nothing that was left out before it did may come after it.
    """

    def __init__(self, folder: str | Path, federation: str, client: str, *, private: bool = False) -> None:
        self._folder = Path(folder)
        self._client = client
        self._owner = owner_of(federation, f"{client}\0private" if private else client)
        self._path = self._folder / f"{self._owner.hex()}.residual"
        self._outcomes: dict[bytes, str] = {}
        self._joined: dict[bytes, tuple[int, bool]] = {}
        self._given = NONE

    def put(self, update: bytes, unsent: Amount, body: UpdateBody) -> None:
        """Keep what an update leaves unsent, made with what `read` gave last, before the update itself is kept.

        Raises
        ------
        StorageFullError
            There is no room; nothing was kept.
        """
        # 1. The unsent amount.
        basis = Basis(self._owner, update, self._given, body.base_round, body.base_digest, body.schema_digest)
        write_amount(self._unsent(update), basis, unsent)

    def discard(self, update: bytes) -> None:
        """Forget what an update left unsent, the update itself not being kept."""
        self._remove(self._unsent(update))

    def awaits(self, update: bytes) -> bool:
        """Whether an update left something unsent, and its fate is not settled."""
        return self._unsent(update).exists()

    def take_receipt(self, receipt: Receipt) -> None:
        """Hear what became of an update; `settle` acts on it."""
        if self.awaits(receipt.digest):
            self._outcomes[receipt.digest] = receipt.outcome

    def take_round(self, committed: RoundCommitted) -> None:
        """Hear who is in a round, and whether it changed the model; `settle` acts on it."""
        for member in committed.members:
            if member.client == self._client and self.awaits(member.digest):
                self._joined[member.digest] = (committed.round, committed.outcome == APPLIED and member.weight > 0)

    def settle(self, lineage: Lineage) -> list[bytes]:
        """Do what the fates heard of ask for, and return the updates that may leave the outbox. Idempotent.

        Raises
        ------
        StorageFullError
            There is no room for the new residual; all is as before, and this may be called again.
        """
        settled = []
        for update, outcome in list(self._outcomes.items()):
            round_, applied = self._joined.get(update, (0, False))
            if outcome == ACCEPTED and update not in self._joined:
                continue  # Accepted, and its round is still open.
            if applied:
                self._grow(update, lineage, round_)
            elif outcome == ANOMALY:
                self._halve(update, lineage)
            # 4. The unsent amount goes.
            self._remove(self._unsent(update))
            del self._outcomes[update]
            self._joined.pop(update, None)
            settled.append(update)
        return settled

    def read(self, schema: ModelSchema, lineage: Lineage, base_round: int) -> Amount | None:
        """Return the residual for an update from a base round, as arrays of the caller's own, empty for integer tensors.

        None where there is none, or it rests on a round that was rolled back or is of another federation; it is forgotten then.
        """
        self._given = NONE
        found = self._held(schema)
        if found is None:
            return None
        basis, amount = found
        if not _rests(basis, lineage, base_round):
            self._forget(f"it rests on round {basis.round}, which is no ancestor of round {base_round}")
            return None
        self._given = basis.update
        return amount

    def sweep(self, waiting: Collection[bytes], head: int) -> None:
        """Remove amounts of updates that were never kept: of closed rounds, and not among those that wait in the outbox."""
        for path in self._folder.glob("*.unsent"):
            try:
                basis = read_basis(path)
            except FileNotFoundError:
                continue
            except ConfigurationError:
                path.replace(path.with_suffix(".broken"))
                continue
            if basis.owner == self._owner and basis.update not in waiting and basis.round < head:
                self._remove(path)

    def _grow(self, update: bytes, lineage: Lineage, round_: int) -> None:
        schema = lineage.schema_of(round_)
        held = self._held(schema)
        if held is not None and held[0].update == update:
            return
        try:
            basis, amount = read_amount(self._unsent(update), schema)
        except FileNotFoundError:
            return  # Another process of this client took it in.
        except ConfigurationError as error:
            self._forget(error)
            return
        if basis.owner != self._owner:
            return  # Made before this client added noise, or while it did.
        if held is not None and _rests(held[0], lineage, round_):
            for unsent, rest in zip(amount, held[1], strict=True):
                unsent += rest
        elif basis.after != NONE:
            # The update sent a part of a residual that is gone: what it left, alone, would take that part back.
            self._forget("what an update was made with is gone")
            return
        for unsent in amount:
            np.clip(unsent, -REST_LIMIT, REST_LIMIT, out=unsent)
        self._replace(Basis(self._owner, update, NONE, round_, _digest(lineage, round_), schema.digest), amount)

    def _halve(self, update: bytes, lineage: Lineage) -> None:
        held = self._held(lineage.schema_of(lineage.head))
        if held is None or held[0].update == update:
            return
        for rest in held[1]:
            np.right_shift(rest, 1, out=rest)
        self._replace(replace(held[0], update=update), held[1])

    def _replace(self, basis: Basis, amount: Amount) -> None:
        # 3. The residual.
        write_amount(self._path, basis, amount)

    def _unsent(self, update: bytes) -> Path:
        return self._folder / f"{update.hex()}.unsent"

    def _held(self, schema: ModelSchema) -> tuple[Basis, Amount] | None:
        """Read the residual; one that is damaged or of another model is as good as none."""
        try:
            return read_amount(self._path, schema)
        except FileNotFoundError:
            return None
        except ConfigurationError as error:
            self._forget(error)
            return None

    def _forget(self, why: object) -> None:
        log.warning("the residual begins again from zero: %s", why)
        self._remove(self._path)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_folder(self._folder)


def _rests(basis: Basis, lineage: Lineage, round_: int) -> bool:
    """Whether what an amount rests on is this round or an ancestor of it."""
    return lineage.parameters_digest(basis.round) == basis.parameters_digest and lineage.descends(round_, basis.round)


def _digest(lineage: Lineage, round_: int) -> bytes:
    return lineage.parameters_digest(round_) or bytes(32)
