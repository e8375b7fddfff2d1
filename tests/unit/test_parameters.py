"""Files of parameters and settings that somebody else made: refused by name, in bounded memory, nothing unpickled."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from refold.cli.parameters import read_parameters
from refold.cli.settings import load
from refold.schemas.errors import ConfigurationError

MIB = 1 << 20


def npy(shape: tuple[int, ...], data: bytes, dtype: str = "<f4") -> bytes:
    room = io.BytesIO()
    np.lib.format.write_array_header_1_0(room, {"descr": dtype, "fortran_order": False, "shape": shape})
    return room.getvalue() + data


def archive(path: Path, *entries: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries:
            made.writestr(name, data)
    return path


def refused(path: Path, most_bytes: int = 8 * MIB) -> str:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError) as caught:
            read_parameters(path)
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()
    return str(caught.value)


@pytest.mark.parametrize("shape", [(1 << 50,), (1 << 40, 1 << 40), (2**62, 2), (-1,), (1 << 20,)])
def test_f32_an_array_whose_head_lies_about_its_shape_is_refused_before_allocation(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    said = refused(archive(tmp_path / "w.npz", ("w.npy", npy(shape, bytes(64)))))
    assert "not as long as its shape" in said


def test_f31_a_packed_archive_that_memory_cannot_hold_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 64 * MIB
    path = archive(tmp_path / "w.npz", ("w.npy", npy((size // 4,), bytes(size))), ("v.npy", npy((1,), bytes(4))))
    assert path.stat().st_size < MIB // 4
    room: Any = type("Room", (), {"available": 32 * MIB})
    monkeypatch.setattr("psutil.virtual_memory", lambda: room)
    assert "and 33,554,432 are free" in refused(path)
    room.available = 1 << 40
    assert read_parameters(path)["w"].nbytes == size


def test_f32_objects_and_arrays_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    objects = archive(tmp_path / "objects.npz", ("w.npy", npy((1,), b"cos\nsystem\n", "|O")))
    assert "which only pickle could read" in refused(objects)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive(tmp_path / "twice.npz", *(("w.npy", npy((1,), bytes(4))),) * 2)
    assert "twice" in refused(twice)


@pytest.mark.parametrize("head", [b"\xff" * 8, (2**40).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"[" * 9])
def test_f32_a_safetensors_file_whose_head_lies_is_refused(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(head + save({"w": np.zeros(3, "f4")})[8:])
    assert "not a sound .safetensors file" in refused(path)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "a = " + "{b=" * 5_000, "a = " + "9" * 5_000, "a." * 3_000 + "a = 1\nx", "\x00", "a = '\x1b'"],
)
def test_f30_settings_that_nest_without_end_or_have_endless_numbers_are_no_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "refold.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        load(path, ["serve"])


def test_f30_settings_larger_than_any_are_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "refold.toml"
    with path.open("wb") as file:
        file.truncate(1 << 32)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError, match="larger than"):
            load(path, ["serve"])
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.torch
def test_a_file_of_bfloat16_is_read_without_torch(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from refold.state.model_state import initial_state

    held = {
        "w": torch.linspace(-2, 2, 6).reshape(2, 3).bfloat16(),
        "b": torch.ones(2),
        "n": torch.tensor(3),
        "h": torch.ones(2).half(),
    }
    save_file(held, tmp_path / "it.safetensors")
    state = initial_state(read_parameters(tmp_path / "it.safetensors"))
    assert {tensor.name: tensor.dtype for tensor in state.schema.tensors} == {
        "w": "bfloat16",
        "b": "float32",
        "n": "int64",
        "h": "float16",
    }
    assert all(torch.equal(state.torch()[name], tensor) for name, tensor in held.items())
