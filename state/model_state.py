"""The state of a round: lattice integers, whatever framework they came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refold.schemas.digests import DigestTree, parameters_nodes, slots_nodes
from refold.schemas.errors import IntegrityError, UsageError
from refold.schemas.files import replacing
from refold.schemas.layout import Integers
from refold.schemas.model import ModelSchema, TensorSchema
from refold.state.halves import from_bits, to_bits
from refold.state.lattice import from_lattice, limits, to_lattice
from refold.state.tensors import schema_of, to_numpy

if TYPE_CHECKING:
    import torch


@dataclass
class ModelState:
    """Parameters and optimizer slots of one round. Arrays are flat, one for each tensor of the schema.

    Parameters
    ----------
    round
        The round whose state this is.
    parameters
        int32 for float tensors (value = integer · 2^-exponent; the float's bits where no round changes it), int64 for integer
        tensors. A tied tensor has none.
    slots
        For each optimizer slot, in the optimizer's order, its int32 arrays (empty for integer tensors). No slots before the
        first applied round.
    slot_exponents
        For each slot the exponent of each tensor (0 for integer tensors).
    """

    schema: ModelSchema
    round: int
    parameters: list[Integers]
    slots: dict[str, list[Integers]] = field(default_factory=dict)
    slot_exponents: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def copy(self) -> ModelState:
        """Return a state with arrays of its own."""
        slots = {name: [array.copy() for array in arrays] for name, arrays in self.slots.items()}
        return ModelState(self.schema, self.round, [a.copy() for a in self.parameters], slots, dict(self.slot_exponents))

    def tree(self, *, slots: bool = True, threads: int = 1) -> DigestTree:
        """Return the digest tree; without slots only its parameters' half means anything."""
        parameters = parameters_nodes(self.schema, self.parameters, threads=threads)
        held = slots_nodes(self.schema, self.slots, self.slot_exponents, threads=threads) if slots else ()
        return DigestTree(parameters, held)

    @property
    def digest(self) -> bytes:
        """Digest of parameters and slots, 32 bytes. Computed at each call."""
        return self.tree().state_digest

    @property
    def parameters_digest(self) -> bytes:
        """Digest of the parameters, 32 bytes. Computed at each call."""
        return self.tree(slots=False).parameters_digest

    def numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return the parameters in their dtypes and shapes, in the schema's order; tied names share one array.

        A bfloat16 comes as float32, which holds each of its values: NumPy has none.

        Raises
        ------
        IntegrityError
            An integer tensor holds what its dtype cannot.
        """
        arrays: dict[str, npt.NDArray[Any]] = {}
        for tensor, integers in zip(self.schema.tensors, self.parameters, strict=True):
            if tensor.tied_to is None:
                arrays[tensor.name] = self._values(tensor, integers).reshape(tensor.shape)
            else:
                arrays[tensor.name] = arrays[self.schema.tensors[tensor.tied_to].name]
        return arrays

    def _values(self, tensor: TensorSchema, integers: Integers) -> npt.NDArray[Any]:
        if tensor.is_float:
            return from_lattice(integers, tensor.exponent, tensor.dtype)
        low, high = limits(tensor)
        if integers.size and not low <= int(integers.min()) <= int(integers.max()) <= high:
            raise IntegrityError(f"values outside {tensor.dtype}", round=self.round, tensor=tensor.name)
        return from_bits(integers, tensor.dtype) if tensor.width == 32 else integers.astype(tensor.dtype)

    def torch(self) -> dict[str, torch.Tensor]:
        """Return the parameters as torch tensors, ready for ``load_state_dict``; tied names share one tensor.

        Raises
        ------
        UsageError
            torch is not installed.
        """
        try:
            import torch
        except ImportError as error:
            raise UsageError("torch is not installed", hint="pip install 'refold[torch]'") from error
        made: dict[str, torch.Tensor] = {}
        for tensor, array in zip(self.schema.tensors, self.numpy().values(), strict=True):
            if tensor.tied_to is None:
                made[tensor.name] = torch.from_numpy(array).to(getattr(torch, tensor.dtype))
            else:
                made[tensor.name] = made[self.schema.tensors[tensor.tied_to].name]
        return made

    def to_safetensors(self) -> bytes:
        """Return the parameters, as `numpy` gives them, as safetensors: the same bytes for the same state everywhere.

        Its metadata names the round and the parameters' digest, under one key, since several have no order.
        """
        from safetensors.numpy import save

        return save(self.numpy(), metadata={"refold": f"round {self.round}, parameters {self.parameters_digest.hex()}"})

    def safetensors(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters, as `numpy` gives them, as a safetensors file, whole or not at all.

        What was at `path` stays until then; a crash leaves at most ``PATH.….tmp`` beside it.
        """
        data = self.to_safetensors()
        with replacing(Path(path)) as file:
            file.write(data)


def initial_state(state: Mapping[str, Any], rules: Mapping[str, str] | None = None) -> ModelState:
    """Return round 0 from a ``state_dict``.

    Raises
    ------
    UsageError
        As `refold.state.tensors.schema_of`; also for a state whose tensors have no elements: no update could change it.
    """
    schema = schema_of(state, rules)
    if not schema.size:
        raise UsageError("the state cannot be a model: it has no parameters", hint="every tensor of it is empty")
    return ModelState(schema, 0, lattice_arrays(state, schema))


def lattice_arrays(state: Mapping[str, Any], schema: ModelSchema) -> list[Integers]:
    """Return a ``state_dict``'s tensors as flat integers of the schema's lattice.

    Raises
    ------
    UsageError
        As `to_numpy`; also for a value beyond the lattice.
    """
    arrays = to_numpy(state, schema)
    found: list[Integers] = []
    for tensor in schema.tensors:
        if tensor.tied_to is not None:
            found.append(np.zeros(0, np.int32 if tensor.width == 32 else np.int64))
            continue
        flat = arrays[tensor.name].reshape(-1)
        try:
            found.append(_integers(tensor, flat))
        except OverflowError as error:
            raise UsageError(f"tensor {tensor.name!r}: {error}", tensor=tensor.name) from error
    return found


def _integers(tensor: TensorSchema, flat: npt.NDArray[Any]) -> Integers:
    if tensor.is_float:
        return to_lattice(flat, tensor.exponent)
    return to_bits(flat, tensor.dtype) if tensor.width == 32 else flat.astype(np.int64)
