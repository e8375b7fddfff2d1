"""How the golden vectors write values as JSON, so that no reader of JSON can take one type for another."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

EXACT_IN_JSON = 2**53


def as_json(value: Any) -> Any:
    """Return a value of a record as JSON.

    nil, bool and text are JSON's own; an int is a number up to 2^53, beyond it ``{"int": decimal}``; a float is ``{"float":
    decimal}``, bytes are ``{"hex": digits}``; a list is a list; a record is an object with its fields in order.
    """
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT_IN_JSON:
        return {"int": str(value)}
    return value


def array_as_json(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Return a small flat array of integers as JSON."""
    return {"dtype": array.dtype.name, "values": [as_json(int(item)) for item in array]}


def formula(size: int, *, times: int, mod: int, minus: int, shift: int) -> npt.NDArray[np.int64]:
    """Return elements i = ((i · times mod mod) − minus) · 2^shift, for arrays too long to write down."""
    found: npt.NDArray[np.int64] = (np.arange(size, dtype=np.int64) * times % mod - minus) << shift
    return found
