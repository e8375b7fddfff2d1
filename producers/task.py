"""What a client is asked to do, and what becomes of its answer."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import numpy.typing as npt

from refold.producers.checkpoint import ClientCheckpoint
from refold.producers.outbox import owner_of
from refold.producers.reporting import Said
from refold.producers.residual_file import Amount
from refold.schemas.canonical import Scalar
from refold.schemas.errors import TryAgainError, UsageError
from refold.schemas.held import TrainingHeld
from refold.schemas.plans import RoundPlan
from refold.schemas.updates import DECLINE, EVALUATE, PASS, TRAIN, UNTOLD, UpdateBody
from refold.state.model_state import ModelState

if TYPE_CHECKING:
    import torch

    from refold.producers.client import Client

MAX_WAIT_S = 0.25
MAX_NOTE = 4000


class Receipt:
    """What became of an update. ``accepted`` means: it is in the log and stays there."""

    def __init__(self, client: Client, digest: bytes) -> None:
        self._client = client
        self.digest = digest

    @property
    def outcome(self) -> str | None:
        """``accepted``, the class of the reason it was refused for, ``unheard``, ``diverged``, or None: no verdict yet.

        ``unheard``: it was refused without a receipt, since nobody could be held to it, or its client is kept out.
        ``diverged``: it was not sent, since the state that it was trained from changed in memory; the round asks again.
        """
        return self._client.outcome(self.digest)

    def wait(self, timeout_s: float = 60.0) -> str:
        """Wait for the verdict and return the outcome.

        Raises
        ------
        TryAgainError
            There was none in time. The update is not lost: it is in the log or in the outbox.
        """
        deadline_s = self._client.clock.monotonic_s() + timeout_s
        while self.outcome is None:
            left_s = deadline_s - self._client.clock.monotonic_s()
            if left_s <= 0:
                raise TryAgainError(
                    f"no verdict within {timeout_s:g} s",
                    client=self._client.name,
                    hint="the round may wait for other clients; if it never comes, is this client enrolled with this key?",
                )
            self._client.wait_for_news(min(left_s, MAX_WAIT_S))
        return self.outcome


class Task:
    """A round's work for one client: train from a base round, or evaluate it.

    Parameters
    ----------
    plan
        What the round asks for.
    state
        The base round's parameters on the lattice.
    """

    def __init__(self, client: Client, plan: RoundPlan, state: ModelState, *, evaluate: bool) -> None:
        self._client = client
        self.plan = plan
        self.state = state
        self.evaluate = evaluate
        self.answered = False
        self.receipt: Receipt | None = None
        """What the answer comes to; None until there is one."""
        self.is_declined = False
        self._checkpoints: list[ClientCheckpoint] = []

    @property
    def round(self) -> int:
        """The round that is being made."""
        return self.plan.round

    @property
    def base_round(self) -> int:
        """The round whose parameters are given."""
        return self.state.round

    @property
    def config(self) -> dict[str, Scalar]:
        """The plan's settings for this round."""
        return dict(self.plan.config)

    @property
    def identity(self) -> tuple[str, str, int, bytes]:
        """What tells this task from all others: federation, client, round, and the digest of the round's parameters."""
        return (self._client.federation, self._client.name, self.round, self.state.parameters_digest)

    def checkpoint(self, *, gradients: bool = False, **parts: Any) -> ClientCheckpoint:
        """Return a `refold.ClientCheckpoint` of this task's training, in the outbox's folder; removed once this is answered.

        Parameters
        ----------
        gradients, parts
            As `refold.ClientCheckpoint` has them. Give the parts as they are to begin: the base parameters loaded.
        """
        owner = owner_of(self._client.federation, self._client.name).hex()
        file = self._client.folder / f"{owner}.checkpoint"
        made = ClientCheckpoint(file, self, gradients=gradients, **parts)
        made.on_kept(lambda life, step, digest: self._client.trained_to(TrainingHeld(life, self.round, step, digest)))
        self._checkpoints.append(made)
        return made

    def numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return the base parameters as arrays of their own; of private tensors those that this client trained last."""
        return self._client.own.in_place_of(self.state).numpy()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `numpy` returns as torch tensors, for ``load_state_dict``."""
        return self._client.own.in_place_of(self.state).torch()

    def progress(self, **said: Unpack[Said]) -> None:
        """Say how far the work on this task is; as `Client.progress`."""
        self._client.progress(**said)

    def submit(self, state: Mapping[str, Any], *, num_examples: int, metrics: Mapping[str, float] | None = None) -> Receipt:
        """Send what training made of the parameters: arrays or tensors by name.

        Returns once the update is safe in the outbox and was sent, or will be when the bus answers again.

        Raises
        ------
        UsageError
            The tensors are not the model's, or this task was answered.
        InvalidRecord
            A value is not finite, or changed beyond the lattice.
        StorageFullError
            There is no room in the outbox, or for what a sparse update leaves unsent.
        """
        self._answer(evaluation=False)
        if not 1 <= operator.index(num_examples) < 2**31:
            raise UsageError(f"num_examples is {num_examples}, not 1 to 2^31 − 1", round=self.round)
        if receipt := self._spoiled():
            return receipt
        coded = self._client.coded(self, state)
        self._client.own.keep(self.state.schema, state)
        said = _finite(metrics or {})
        body = self._client.body(self, TRAIN, num_examples, said, coded.chunks, coded.exponents, "", coded.sealing)
        return self._sent(body, coded.chunks, coded.unsent)

    def evaluated(self, *, loss: float, metrics: Mapping[str, float] | None = None, num_examples: int = 1) -> Receipt:
        """Send what the base round is worth on this client's data."""
        self._answer(evaluation=True)
        if receipt := self._spoiled():
            return receipt
        said = _finite({"loss": loss, **(metrics or {})})
        body = self._client.body(self, EVALUATE, num_examples, said, (), (), "")
        return self._sent(body, ())

    def decline(self, reason: str) -> Receipt:
        """Say that there is nothing to send this round; no blame is attached."""
        if self.answered:
            raise UsageError("this task was answered already", round=self.round)
        self.is_declined = True
        kind = PASS if self.evaluate else DECLINE
        note = "".join(c if c.isprintable() else " " for c in reason)[:MAX_NOTE]
        body = self._client.body(self, kind, 0, {}, (), (), note)
        return self._sent(body, ())

    def _sent(self, body: UpdateBody, chunks: tuple[bytes, ...], unsent: Amount | None = None) -> Receipt:
        return self._over(self._client.submit(self, body, chunks, unsent))

    def _spoiled(self) -> Receipt | None:
        receipt = self._client.spoiled(self)
        return None if receipt is None else self._over(receipt)

    def _over(self, receipt: Receipt) -> Receipt:
        self.answered, self.receipt = True, receipt
        for checkpoint in self._checkpoints:
            checkpoint.clear()
        return receipt

    def _answer(self, *, evaluation: bool) -> None:
        if self.answered:
            raise UsageError("this task was answered already", round=self.round)
        if evaluation != self.evaluate:
            asked = "an evaluation" if self.evaluate else "training"
            raise UsageError(f"this task asks for {asked}", round=self.round, hint="see `task.evaluate`")


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are finite numbers, and how many are not: that the model lost its way is worth telling."""
    told = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return told if len(told) == len(metrics) else {**told, UNTOLD: float(len(metrics) - len(told))}
