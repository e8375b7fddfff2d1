import struct
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from refold.schemas.chunks import PLANES, open_chunks
from refold.schemas.codec import (
    decode_floats,
    decode_integers,
    decode_raw,
    encode_block,
    encode_floats,
    encode_integers,
    encode_raw,
    unpack_frame,
)
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import BLOCK, Integers, Layout
from refold.schemas.payload import CHUNK_BYTES

ONE = Layout([1000], [32])
TWO = Layout([BLOCK + 5, 7], [32, 64])


def integers(seed: int = 0) -> list[Integers]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-500, 500, BLOCK + 5).astype(np.int32), rng.integers(-(2**63), 2**63 - 1, 7)]


def decoded(chunks: list[bytes], layout: Layout) -> list[Integers]:
    found = [
        np.zeros(size, np.int32 if width == 32 else np.int64) for size, width in zip(layout.sizes, layout.widths, strict=True)
    ]
    for block, values in decode_integers(chunks, layout):
        found[block.tensor][block.elements] = values
    return found


def reason_of(decode: Callable[[], object]) -> str:
    with pytest.raises(InvalidRecord) as caught:
        decode()
    return caught.value.reason


def chunk_of(frame: bytes, *, mask: int = 1, first: int = 0, count: int = 1, length: int | None = None) -> bytes:
    head = struct.pack("<BBHIIBI", 1, PLANES, 0, first, count, mask, len(frame) if length is None else length)
    return head + bytes(-len(head) % 8) + frame


def frame_of(data: bytes, **settings: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **{"write_checksum": True, **settings}).compress(data)


@pytest.mark.parametrize(
    ("values", "planes"),
    [
        ([0], 0b0000),
        ([-128, 127], 0b0001),
        ([128], 0b0011),
        ([-129], 0b0011),
        ([-32896, 32639], 0b0011),
        ([32640], 0b0111),
        ([256], 0b0010),
        ([3 << 16], 0b0100),
        ([-(2**31), 2**31 - 1], 0b1001),
    ],
)
def test_only_planes_that_are_needed_are_written(values: list[int], planes: int) -> None:
    array = np.array(values, np.int32)
    mask, frames = encode_block(array)
    assert (mask, len(frames)) == (planes, planes.bit_count())
    layout = Layout([array.size], [32])
    assert decoded(list(encode_integers([array], layout)), layout)[0].tolist() == values


def test_the_decoded_integers_do_not_depend_on_the_size_of_chunks() -> None:
    arrays = integers()
    for most in (1, 200_000, CHUNK_BYTES):
        chunks = list(encode_integers(arrays, TWO, max_chunk_bytes=most))
        assert all(np.array_equal(left, right) for left, right in zip(decoded(chunks, TWO), arrays, strict=True))


def test_a_block_that_cannot_be_compressed_fits_one_chunk() -> None:
    rng = np.random.default_rng(1)
    layout = Layout([BLOCK, BLOCK], [32, 64])
    arrays = [rng.integers(-(2**31), 2**31 - 1, BLOCK).astype(np.int32), rng.integers(-(2**63), 2**63 - 1, BLOCK)]
    assert max(map(len, encode_integers(arrays, layout))) <= CHUNK_BYTES
    assert max(map(len, encode_raw(arrays, layout))) <= CHUNK_BYTES


def test_a_model_without_elements_is_one_chunk_that_says_so() -> None:
    empty = Layout([0], [32])
    chunks = list(encode_integers([np.zeros(0, np.int32)], empty))
    assert len(chunks) == 1
    assert list(decode_integers(chunks, empty)) == []
    assert reason_of(lambda: list(decode_integers([], empty))) == "layout"


def test_floats_come_back_bit_for_bit_and_integers_beside_them() -> None:
    values = np.array([0.0, -0.0, 1e-45, -1e38, 3.4028235e38], np.float32)
    layout = Layout([5, 2], [32, 64])
    blocks = dict(decode_floats(encode_floats([values, np.array([-7, 2**62])], layout), layout))
    first, second = blocks.values()
    assert first.tobytes() == values.tobytes()
    assert second.tolist() == [-7, 2**62]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(bad: float) -> None:
    layout = Layout([3], [32])
    chunks = list(encode_floats([np.array([1, bad, 2], np.float32)], layout))
    assert reason_of(lambda: list(decode_floats(chunks, layout))) == "not-finite"


