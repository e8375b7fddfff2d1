"""From what a framework calls a state to NumPy arrays and a schema, and refusals that name the tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.model import (
    FIXED_RULES,
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    INTEGER_RULES,
    MEAN,
    TIED,
    ModelSchema,
    TensorSchema,
)
from refold.state.halves import HALVES, Bfloat16
from refold.state.lattice import choose_exponent

Arrays = dict[str, npt.NDArray[Any]]


def to_numpy(state: Mapping[str, Any], schema: ModelSchema | None = None) -> Arrays:
    """Return a ``state_dict``'s tensors as arrays, in its own order or the schema's; bfloat16 as float32.

    Parameters
    ----------
    state
        NumPy arrays, or tensors with ``detach``, ``cpu`` and ``numpy`` as torch has them. Not copied where they need not be.
    schema
        What the tensors must be. Names that are tied may be left out.

    Raises
    ------
    UsageError
        A dtype that cannot be kept, or tensors that are not the schema's; names the tensor.
    """
    arrays = {name: _array(name, value) for name, value in state.items()}
    return arrays if schema is None else _fitting(arrays, schema)


def schema_of(state: Mapping[str, Any], rules: Mapping[str, str] | None = None) -> ModelSchema:
    """Return the schema of a state: float tensors are averaged; integer ones, such as step counters, take the maximum.

    Torch tensors that are one tensor under several names, as shared weights are in a ``state_dict``, are kept once.

    Parameters
    ----------
    rules
        Tensor name, or a pattern such as ``*.running_*`` → rule: ``max``, ``sum`` or ``last`` for integer tensors, ``frozen``
        or ``private`` for any. A name counts before patterns, and of these the first that fits.

    Raises
    ------
    UsageError
        As `to_numpy`; also for a value that is not finite, a rule that does not fit, or a state without tensors.
    """
    arrays = to_numpy(state)
    chosen, tied = _chosen(list(arrays), rules or {}), _tied(state)
    if both := sorted(set(rules or {}) & set(tied)):
        raise UsageError(f"tensor {both[0]!r} is {tied[both[0]]!r} under another name", hint="give the rule to that one")
    positions = {name: place for place, name in enumerate(arrays)}
    tensors = []
    try:
        for name, array in arrays.items():
            rule = f"{TIED}{positions[tied[name]]}" if name in tied else chosen.get(name)
            tensors.append(_tensor(name, array, dtype_of(state[name]), rule))
        return ModelSchema(tuple(tensors))
    except InvalidRecord as error:
        raise UsageError(f"the state cannot be a model: {error.message}") from error


def _chosen(names: Sequence[str], rules: Mapping[str, str]) -> dict[str, str]:
    """Return the rule of each tensor that has one chosen for it."""
    patterns = [name for name in rules if name not in names]
    found = {name: rules[name] for name in names if name in rules}
    unknown = []
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        unknown += [] if fitting else [pattern]
        for name in fitting:
            found.setdefault(name, rules[pattern])
    if unknown:
        raise UsageError(f"rules for tensors that the state lacks: {', '.join(sorted(unknown))}")
    return found


def _tied(state: Mapping[str, Any]) -> dict[str, str]:
    """Return for each torch tensor that has the very memory of one before it the name of that one."""
    first: dict[Any, str] = {}
    tied = {}
    for name, value in state.items():
        if not hasattr(value, "untyped_storage") or not value.numel():
            continue
        place = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), str(value.device))
        if first.setdefault(place, name) != name:
            tied[name] = first[place]
    return tied


def dtype_of(value: Any) -> str:
    """Return the dtype of an array or a torch tensor by its name."""
    if isinstance(value, Bfloat16):
        return value.dtype
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "detach") else str(np.asarray(value).dtype.name)


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    if isinstance(value, Bfloat16):
        return value.values
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if dtype_of(value) == "bfloat16":
            return np.asarray(value.float().numpy())
        try:
            value = value.numpy()
        except (TypeError, RuntimeError) as error:  # torch's own way to say that NumPy has no such dtype
            raise _unsupported(name, str(value.dtype).removeprefix("torch.")) from error
    if not isinstance(value, np.ndarray | np.generic):
        raise UsageError(f"tensor {name!r} is a {type(value).__name__}", hint="give NumPy arrays or torch tensors")
    array = np.asarray(value)
    if array.dtype.name not in (*FLOAT_DTYPES, *INTEGER_DTYPES):
        raise _unsupported(name, array.dtype.name)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _unsupported(name: str, dtype: str) -> UsageError:
    if dtype in ("float64", "longdouble", "float128"):
        hint = "convert the model to float32, in torch with model.float()"
    else:
        hint = f"leave it out of the state, or make it one of {', '.join((*FLOAT_DTYPES, *INTEGER_DTYPES))}"
    return UsageError(f"tensor {name!r} has dtype {dtype}", hint=hint, tensor=name)


def _fitting(arrays: Arrays, schema: ModelSchema) -> Arrays:
    expected = {tensor.name: tensor for tensor in schema.tensors}
    needed = {name for name, tensor in expected.items() if tensor.tied_to is None}
    if not needed <= arrays.keys() <= expected.keys():
        lacking, extra = sorted(needed - arrays.keys()), sorted(arrays.keys() - expected.keys())
        raise UsageError(f"the state's tensors are not the model's: lacking {lacking[:5]}, unknown {extra[:5]}")
    for name, array in arrays.items():
        tensor = expected[name]
        # A model of 16 bits may be trained with a copy of 32; NumPy has no other way for bfloat16.
        fitting = (tensor.dtype, "float32") if tensor.dtype in HALVES else (tensor.dtype,)
        if array.dtype.name not in fitting or array.shape != tensor.shape:
            found = f"{array.dtype.name} {array.shape}"
            raise UsageError(f"tensor {name!r} is {found}, the model's is {tensor.dtype} {tensor.shape}", tensor=name)
        if tensor.tied_to is not None and not _equal(array, arrays[schema.tensors[tensor.tied_to].name]):
            other = schema.tensors[tensor.tied_to].name
            raise UsageError(f"tensor {name!r} is {other!r} under another name, and differs from it", tensor=name)
    return {tensor.name: arrays[tensor.name] for tensor in schema.tensors if tensor.name in arrays}


def _equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays hold the same; one memory under two names is not looked at."""
    same = one.__array_interface__["data"] == other.__array_interface__["data"] and one.strides == other.strides
    return same or np.array_equal(one, other)


def _tensor(name: str, array: npt.NDArray[Any], dtype: str, rule: str | None) -> TensorSchema:
    is_float = dtype in FLOAT_DTYPES
    allowed = ((MEAN,) if is_float else INTEGER_RULES) + FIXED_RULES
    if rule is not None and not rule.startswith(TIED) and rule not in allowed:
        raise UsageError(f"tensor {name!r} of {dtype} cannot have the rule {rule!r}", hint=f"one of {', '.join(allowed)}")
    exponent = 0
    if is_float and rule in (None, MEAN):
        if not np.isfinite(array).all():
            raise UsageError(f"tensor {name!r} holds values that are not finite", tensor=name)
        exponent = choose_exponent(float(np.max(np.abs(array), initial=0.0)))
    return TensorSchema(name, dtype, tuple(array.shape), exponent, rule or allowed[0])
