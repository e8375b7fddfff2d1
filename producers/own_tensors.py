"""A client's own values of private tensors: what personalises its model, and never leaves it.

They are written down before the update that was trained with them is kept. A crash between the two: the task is done again and
begins with the newer values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refold.producers.checkpoint_file import read_checkpoint, write_checkpoint
from refold.producers.outbox import owner_of
from refold.producers.trees import pack
from refold.schemas.errors import ConfigurationError
from refold.schemas.layout import Integers
from refold.schemas.model import PRIVATE, ModelSchema
from refold.state.model_state import ModelState, lattice_arrays


class OwnTensors:
    """The private tensors of one client, in the outbox's folder.

    Parameters
    ----------
    folder
        The outbox's. Other clients may have theirs in it.
    """

    def __init__(self, folder: Path, federation: str, client: str) -> None:
        self.path = folder / f"{owner_of(federation, client).hex()}.own"
        self._held: dict[str, Integers] | None = None

    def in_place_of(self, state: ModelState) -> ModelState:
        """Return a state with this client's own values, or the state itself where no tensor is private or none was kept yet.

        Raises
        ------
        ConfigurationError
            What was kept is of another model.
        """
        private = _private(state.schema)
        if not private:
            return state
        own = self._read(state.schema)
        return replace(state, parameters=[own.get(n, a) for n, a in zip(state.schema.positions, state.parameters, strict=True)])

    def keep(self, schema: ModelSchema, local: Mapping[str, Any]) -> None:
        """Write down the private tensors of a trained ``state_dict``.

        Raises
        ------
        UsageError
            The tensors are not the model's.
        StorageFullError
            There is no room; what was there stays.
        """
        private = _private(schema)
        if not private:
            return
        arrays = lattice_arrays(local, schema)
        self._held = {name: arrays[place] for name, place in private.items()}
        write_checkpoint(self.path, pack({"schema": schema.digest, "own": self._held}, "own tensors"))

    def _read(self, schema: ModelSchema) -> dict[str, Integers]:
        if self._held is None:
            tree = read_checkpoint(self.path)
            if tree is not None and tree["schema"] != schema.digest:
                hint = "give this client an outbox of its own, or remove the file"
                raise ConfigurationError("this client's own tensors are of another model", path=self.path, hint=hint)
            self._held = {} if tree is None else tree["own"]
        return self._held


def _private(schema: ModelSchema) -> dict[str, int]:
    """Return the position of each private tensor."""
    return {tensor.name: place for place, tensor in enumerate(schema.tensors) if tensor.rule == PRIVATE}
