"""What nodes say in their heartbeats that they hold beside the model's parameters: the state of an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from refold.schemas.canonical import Digest, Name, Uint, Within


@dataclass(frozen=True, slots=True)
class TrainingHeld:
    """Where a client's training stood when it was last kept on its disk, or brought back from there.

    A client's optimizer is its own, and nothing in the log says what it should be. But a training that tells of two digests at
    one step has lost its state, or got another one's.

    Parameters
    ----------
    life
        Drawn when the training was begun, and kept with it.
    round
        The round that it is to make.
    step
        Batches done.
    digest
        Of all that `ClientCheckpoint` keeps of the program's parts: model, optimizer, scheduler.
    """

    life: Annotated[bytes, Within(8, 8)]
    round: Uint
    step: Uint
    digest: Digest


@dataclass(frozen=True, slots=True)
class StateHeld:
    """A state that a server holds between rounds, as it is in its memory.

    Parameters
    ----------
    group
        Whose state it is.
    round
        The round: the step, too, that the server's optimizer is at.
    parameters_digest, slots_digest
        Digests of the two halves; together they make the state's digest, which the log has of every round.
    """

    group: Name
    round: Uint
    parameters_digest: Digest
    slots_digest: Digest
