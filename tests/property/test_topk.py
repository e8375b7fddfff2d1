"""Sparse frames: any entries come back, and nothing that is sent in their place costs more than a block."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refold.schemas.chunks import SPARSE
from refold.schemas.codec import pack_frame
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import BLOCK, Integers, Layout
from refold.schemas.reasons import INTEGRITY, REASONS
from refold.schemas.topk import Entries, decode_sparse, encode_sparse, most_bytes
from refold.state.aggregation import WeightedMean
from refold.state.delta import TOPK, decode_update, delta_of
from refold.state.largest import REST_LIMIT, sparse_delta
from refold.state.model_state import initial_state

MODEL = Layout([70_000, 0, 3, BLOCK + 9], [32, 32, 64, 32])
BOUND_BYTES = 8 << 20
"""A chunk, a block, and the places of as many entries as a block can have; far below what any bomb here names."""


def sparse(array: Integers) -> Entries:
    places = np.flatnonzero(array)
    return Entries(places, array[places].astype(np.int32))


def encoded(seed: int = 1, share: float = 0.02) -> list[bytes]:
    rng = np.random.default_rng(seed)
    tensors: list[Entries | Integers] = []
    for size, width in zip(MODEL.sizes, MODEL.widths, strict=True):
        values = rng.integers(-400, 400, size)
        tensors.append(values if width == 64 else sparse(np.where(rng.random(size) < share, values, 0)))
    return list(encode_sparse(tensors, MODEL, max_chunk_bytes=3000))


ENCODED = encoded()


def decode_bounded(chunks: list[bytes], layout: Layout = MODEL) -> str | None:
    """Decode, holding nothing; return the reason of a refusal. Anything but a refusal, or too much memory, fails the test."""
    reason = None
    tracemalloc.start()
    try:
        for block, values in decode_sparse(chunks, layout):
            assert len(values) == block.count
    except InvalidRecord as error:
        reason = error.reason
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BOUND_BYTES
    assert reason is None or REASONS[reason] == INTEGRITY
    return reason


@given(st.data())
def test_entries_of_any_place_and_value_come_back(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 3000), max_size=4))
    widths = data.draw(st.lists(st.sampled_from([32, 64]), min_size=len(sizes), max_size=len(sizes)))
    dense: list[Integers] = []
    for size, width in zip(sizes, widths, strict=True):
        kind = np.int32 if width == 32 else np.int64
        fill = st.nothing() if data.draw(st.booleans()) and size < 40 else st.just(0)
        dense.append(data.draw(arrays.arrays(kind, size, elements=st.integers(-(2**31), 2**31 - 1), fill=fill)))
    layout = Layout(sizes, widths)
    tensors = [sparse(array) if width == 32 else array for array, width in zip(dense, widths, strict=True)]
    chunks = list(encode_sparse(tensors, layout, max_chunk_bytes=data.draw(st.integers(1, 3000))))
    entries = sum(len(tensor.places) for tensor in tensors if isinstance(tensor, Entries))
    assert len(chunks) * 20 + most_bytes(layout, entries) >= sum(map(len, chunks))
    found = [np.zeros_like(array) for array in dense]
    for block, values in decode_sparse(chunks, layout):
        found[block.tensor][block.elements] = values
    assert all(np.array_equal(left, right) for left, right in zip(found, dense, strict=True))


@given(data=st.lists(st.binary(max_size=400), max_size=3))
def test_random_bytes_are_refused(data: list[bytes]) -> None:
    assert decode_bounded(data) is not None


@given(data=st.data())
def test_changed_bytes_are_refused_or_decoded_within_the_bound(data: st.DataObject) -> None:
    chunks = list(ENCODED)
    which = data.draw(st.integers(0, len(chunks) - 1))
    chunk = bytearray(chunks[which])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.one_of(st.integers(0, min(60, len(chunk) - 1)), st.integers(0, len(chunk) - 1)))
        chunk[place] = data.draw(st.integers(0, 255))
    chunks[which] = bytes(chunk)
    decode_bounded(chunks)


@given(mask=st.integers(0, 255), data=st.data())
def test_planes_of_any_content_are_refused_or_stay_inside_the_block(mask: int, data: st.DataObject) -> None:
    """The outer form is right and the frames are sound: what is in them is not."""
    layout = Layout([data.draw(st.sampled_from([1, 5, 300, BLOCK]))], [32])
    length = data.draw(st.integers(0, 6))
    lengths = st.one_of(st.just(length), st.integers(0, 400))
    frames = [
        pack_frame(data.draw(st.binary(min_size=n, max_size=n))) for n in (data.draw(lengths) for _ in range(mask.bit_count()))
    ]
    head = bytes([1, SPARSE, 0, 0]) + bytes(4) + (1).to_bytes(4, "little") + bytes([mask])
    head += b"".join(len(frame).to_bytes(4, "little") for frame in frames)
    chunk = head + bytes(-len(head) % 8) + b"".join(frames)
    if decode_bounded([chunk], layout) is None:
        [(_, values)] = decode_sparse([chunk], layout)
        [again] = encode_sparse([sparse(values)], layout)
        assert again == chunk, "two forms of one content"


@pytest.mark.parametrize("named_right", [True, False])
def test_a_frame_that_would_grow_to_a_gigabyte_is_refused_within_the_bound(named_right: bool) -> None:
    named = 100_000 if named_right else 1 << 28
    frame = bytearray(pack_frame(bytes(1 << 28)))
    assert frame[4] >> 6 == 2
    at = 5 if frame[4] >> 5 & 1 else 6
    frame[at : at + 4] = named.to_bytes(4, "little")
    head = bytes([1, SPARSE, 0, 0]) + bytes(4) + (1).to_bytes(4, "little") + b"\x08" + len(frame).to_bytes(4, "little")
    chunk = head + bytes(-len(head) % 8) + bytes(frame)
    assert decode_bounded([chunk], Layout([100_000], [32])) in ("compression", "lengths")


@given(st.integers(0, 2**32 - 1), st.integers(1, 1_000_000), st.integers(0, 28), st.floats(1e-6, 1e2))
def test_what_was_sent_and_what_is_left_make_up_what_was_wanted(seed: int, density_ppm: int, k: int, scale: float) -> None:
    """Over several rounds, for any density, grid and magnitude that the lattice has room for: to the last integer."""
    rng = np.random.default_rng(seed)
    base = initial_state({"a": rng.normal(0, 1, 50).astype("f4"), "b": rng.normal(0, 1e-3, 7).astype("f4")})
    largest = min(scale, *(2.0 ** (25 - tensor.exponent) for tensor in base.schema.tensors))
    total = {name: [np.zeros(t.size, np.int64) for t in base.schema.tensors] for name in ("wanted", "sent")}
    rest = [np.zeros(tensor.size, np.int32) for tensor in base.schema.tensors]
    for _ in range(4):
        local = {n: a + (largest * rng.uniform(-1, 1, a.shape)).astype("f4") for n, a in base.numpy().items()}
        for sum_, change in zip(total["wanted"], delta_of(base, local, exact=True).arrays, strict=True):
            sum_ += change
        found = sparse_delta(base, local, rest=[array.copy() for array in rest], density_ppm=density_ppm, plan=(k, k))
        chunks = encode_sparse(found.tensors, Layout.of(base.schema))
        for block, integers in decode_update(TOPK, found.exponents, chunks, base.schema):
            total["sent"][block.tensor] += integers.astype(np.int64) << found.exponents[block.tensor]
        rest = [left + unsent for left, unsent in zip(rest, found.unsent, strict=True)]
    for wanted, sent, left in zip(total["wanted"], total["sent"], rest, strict=True):
        assert np.array_equal(wanted, sent + left)
        assert np.abs(left).max() <= REST_LIMIT


@given(st.integers(0, 2**32 - 1))
def test_the_sum_of_sparse_updates_is_that_of_the_same_integers_sent_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = initial_state({"w": rng.normal(0, 1, 400).astype("f4")})
    mean, plain = WeightedMean(base.schema, (0,)), np.zeros(400, np.int64)
    for index, weight in enumerate(rng.integers(1, 50, 4)):
        local = {"w": base.numpy()["w"] + rng.normal(0, 0.01, 400).astype("f4")}
        found = sparse_delta(base, local, rest=None, density_ppm=100_000)
        sent = found.tensors[0]
        assert isinstance(sent, Entries)
        plain[sent.places] += weight * (sent.values.astype(np.int64) << found.exponents[0])
        blocks = decode_update(TOPK, found.exponents, encode_sparse(found.tensors, Layout.of(base.schema)), base.schema)
        mean.add(blocks, found.exponents, weight=int(weight), index=index)
    result = mean.result()
    assert np.array_equal(np.concatenate([result.take(block) for block in Layout.of(base.schema)]), plain)