def test_raw_integers_come_back_as_they_were() -> None:
    arrays = integers()
    for block, values in decode_raw(encode_raw(arrays, TWO), TWO):
        assert np.array_equal(values, arrays[block.tensor][block.elements])


def test_a_missing_a_repeated_and_a_misplaced_chunk_are_refused() -> None:
    first, second, third = encode_integers(integers(), TWO, max_chunk_bytes=1)
    for chunks in (
        [],
        [first, second],
        [first, third],
        [second, first, third],
        [first, second, second],
        [first, second, third, third],
    ):
        assert reason_of(lambda chunks=chunks: list(decode_integers(chunks, TWO))) == "layout"


def test_a_chunk_of_another_form_is_refused() -> None:
    raw = list(encode_raw(integers(), TWO))
    assert reason_of(lambda: list(decode_integers(raw, TWO))) == "layout"


def test_a_chunk_above_the_bound_is_refused_before_it_is_read() -> None:
    assert reason_of(lambda: list(decode_integers([bytes(CHUNK_BYTES + 1)], ONE))) == "lengths"


def test_a_plane_that_the_width_has_no_place_for_is_refused() -> None:
    chunk = chunk_of(frame_of(bytes(1000)), mask=0b10000)
    assert reason_of(lambda: list(decode_integers([chunk], ONE))) == "layout"


@pytest.mark.parametrize("change", [-1, 1, 1 << 20])
def test_a_table_that_contradicts_the_chunk_is_refused(change: int) -> None:
    frame = frame_of(bytes(1000))
    assert reason_of(lambda: list(decode_integers([chunk_of(frame, length=len(frame) + change)], ONE))) == "lengths"


def test_a_frame_that_names_another_size_is_refused_before_it_is_unpacked() -> None:
    assert reason_of(lambda: unpack_frame(memoryview(frame_of(bytes(1 << 28))), 1000)) == "lengths"


def test_a_frame_whose_content_exceeds_its_name_is_refused() -> None:
    honest = bytearray(frame_of(bytes(4000)))
    at = honest.index(struct.pack("<H", 4000 - 256), 4)
    honest[at : at + 2] = struct.pack("<H", 1000 - 256)
    assert zstandard.get_frame_parameters(bytes(honest)).content_size == 1000
    assert reason_of(lambda: unpack_frame(memoryview(bytes(honest)), 1000)) == "compression"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "compression"),
        (b"\x28\xb5\x2f\xfd", "compression"),
        (frame_of(bytes(1000))[:-1], "compression"),
        (frame_of(bytes(1000)) + b"\0", "compression"),
        (frame_of(bytes(1000)) + frame_of(bytes(1000)), "compression"),
        (frame_of(bytes(1000), write_checksum=False), "compression"),
        (frame_of(bytes(1000), write_content_size=False), "lengths"),
        (struct.pack("<II", 0x184D2A50, 1000) + bytes(1000), "compression"),
        (bytes.fromhex("28b52ffd04f80000000100000000"), "compression"),
    ],
    ids=["empty", "magic alone", "cut", "trailing byte", "joined", "no checksum", "no size", "skippable", "huge window"],
)
def test_a_frame_that_is_not_plain_is_refused(frame: bytes, reason: str) -> None:
    assert reason_of(lambda: unpack_frame(memoryview(frame), 1000)) == reason


def test_a_frame_with_a_dictionary_is_refused() -> None:
    samples = [bytes([i % 251] * 64 + list(range(64))) for i in range(500)]
    dictionary = zstandard.train_dictionary(4096, samples)
    frame = zstandard.ZstdCompressor(level=1, dict_data=dictionary, write_checksum=True).compress(bytes(1000))
    assert reason_of(lambda: unpack_frame(memoryview(frame), 1000)) == "compression"


def test_a_flipped_bit_inside_a_frame_is_found_by_its_checksum() -> None:
    data = np.random.default_rng(2).integers(0, 256, 1000).astype(np.uint8).tobytes()
    frame = bytearray(frame_of(data))
    frame[500] ^= 1
    assert reason_of(lambda: unpack_frame(memoryview(bytes(frame)), 1000)) == "compression"


def test_chunks_are_opened_one_at_a_time() -> None:
    chunks = iter(encode_integers(integers(), TWO, max_chunk_bytes=1))
    taken = 0

    def counted() -> object:
        nonlocal taken
        for chunk in chunks:
            taken += 1
            yield chunk

    next(open_chunks(counted(), TWO, PLANES))  # type: ignore[arg-type]
    assert taken == 1
