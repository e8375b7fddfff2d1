"""The golden vectors of arrays: lattices, chunks, a step folded into a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from wire_values import array_as_json, as_json, formula

from refold.schemas.codec import encode_floats, encode_integers, encode_raw
from refold.schemas.digests import DigestTree, parameters_nodes, slots_nodes
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.topk import Entries, encode_sparse
from refold.state.delta import delta_integers, grid_of
from refold.state.fold import apply_step
from refold.state.lattice import from_lattice, to_lattice
from refold.state.model_state import ModelState

SMALL = ModelSchema(
    (
        TensorSchema("w", "float32", (2, 3), 20, "mean"),
        TensorSchema("b", "float32", (), 22, "mean"),
        TensorSchema("none", "float32", (0, 4), 22, "mean"),
        TensorSchema("steps", "int64", (), 0, "max"),
        TensorSchema("seen", "bool", (2,), 0, "last"),
    )
)
LARGE = ModelSchema((TensorSchema("w", "float32", (400, 500), 18, "mean"), TensorSchema("n", "int32", (3,), 0, "sum")))


def lattice() -> Any:
    """Lattice to float, float to lattice, and changes to integers; floats as the bytes of a little-endian float32."""
    integers = np.array([0, 1, -1, 7, 2**24 + 1, 2**24 + 3, -(2**24) - 1, 2**31 - 1, -(2**31) + 1, 123456789], np.int32)
    values = np.array([0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.1, 3.14159274, -1000.25], np.float32)
    held = np.array([0, 1000, -1000, 2**24 + 1, 5], np.int32)
    local = np.array([0.25, 0.0009765625, -0.001, 16.5, 0.0], np.float32)
    return {
        "to_float": [
            {"exponent": e, "integers": integers.tolist(), "floats": from_lattice(integers, e).astype("<f4").tobytes().hex()}
            for e in (0, 20, 22, -3, 40)
        ],
        "to_lattice": [
            {"exponent": e, "floats": values.astype("<f4").tobytes().hex(), "integers": to_lattice(values, e).tolist()}
            for e in (0, 1, 18, -2)
        ],
        "changes": [
            {
                "exponent": 20,
                "k": k,
                "held": held.tolist(),
                "local": local.astype("<f4").tobytes().hex(),
                "q": delta_integers(local, held, 20, k).tolist(),
            }
            for k in (0, 3, 8)
        ],
        "float32_changes": [
            {"exponent": e, "floats": values.astype("<f4").tobytes().hex(), "q": grid_of(values, e).tolist()}
            for e in (0, 1, 18)
        ],
    }


def chunks() -> Any:
    """Chunks of every form, small and of several blocks, and the integers or floats in them."""
    edges: list[Integers] = [
        np.array([0, 127, 128, -129, 2**31 - 1, -(2**31)], np.int32),
        np.array([-1], np.int32),
        np.zeros(0, np.int32),
        np.array([2**40 + 255], np.int64),
        np.array([1, 0], np.int64),
    ]
    pattern = {"mod": 251, "times": 7, "minus": 125, "shift": 6}
    counters: Integers = np.array([5, -5, 0], np.int64)
    large: list[Integers] = [formula(LARGE.tensors[0].size, **pattern).astype(np.int32), counters]
    floats = [(large[0] / 2**18).astype(np.float32), counters]
    few = np.array([0, 1, 70_000, 131_071, 131_072, 199_999])
    entries = Entries(few, np.array([1, -1, 300, -70_000, 2**27, -(2**27)], np.int32))
    sparse: Integers = np.zeros(LARGE.tensors[0].size, np.int32)
    sparse[few] = entries.values
    small, wide = Layout.of(SMALL), Layout.of(LARGE)
    whole = [{"formula": pattern, "dtype": "int32"}, array_as_json(counters)]
    scaled = [{"formula": pattern, "dtype": "float32", "over": 2**18}, array_as_json(counters)]
    thin = [{"places": few.tolist(), "values": entries.values.tolist(), "dtype": "int32"}, array_as_json(counters)]
    return {
        "schemas": {"small": as_json(SMALL), "large": as_json(LARGE)},
        "cases": [
            _case("planes, small", "small", 1, encode_integers(edges, small), [array_as_json(a) for a in edges]),
            _case("raw, small", "small", 3, encode_raw(edges, small), [array_as_json(a) for a in edges]),
            _case("planes, one chunk", "large", 1, encode_integers(large, wide), whole),
            _case("planes, a chunk for each block", "large", 1, encode_integers(large, wide, max_chunk_bytes=64), whole),
            _case("floats, a chunk for each block", "large", 2, encode_floats(floats, wide, max_chunk_bytes=64), scaled),
            _case("sparse, one chunk", "large", 4, encode_sparse([entries, counters], wide), thin),
        ],
    }


def _case(why: str, schema: str, form: int, made: Any, arrays: list[Any]) -> dict[str, Any]:
    return {"why": why, "schema": schema, "form": form, "chunks": [chunk.hex() for chunk in made], "arrays": arrays}


def fold() -> Any:
    """A state, a step, and the state after it, with every digest; slots besides."""
    before: list[Integers] = [
        np.array([5, -5, 2**31 - 1, -(2**31), 0, 1 << 20], np.int32),
        np.array([77], np.int32),
        np.zeros(0, np.int32),
        np.array([9], np.int64),
        np.array([0, 1], np.int64),
    ]
    step: list[Integers] = [
        np.array([1, -1, 1, -1, 1000, -3], np.int32),
        np.array([-200], np.int32),
        np.zeros(0, np.int32),
        np.array([-2], np.int64),
        np.array([1, -1], np.int64),
    ]
    exponents = (2, 0, 0, 0, 0)
    state = ModelState(SMALL, 1, [array.copy() for array in before])
    layout = Layout.of(SMALL)
    apply_step(state, ((block, step[block.tensor][block.elements]) for block in layout), exponents)
    slots = {"momentum": [array[::-1].copy() if array.dtype == np.int32 else np.zeros(0, np.int32) for array in before]}
    slot_exponents = {"momentum": (24, 25, 26, 0, 0)}
    return {
        "schema": as_json(SMALL),
        "before": {"arrays": [array_as_json(a) for a in before], **_tree(before, {}, {})},
        "step": {"chunks": [chunk.hex() for chunk in encode_integers(step, layout)], "exponents": list(exponents)},
        "after": {"arrays": [array_as_json(a) for a in state.parameters], **_tree(state.parameters, {}, {})},
        "slots": {
            "arrays": {name: [array_as_json(a) for a in arrays] for name, arrays in slots.items()},
            "exponents": {name: list(each) for name, each in slot_exponents.items()},
            **_tree(state.parameters, slots, slot_exponents),
        },
    }


def _tree(arrays: Sequence[Integers], slots: Any, exponents: Any) -> dict[str, Any]:
    tree = DigestTree(parameters_nodes(SMALL, arrays), slots_nodes(SMALL, slots, exponents))
    return {
        "tensors": [node.digest.hex() for node in tree.parameters],
        "parameters_digest": tree.parameters_digest.hex(),
        "slots_digest": tree.slots_digest.hex(),
        "state_digest": tree.state_digest.hex(),
    }
