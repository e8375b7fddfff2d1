"""From what a framework calls a state to NumPy arrays and a schema, and refusals that name the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.model import FLOAT_DTYPES, INTEGER_DTYPES, RULES, ModelSchema, TensorSchema
from refold.state.lattice import choose_exponent

Arrays = dict[str, npt.NDArray[Any]]


def to_numpy(state: Mapping[str, Any], schema: ModelSchema | None = None) -> Arrays:
    """Return a ``state_dict``'s tensors as arrays, in its own order or the schema's.

    Parameters
    ----------
    state
        NumPy arrays, or tensors with ``detach``, ``cpu`` and ``numpy`` as torch has them. Not copied where they need not be.
    schema
        What the tensors must be.

    Raises
    ------
    UsageError
        A dtype that cannot be kept, or tensors that are not the schema's; names the tensor.
    """
    arrays = {name: _array(name, value) for name, value in state.items()}
    return arrays if schema is None else _fitting(arrays, schema)


def schema_of(state: Mapping[str, Any], rules: Mapping[str, str] | None = None) -> ModelSchema:
    """Return the schema of a state: float tensors are averaged; integer ones, such as step counters, take the maximum.

    Parameters
    ----------
    rules
        Tensor name → ``max``, ``sum`` or ``last``, for integer tensors that want another rule.

    Raises
    ------
    UsageError
        As `to_numpy`; also for a value that is not finite, a rule that does not fit, or a state without tensors.
    """
    arrays = to_numpy(state)
    chosen = dict(rules or {})
    if unknown := sorted(set(chosen) - set(arrays)):
        raise UsageError(f"rules for tensors that the state lacks: {', '.join(unknown)}")
    try:
        return ModelSchema(tuple(_tensor(name, array, chosen.get(name)) for name, array in arrays.items()))
    except InvalidRecord as error:
        raise UsageError(f"the state cannot be a model: {error.message}") from error


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            value = value.numpy()
        except (TypeError, RuntimeError) as error:  # torch's own way to say that NumPy has no such dtype, bfloat16 for one
            raise _unsupported(name, str(value.dtype).removeprefix("torch.")) from error
    if not isinstance(value, np.ndarray | np.generic):
        raise UsageError(f"tensor {name!r} is a {type(value).__name__}", hint="give NumPy arrays or torch tensors")
    array = np.asarray(value)
    if array.dtype.name not in (*FLOAT_DTYPES, *INTEGER_DTYPES):
        raise _unsupported(name, array.dtype.name)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _unsupported(name: str, dtype: str) -> UsageError:
    if dtype in ("float64", "float16", "bfloat16", "longdouble", "float128"):
        hint = "convert the model to float32, in torch with model.float()"
    else:
        hint = f"leave it out of the state, or make it one of {', '.join((*FLOAT_DTYPES, *INTEGER_DTYPES))}"
    return UsageError(f"tensor {name!r} has dtype {dtype}", hint=hint, tensor=name)


def _fitting(arrays: Arrays, schema: ModelSchema) -> Arrays:
    expected = {tensor.name: tensor for tensor in schema.tensors}
    if expected.keys() != arrays.keys():
        lacking, extra = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
        raise UsageError(f"the state's tensors are not the model's: lacking {lacking[:5]}, unknown {extra[:5]}")
    for name, tensor in expected.items():
        array = arrays[name]
        if (array.dtype.name, array.shape) != (tensor.dtype, tensor.shape):
            found = f"{array.dtype.name} {array.shape}"
            raise UsageError(f"tensor {name!r} is {found}, the model's is {tensor.dtype} {tensor.shape}", tensor=name)
    return {tensor.name: arrays[tensor.name] for tensor in schema.tensors}


def _tensor(name: str, array: npt.NDArray[Any], rule: str | None) -> TensorSchema:
    is_float = array.dtype.name in FLOAT_DTYPES
    allowed = RULES[:1] if is_float else RULES[1:]
    if rule is not None and rule not in allowed:
        raise UsageError(
            f"tensor {name!r} of {array.dtype.name} cannot have the rule {rule!r}", hint=f"one of {', '.join(allowed)}"
        )
    exponent = 0
    if is_float:
        if not np.isfinite(array).all():
            raise UsageError(f"tensor {name!r} holds values that are not finite", tensor=name)
        exponent = choose_exponent(float(np.max(np.abs(array), initial=0.0)))
    return TensorSchema(name, array.dtype.name, tuple(array.shape), exponent, rule or allowed[0])
