"""I9: nothing is decoded without a bound."""

import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from refold.schemas.chunks import FLOATS, PLANES, RAW, open_chunks
from refold.schemas.codec import (
    decode_floats,
    decode_integers,
    decode_planes,
    decode_raw,
    encode_floats,
    encode_integers,
    encode_raw,
    fold_planes,
)
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import Integers, Layout
from refold.schemas.payload import CHUNK_BYTES
from refold.schemas.reasons import CONTENT, INTEGRITY, REASONS

MODEL = Layout([70_000, 0, 3, 66_000], [32, 32, 64, 64])
BOUND_BYTES = 4 << 20
"""Three times the largest chunk, and a block: far below what any bomb here names."""

DECODERS: dict[int, Callable[[Iterable[bytes], Layout], Iterable[object]]] = {
    PLANES: decode_integers,
    FLOATS: decode_floats,
    RAW: decode_raw,
}


def tensors(seed: int, scale: float) -> list[Integers]:
    rng = np.random.default_rng(seed)
    floats = [np.clip(np.rint(rng.standard_t(2, size) * scale), -(2**31), 2**31 - 1) for size in MODEL.sizes]
    return [f.astype(np.int32 if width == 32 else np.int64) for f, width in zip(floats, MODEL.widths, strict=True)]


def encoded(form: int, seed: int = 1, scale: float = 40) -> list[bytes]:
    arrays = tensors(seed, scale)
    if form == PLANES:
        return list(encode_integers(arrays, MODEL, max_chunk_bytes=100_000))
    if form == RAW:
        return list(encode_raw(arrays, MODEL, max_chunk_bytes=100_000))
    return list(encode_floats([a.astype(np.float32) if a.dtype == np.int32 else a for a in arrays], MODEL, max_chunk_bytes=1))


ENCODED = {form: encoded(form) for form in DECODERS}


def decode_bounded(form: int, chunks: list[bytes], layout: Layout = MODEL) -> str | None:
    """Decode, holding nothing; return the reason of a refusal. Anything but a refusal, or too much memory, fails the test."""
    reason = None
    tracemalloc.start()
    try:
        for _ in DECODERS[form](chunks, layout):
            pass
    except InvalidRecord as error:
        reason = error.reason
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BOUND_BYTES
    assert reason is None or REASONS[reason] in (INTEGRITY, CONTENT)
    return reason


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from([32, 64])), max_size=6),
    st.integers(0, 2**32 - 1),
    st.integers(0, 63),
    st.integers(1, 3000),
)
def test_integers_of_any_shape_and_size_come_back(shapes: list[tuple[int, int]], seed: int, bits: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    arrays: list[Integers] = []
    for size, width in shapes:
        reach = 2 ** min(bits, width - 1)
        arrays.append(rng.integers(-reach, reach - 1, size, endpoint=True).astype(np.int32 if width == 32 else np.int64))
    layout = Layout([size for size, _ in shapes], [width for _, width in shapes])
    for encode, decode in ((encode_integers, decode_integers), (encode_raw, decode_raw)):
        found = [np.zeros_like(array) for array in arrays]
        for block, values in decode(encode(arrays, layout, max_chunk_bytes=most), layout):
            found[block.tensor][block.elements] = values
        assert all(np.array_equal(left, right) for left, right in zip(found, arrays, strict=True))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50))
def test_floats_come_back_bit_for_bit(values: list[float]) -> None:
    array = np.array(values, np.float32)
    layout = Layout([array.size], [32])
    found = b"".join(floats.tobytes() for _, floats in decode_floats(encode_floats([array], layout), layout))
    assert found == array.tobytes()


@pytest.mark.parametrize("form", DECODERS)
@given(data=st.lists(st.binary(max_size=400), max_size=3))
def test_random_bytes_are_refused(form: int, data: list[bytes]) -> None:
    assert decode_bounded(form, data) is not None


