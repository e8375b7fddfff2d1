"""The parts of a training program that a checkpoint keeps: how each is read, recognised and brought back."""

from __future__ import annotations

import random
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

from refold.schemas.errors import UsageError

DRAWS = "random"
"""The kind of a generator, which is brought back together with the process-wide ones."""


def state_of(name: str, part: Any) -> Any:
    """Return a part's state as a tree.

    Raises
    ------
    UsageError
        The part is of no kind that can be kept.
    """
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    if isinstance(part, random.Random):
        return part.getstate()
    if _is_torch_generator(part):
        return part.get_state()
    if hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
        return part.state_dict()
    if isinstance(part, MutableMapping):
        return dict(part)
    raise UsageError(
        f"{name} is a {type(part).__name__}, which a checkpoint cannot keep",
        hint="give what has state_dict and load_state_dict, a random generator, or a dict of arrays and numbers",
    )


def restore(name: str, part: Any, state: Any) -> None:
    """Bring a part to a state that `state_of` gave. Arrays in a mapping are filled in place.

    Raises
    ------
    UsageError
        The part does not take the state.
    """
    try:
        if isinstance(part, np.random.Generator):
            part.bit_generator.state = state
        elif isinstance(part, random.Random):
            part.setstate(state)
        elif _is_torch_generator(part):
            part.set_state(state)
        elif hasattr(part, "load_state_dict"):
            part.load_state_dict(state)
        else:
            _fill(part, state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"{name} does not take what the checkpoint holds: {error}", hint="was the program changed?") from error


def draws(part: Any) -> bool:
    """Whether a part is a random generator."""
    return isinstance(part, np.random.Generator | random.Random) or _is_torch_generator(part)


def kind_of(part: Any, state: Any) -> list[Any]:
    """Return what must be the same for a state to fit: the part's class, and the shapes of its tensors or parameter groups."""
    kind: list[Any] = [f"{type(part).__module__}.{type(part).__qualname__}"]
    if not isinstance(state, Mapping) or draws(part):
        return kind
    if "param_groups" in state:
        return [*kind, *(f"a group of {len(group['params'])} parameters" for group in state["param_groups"])]
    is_model = hasattr(part, "named_parameters") or isinstance(part, MutableMapping)
    return [*kind, *(_shape(key, value) for key, value in state.items() if hasattr(value, "shape"))] if is_model else kind


def difference(name: str, here: list[Any], kept: list[Any]) -> str:
    """Return the first way in which a part is not the one that was kept, or ""."""
    for own, other in zip(here, kept, strict=False):
        if own != other:
            return f"{name}: {other} in the file, {own} here"
    if len(here) != len(kept):
        extra = (kept[len(here) :] or here[len(kept) :])[0]
        return f"{name}: {extra} is only {'in the file' if len(kept) > len(here) else 'here'}"
    return ""


def _shape(key: object, value: Any) -> str:
    return f"{key} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _is_torch_generator(part: Any) -> bool:
    return hasattr(part, "initial_seed") and hasattr(part, "get_state")


def _fill(part: MutableMapping[Any, Any], state: Mapping[Any, Any]) -> None:
    for key in [key for key in part if key not in state]:
        del part[key]
    for key, value in state.items():
        held = part.get(key)
        if (
            isinstance(held, np.ndarray)
            and isinstance(value, np.ndarray)
            and held.shape == value.shape
            and held.flags.writeable
        ):
            held[...] = value
        else:
            part[key] = value
