"""Files that are made whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from refold.keyring import Keyring
from refold.schemas.files import create_file


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
