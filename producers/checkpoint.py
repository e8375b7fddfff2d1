"""`ClientCheckpoint`: a client killed in the middle of its local training goes on from its last batch, with the same bits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from refold.producers.checkpoint_file import read_checkpoint, remove_checkpoint, write_checkpoint
from refold.producers.checkpoint_parts import difference, draws, kind_of, restore, state_of
from refold.producers.random_states import random_states, set_random_states
from refold.producers.trees import pack
from refold.schemas.errors import UsageError

if TYPE_CHECKING:
    from refold.producers.task import Task

log = logging.getLogger("refold.checkpoint")

T = TypeVar("T")
VERSION = 1


class ClientCheckpoint:
    """Keeps a training program's parts on disk, and brings them back where the program is started again.

    Made with the parts in their first state; where the file holds a later state of the same work, they have it afterwards::

        checkpoint = task.checkpoint(model=model, optimizer=optimizer, scheduler=scheduler)
        for batch in checkpoint.batches(loader, epochs=2, every=10):
            train(model, optimizer, batch)
        task.submit(model.state_dict(), num_examples=len(data))

    What is kept beside the parts: how many batches are done, and the process-wide random states of Python, NumPy and torch. So
    a run that was killed and started again ends with the very bits of one that was not, as far as the program draws from
    nothing else. The file is safetensors and msgpack with a checksum; nothing in it is ever unpickled or run.

    Parameters
    ----------
    path
        The file; the checkpoint before the newest is kept beside it as ``….previous``. A damaged one is passed over.
    task
        Whose work it is: a checkpoint of another round is left alone, and written over by the next `save`. None for training
        that belongs to no federation.
    gradients
        Keep the modules' gradients too: for programs that sum them over several batches.
    parts
        By any name, in the order in which they are brought back: what has ``state_dict`` and ``load_state_dict`` (torch's
        modules, optimizers, schedulers, scalers), dicts of arrays and numbers (filled in place), and random generators of
        NumPy, torch or Python.

    Raises
    ------
    UsageError
        The file is of another model: other parts, tensors, shapes or optimizer.
    """

    def __init__(
        self, path: str | os.PathLike[str], task: Task | None = None, *, gradients: bool = False, **parts: Any
    ) -> None:
        if not parts:
            raise UsageError("a checkpoint of nothing", hint="name its parts: ClientCheckpoint(path, model=model, …)")
        self.path = Path(path)
        self._work = list(task.identity) if task is not None else []
        self._parts = parts
        self._gradients = gradients
        self._kinds = {name: kind_of(part, state_of(name, part)) for name, part in parts.items()}
        self.step = 0
        """Batches done."""
        self._epoch = self._batch = 0
        self._epoch_draws: Any = None
        self._told: Callable[[bytes, int, bytes], None] = lambda life, step, digest: None
        self._life, self._digest = os.urandom(8), b""
        self.restored = self._restore()
        """Whether an earlier life's state was found."""

    def on_kept(self, told: Callable[[bytes, int, bytes], None]) -> None:
        """Call this at every `save`, and now where an earlier life's state was found.

        Parameters
        ----------
        told
            Called with what names this training, the step, and the digest of the parts.
        """
        self._told = told
        if self._digest:
            told(self._life, self.step, self._digest)

    def batches(self, loader: Iterable[T], *, epochs: int = 1, every: int = 1) -> Iterator[T]:
        """Yield the loader's batches, from where an earlier life stopped, and save after every `every` of them.

        A batch counts as done when the next one is asked for. Each epoch iterates the loader anew. One that was broken off is
        begun with the random states that it began with, so that a shuffling loader gives the same order, and the batches done
        are drawn and left.

        Raises
        ------
        UsageError
            The loader has fewer batches than an earlier life saw.
        """
        if every < 1 or epochs < 1:
            raise UsageError(f"epochs {epochs} and every {every} are not 1 or more")
        while self._epoch < epochs:
            for batch in self._rest(loader):
                yield batch
                self.step += 1
                self._batch += 1
                if self.step % every == 0:
                    self.save()
            self._epoch, self._batch, self._epoch_draws = self._epoch + 1, 0, None
        self.save()

    def _rest(self, loader: Iterable[T]) -> Iterator[T]:
        """Return what is left of the epoch that is open."""
        if self._epoch_draws is None:
            self._epoch_draws = self._draws()
            return iter(loader)
        now = self._draws()
        self._set_draws(self._epoch_draws)
        batches = iter(loader)
        for done in range(self._batch):
            if next(batches, self) is self:
                raise UsageError(f"the loader has {done} batches, an earlier life saw {self._batch}", path=self.path)
        self._set_draws(now)
        return batches

    def save(self) -> None:
        """Write down where the program is; returns once it is durable.

        Raises
        ------
        UsageError
            A part's state holds what cannot be kept.
        StorageFullError
            There is no room; what was there stays.
        """
        states = {name: state_of(name, part) for name, part in self._parts.items() if not draws(part)}
        self._digest = pack(states, "checkpoint.parts").digest
        tree = {
            "version": VERSION,
            "work": self._work,
            "kinds": self._kinds,
            "progress": [self.step, self._epoch, self._batch],
            "parts": states,
            "told": [self._life, self._digest],
            "gradients": {name: _gradients(part) for name, part in self._parts.items()} if self._gradients else {},
            "draws": self._draws(),
            "epoch_draws": self._epoch_draws,
        }
        write_checkpoint(self.path, pack(tree, "checkpoint"))
        self._told(self._life, self.step, self._digest)

    def clear(self) -> None:
        """Remove what is on disk: the work is handed in. Idempotent."""
        remove_checkpoint(self.path)

    def _restore(self) -> bool:
        tree = read_checkpoint(self.path)
        if tree is None:
            return False
        self._require_same(tree)
        if tree["work"] != self._work:
            log.info("the checkpoint %s is of other work and left alone", self.path)
            return False
        for name, state in tree["parts"].items():
            restore(name, self._parts[name], state)
        for name, gradients in tree["gradients"].items():
            _set_gradients(self._parts[name], gradients)
        self.step, self._epoch, self._batch = tree["progress"]
        self._epoch_draws = tree["epoch_draws"]
        match tree.get("told"):
            case [bytes() as life, bytes() as digest] if (len(life), len(digest)) == (8, 32):
                self._life, self._digest = life, digest
        self._set_draws(tree["draws"])
        return True

    def _require_same(self, tree: Any) -> None:
        hint = "give this program a file of its own, or remove the old one"
        if tree.get("version") != VERSION:
            raise UsageError(f"a checkpoint of version {tree.get('version')!r}", path=self.path, hint=hint)
        kept = tree["kinds"]
        if list(kept) != list(self._kinds):
            found = f"it holds {', '.join(kept)}; the program has {', '.join(self._kinds)}"
            raise UsageError(f"the checkpoint is of another program: {found}", path=self.path, hint=hint)
        for name, kind in self._kinds.items():
            if differs := difference(name, kind, kept[name]):
                raise UsageError(f"the checkpoint is of another model: {differs}", path=self.path, hint=hint)

    def _draws(self) -> dict[str, Any]:
        own = {name: state_of(name, part) for name, part in self._parts.items() if draws(part)}
        return {"process": random_states(), "own": own}

    def _set_draws(self, states: dict[str, Any]) -> None:
        try:
            set_random_states(states["process"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"the random states are not to be had here: {error}", path=self.path) from error
        for name, state in states["own"].items():
            restore(name, self._parts[name], state)


def _gradients(part: Any) -> dict[str, Any]:
    named = part.named_parameters() if hasattr(part, "named_parameters") else ()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def _set_gradients(part: Any, gradients: dict[str, Any]) -> None:
    if not gradients:
        return
    for name, parameter in part.named_parameters():
        kept = gradients.get(name)
        parameter.grad = None if kept is None else kept.to(parameter.device)