@pytest.mark.parametrize("form", DECODERS)
@given(data=st.data())
def test_changed_bytes_are_refused_or_decoded_within_the_bound(form: int, data: st.DataObject) -> None:
    chunks = list(ENCODED[form])
    which = data.draw(st.integers(0, len(chunks) - 1))
    chunk = bytearray(chunks[which])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.one_of(st.integers(0, min(60, len(chunk) - 1)), st.integers(0, len(chunk) - 1)))
        chunk[place] = data.draw(st.integers(0, 255))
    chunks[which] = bytes(chunk)
    decode_bounded(form, chunks)


@pytest.mark.parametrize("form", DECODERS)
@given(data=st.data())
def test_a_chunk_that_is_cut_or_grown_is_refused(form: int, data: st.DataObject) -> None:
    chunks = list(ENCODED[form])
    which = data.draw(st.integers(0, len(chunks) - 1))
    keep = data.draw(st.integers(0, len(chunks[which]) - 1))
    extra = data.draw(st.binary(min_size=1, max_size=40))
    chunks[which] = data.draw(st.sampled_from([chunks[which][:keep], chunks[which] + extra]))
    assert decode_bounded(form, chunks) == "lengths"


def bomb(named: int, given_bytes: int) -> bytes:
    """Return a frame that names one size and holds another: the size stands in the frame's own header, as 8 bytes."""
    stream = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(size=given_bytes)
    frame = bytearray(stream.compress(bytes(given_bytes)) + stream.flush())
    size_flag = frame[4] >> 6
    width = {0: 1, 1: 2, 2: 4, 3: 8}[size_flag]
    single = frame[4] >> 5 & 1
    at = 5 + (0 if single else 1)
    offset = 256 if size_flag == 1 else 0
    frame[at : at + width] = ((named - offset) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(frame)


@pytest.mark.parametrize("form", [PLANES, FLOATS])
@pytest.mark.parametrize("named_right", [True, False], ids=["names the size that is due", "names its own size"])
def test_a_frame_that_would_grow_to_a_gigabyte_is_refused_within_the_bound(form: int, named_right: bool) -> None:
    layout = Layout([100_000], [32])
    due = 100_000 if form == PLANES else 400_000
    frame = bomb(due, 1 << 28) if named_right else bomb(1 << 28, 1 << 28)
    head = bytes([1, form, 0, 0]) + bytes(4) + (1).to_bytes(4, "little") + b"\x01" + len(frame).to_bytes(4, "little")
    chunk = head + bytes(-len(head) % 8) + frame
    assert len(chunk) < CHUNK_BYTES
    assert decode_bounded(form, [chunk], layout) in ("compression", "lengths")


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 40, 3000, 2**28]), st.sampled_from([0.0, 1e-4, 0.2]))
def test_what_is_folded_is_what_is_decoded_however_few_digits_a_plane_has(seed: int, scale: float, outliers: float) -> None:
    rng = np.random.default_rng(seed)
    arrays = tensors(seed, scale)
    for array in arrays:
        array[rng.random(array.size) < outliers] <<= 20
    for parts in open_chunks(list(encode_integers(arrays, MODEL)), MODEL, PLANES):
        for part in parts:
            room = np.full(part.block.count, 7, np.int32 if part.block.width == 32 else np.int64)
            assert np.array_equal(fold_planes(part, room), decode_planes(part))


@pytest.mark.parametrize("flip", [0, 5, 20, -1])
def test_what_is_folded_is_refused_when_its_frame_is_damaged(flip: int) -> None:
    layout = Layout([70_000], [32])
    (parts,) = open_chunks(encode_integers(tensors(1, 40)[:1], layout), layout, PLANES)
    frame = bytearray(parts[0].frames[0])
    frame[flip] ^= 0x10
    damaged = replace(parts[0], frames=(memoryview(bytes(frame)), *parts[0].frames[1:]))
    with pytest.raises(InvalidRecord):
        fold_planes(damaged, np.empty(parts[0].block.count, np.int32))
