import pytest

from refold.schemas.layout import BLOCK, WIDE_BLOCK, Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.payload import CHUNK_BYTES


def tensor(name: str, dtype: str, *shape: int) -> TensorSchema:
    is_float = dtype == "float32"
    return TensorSchema(name, dtype, shape, 22 if is_float else 0, "mean" if is_float else "max")


SCHEMA = ModelSchema((tensor("a", "float32", BLOCK + 1), tensor("none", "float32", 0, 3), tensor("n", "int8", WIDE_BLOCK * 2)))


def test_blocks_cover_every_element_once_and_in_order() -> None:
    blocks = list(Layout.of(SCHEMA))
    assert [block.index for block in blocks] == list(range(len(Layout.of(SCHEMA))))
    assert [(b.tensor, b.start, b.count) for b in blocks] == [
        (0, 0, BLOCK),
        (0, BLOCK, 1),
        (2, 0, WIDE_BLOCK),
        (2, WIDE_BLOCK, WIDE_BLOCK),
    ]


def test_a_block_is_found_by_its_number() -> None:
    layout = Layout.of(SCHEMA)
    assert [layout[index] for index in range(len(layout))] == list(layout)
    with pytest.raises(IndexError):
        layout[len(layout)]


def test_a_tensor_without_elements_has_no_block() -> None:
    assert not list(Layout.of(SCHEMA).of_tensor(1))


def test_any_block_fits_one_chunk_uncompressed() -> None:
    assert max(block.size_bytes for block in Layout.of(SCHEMA)) < CHUNK_BYTES * 0.6


def test_slots_have_blocks_for_float_tensors_alone() -> None:
    layout = Layout.of_slots(SCHEMA, ("m", "v"))
    assert [block.tensor for block in layout] == [0, 0, 3, 3]
    assert layout.size_bytes == 2 * 4 * (BLOCK + 1)
