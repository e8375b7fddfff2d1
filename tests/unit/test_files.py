"""Files that are made whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from refold.keyring import Keyring
from refold.schemas.files import create_file, replacing


def test_a_new_file_is_whole_and_its_owners_alone(tmp_path: Path):
    create_file(tmp_path / "keys" / "secret", b"bytes")
    assert (tmp_path / "keys" / "secret").read_bytes() == b"bytes"
    assert stat.S_IMODE((tmp_path / "keys" / "secret").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["secret"]


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path):
    create_file(tmp_path / "secret", b"first")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "secret", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert (tmp_path / "secret").read_bytes() == b"first"


def test_keys_are_made_after_a_crash_between_their_bytes_and_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", crash)
        with pytest.raises(KeyboardInterrupt):
            Keyring(tmp_path).create()
    operator, secret = Keyring(tmp_path).create()
    again, same = Keyring(tmp_path).create()
    assert (again.public, same) == (operator.public, secret)


@pytest.mark.parametrize("failing", ["body", "fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays_and_nothing_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
):
    path = tmp_path / "kept"
    path.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with replacing(path) as file:
            file.write(b"after")
            if failing == "body":
                full()

    with monkeypatch.context() as patched:
        if failing != "body":
            patched.setattr(os if failing == "fsync" else Path, failing, full)
        with pytest.raises(OSError, match="No space left"):
            write()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"


def test_a_file_that_cannot_be_made_is_named_as_the_caller_knows_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "nowhere" / "kept"):
        pass
    assert raised.value.filename == str(tmp_path / "nowhere" / "kept")
